//! What is counted. Labels are closed sets, but for the names of the few adapters that are used most.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use tokio::time::Instant;

use super::state::{Eviction, State};
use super::top::Top;
use crate::adapters::Alias;
use crate::telemetry::{Bounded, Registry, label, labels};

label! {
    /// A part of a load whose time is taken.
    #[derive(PartialOrd, Ord)]
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
}

label! {
    /// How a load ended.
    pub(super) enum Outcome {
        Ready,
        /// Trying again changes nothing.
        Refused,
        Failed,
    }
}

label! {
    /// Where a requested adapter was.
    pub(super) enum Tier {
        Engine,
        Disk,
        Peer,
    }
}

labels! {
    struct StageLabel {
        stage: Stage,
    }
}

labels! {
    struct OutcomeLabel {
        outcome: Outcome,
    }
}

labels! {
    struct TierLabel {
        tier: Tier,
    }
}

labels! {
    struct ReasonLabel {
        reason: Eviction,
    }
}

labels! {
    struct StateLabel {
        state: State,
    }
}

labels! {
    struct AdapterLabel {
        /// One of the few that are used most, or all others.
        adapter: Bounded<String>,
    }
}

#[derive(Debug, Clone)]
pub struct Metrics {
    top: Arc<Mutex<Top>>,
    named_requests: Family<AdapterLabel, Counter>,
    named_load: Family<AdapterLabel, Counter<f64, AtomicU64>>,
    stages: Family<StageLabel, Histogram, fn() -> Histogram>,
    loads: Family<OutcomeLabel, Counter>,
    requests: Family<TierLabel, Counter>,
    evictions: Family<ReasonLabel, Counter>,
    states: Family<StateLabel, Gauge>,
    pub(super) self_heals: Counter,
}

impl Metrics {
    /// So many adapters have a name, the others have one together.
    pub fn register(r: &mut Registry, named: usize) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 22));
        Self {
            top: Arc::new(Mutex::new(Top::new(named, Instant::now()))),
            named_requests: r.add(
                "warmd_adapter_named_requests_total",
                "Requests of the adapters that are used most, by name, and of all others together",
            ),
            named_load: r.add(
                "warmd_adapter_named_load_seconds_total",
                "Time of loading the adapters that are used most, by name, and all others together",
            ),
            stages: r.insert(
                "warmd_adapter_load_seconds",
                "Time of loading an adapter, by stage",
                Family::new_with_constructor(seconds),
            ),
            loads: r.add("warmd_adapter_loads_total", "Ended loads by outcome"),
            requests: r.add("warmd_adapter_requests_total", "Requests by where their adapter was"),
            evictions: r.add("warmd_adapter_evictions_total", "Adapters that left the engine or the disk, by reason"),
            states: r.add("warmd_adapters", "Known adapters by state"),
            self_heals: r.add("warmd_adapter_self_heals_total", "Adapters that the engine had lost and got again"),
        }
    }

    fn top(&self) -> std::sync::MutexGuard<'_, Top> {
        self.top.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn took(&self, alias: &Alias, stage: Stage, time: Duration) {
        let top = self.top();
        let adapter = Bounded(top.name(alias).to_owned());
        self.named_load.get_or_create(&AdapterLabel { adapter }).inc_by(time.as_secs_f64());
        self.observe(stage, time);
    }

    /// Of all adapters that were looked up at once.
    pub(super) fn looked(&self, time: Duration) {
        self.observe(Stage::Look, time);
    }

    fn observe(&self, stage: Stage, time: Duration) {
        self.stages.get_or_create(&StageLabel { stage }).observe(time.as_secs_f64());
    }

    pub(super) fn loaded(&self, outcome: Outcome) {
        self.loads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn requested(&self, alias: &Alias, tier: Tier) {
        // Held to the end: nobody counts under a name that is just being taken away.
        let mut top = self.top();
        if let Some(lost) = top.used(alias, Instant::now()) {
            let lost = AdapterLabel { adapter: Bounded(lost.to_string()) };
            self.named_requests.remove(&lost);
            self.named_load.remove(&lost);
        }
        let adapter = Bounded(top.name(alias).to_owned());
        self.named_requests.get_or_create(&AdapterLabel { adapter }).inc();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adapters_that_are_used_most_are_counted_by_name_and_the_others_together() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, 2);
        let alias = |text: &str| text.parse::<Alias>().unwrap();
        for (name, times) in [("sql", 9), ("once", 1), ("chat", 3), ("other", 2)] {
            for _ in 0..times {
                metrics.requested(&alias(name), Tier::Engine);
            }
            metrics.took(&alias(name), Stage::Fetch, Duration::from_secs(times));
        }
        let text = crate::telemetry::encode(&registry);
        let named: Vec<&str> = text.lines().filter(|line| line.starts_with("warmd_adapter_named_")).collect();
        let expected = [
            "warmd_adapter_named_load_seconds_total{adapter=\"chat\"} 3.0",
            "warmd_adapter_named_load_seconds_total{adapter=\"other\"} 2.0",
            "warmd_adapter_named_load_seconds_total{adapter=\"sql\"} 9.0",
            "warmd_adapter_named_requests_total{adapter=\"chat\"} 1",
            "warmd_adapter_named_requests_total{adapter=\"other\"} 4",
            "warmd_adapter_named_requests_total{adapter=\"sql\"} 9",
        ];
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{text}");
    }
}
