//! What the server counts. Labels come from closed sets; node ids appear in logs only.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::backend::shared::StoreError;
use super::registry::Counts;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Method {
    Announce,
    Withdraw,
    Lookup,
    Watch,
    List,
    GetTrust,
    PutTrust,
    Report,
    Fleet,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Ok,
    /// The message broke a rule of the protocol.
    Invalid,
    /// For another node, of an epoch that is over, overtaken.
    Refused,
    /// A table or a cap is full.
    Full,
    /// Too much at once: to come again later.
    Crowded,
    Unavailable,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) method: Method,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MethodLabels {
    pub(super) method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum State {
    Initializing,
    Ready,
    Draining,
    Stale,
    Lapsed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Reject {
    /// Too many connections.
    Full,
    /// No admitted certificate, not TLS, or not in time.
    Handshake,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RejectLabels {
    pub(super) reason: Reject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Loss {
    Unreachable,
    Silent,
    Refused,
    /// The store has begun anew, or its log was ahead of us.
    Reread,
    Damaged,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabels {
    reason: Loss,
}

#[derive(Debug, Clone)]
pub(super) struct Metrics {
    nodes: Family<StateLabels, Gauge>,
    artifacts: Gauge,
    identities: Gauge,
    holdings: Gauge,
    pub(super) watchers: Gauge,
    pub(super) connections: Gauge,
    pub(super) rejects: Family<RejectLabels, Counter>,
    pub(super) lapses: Counter,
    pub(super) turned_away: Counter,
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) seconds: Family<MethodLabels, Histogram>,
    pub(super) store_errors: Counter,
    pub(super) store_seconds: Counter<f64, AtomicU64>,
    shared_up: Gauge,
    shared_losses: Family<LossLabels, Counter>,
    pub(super) leads: Gauge,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            nodes: Family::default(),
            artifacts: Gauge::default(),
            identities: Gauge::default(),
            holdings: Gauge::default(),
            watchers: Gauge::default(),
            connections: Gauge::default(),
            rejects: Family::default(),
            lapses: Counter::default(),
            turned_away: Counter::default(),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_05, 4.0, 9))),
            store_errors: Counter::default(),
            store_seconds: Counter::default(),
            shared_up: Gauge::default(),
            shared_losses: Family::default(),
            leads: Gauge::default(),
        };
        let r = registry.sub_registry_with_prefix("warmd_metadata");
        r.register("nodes", "Nodes by state", metrics.nodes.clone());
        r.register("artifacts", "Distinct artifacts", metrics.artifacts.clone());
        r.register("identities", "Source identities with an artifact", metrics.identities.clone());
        r.register("holdings", "Pairs of an artifact and a node that has all or some of it", metrics.holdings.clone());
        r.register("watchers", "Open watches", metrics.watchers.clone());
        r.register("connections", "Open connections", metrics.connections.clone());
        r.register("connection_rejects", "Connections refused", metrics.rejects.clone());
        r.register("lease_expiries", "Leases that ran out", metrics.lapses.clone());
        r.register("turned_away", "Requests for which there was no room at all", metrics.turned_away.clone());
        r.register("requests", "Requests by method and outcome", metrics.requests.clone());
        r.register("request_seconds", "Time to answer a request", metrics.seconds.clone());
        r.register("store_errors", "Failed writes of hints to disk", metrics.store_errors.clone());
        r.register("store_seconds", "Time spent writing hints to disk", metrics.store_seconds.clone());
        r.register("shared_store_up", "1 while this server follows the shared store", metrics.shared_up.clone());
        r.register("shared_store_losses", "Times that it did not any more", metrics.shared_losses.clone());
        r.register("leads", "1 on the server that counts for all that share the store", metrics.leads.clone());
        metrics
    }

    pub(super) fn found_store(&self) {
        self.shared_up.set(1);
    }

    pub(super) fn lost_store(&self, error: &StoreError) {
        let reason = match error {
            StoreError::Unreachable(_) => Loss::Unreachable,
            StoreError::Silent => Loss::Silent,
            StoreError::Refused(_) => Loss::Refused,
            StoreError::Loading | StoreError::Contended => Loss::Reread,
            StoreError::Damaged(_) => Loss::Damaged,
        };
        self.shared_up.set(0);
        self.shared_losses.get_or_create(&LossLabels { reason }).inc();
    }

    pub(super) fn set(&self, counts: &Counts) {
        let of = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in [
            (State::Initializing, counts.initializing),
            (State::Ready, counts.ready),
            (State::Draining, counts.draining),
            (State::Stale, counts.stale),
            (State::Lapsed, counts.lapsed),
        ] {
            self.nodes.get_or_create(&StateLabels { state }).set(of(count));
        }
        self.artifacts.set(of(counts.artifacts));
        self.identities.set(of(counts.identities));
        self.holdings.set(of(counts.holdings));
    }

    pub(super) fn reject(&self, reason: Reject) {
        self.rejects.get_or_create(&RejectLabels { reason }).inc();
    }
}
