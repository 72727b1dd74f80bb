//! What is counted. Labels are closed sets: no alias is one.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::state::{Eviction, State};

/// A part of a load whose time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
pub(super) enum Stage {
    /// Asking the fleet for the newest versions of names.
    Look,
    /// Getting and admitting a manifest.
    Open,
    Fetch,
    Check,
    Prepare,
    Register,
}

/// How a load ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Ready,
    /// Trying again changes nothing.
    Refused,
    Failed,
}

/// Where a requested adapter was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Tier {
    Engine,
    Disk,
    Peer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabel {
    tier: Tier,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Eviction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: State,
}

#[derive(Debug, Clone)]
pub struct Metrics {
    stages: Family<StageLabel, Histogram, fn() -> Histogram>,
    loads: Family<OutcomeLabel, Counter>,
    requests: Family<TierLabel, Counter>,
    evictions: Family<ReasonLabel, Counter>,
    states: Family<StateLabel, Gauge>,
    pub(super) self_heals: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 22));
        let metrics = Self {
            stages: Family::new_with_constructor(seconds),
            loads: Family::default(),
            requests: Family::default(),
            evictions: Family::default(),
            states: Family::default(),
            self_heals: Counter::default(),
        };
        let m = metrics.clone();
        registry.register_with_unit("warmd_adapter_load", "Loading an adapter, by stage", Unit::Seconds, m.stages);
        registry.register("warmd_adapter_loads", "Ended loads", m.loads);
        registry.register("warmd_adapter_requests", "Requests by where their adapter was", m.requests);
        registry.register("warmd_adapter_evictions", "Adapters that left the engine or the disk", m.evictions);
        registry.register("warmd_adapters", "Known adapters by state", m.states);
        registry.register("warmd_adapter_self_heals", "Adapters that the engine had lost", m.self_heals);
        metrics
    }

    pub(super) fn took(&self, stage: Stage, time: Duration) {
        self.stages.get_or_create(&StageLabel { stage }).observe(time.as_secs_f64());
    }

    pub(super) fn loaded(&self, outcome: Outcome) {
        self.loads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn requested(&self, tier: Tier) {
        self.requests.get_or_create(&TierLabel { tier }).inc();
    }

    pub(super) fn evicted(&self, reason: Eviction) {
        self.evictions.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn count(&self, states: impl Iterator<Item = State>) {
        let mut counts = [0; State::ALL.len()];
        for state in states {
            counts[state as usize] += 1;
        }
        for (state, count) in State::ALL.into_iter().zip(counts) {
            self.states.get_or_create(&StateLabel { state }).set(count);
        }
    }
}
