//! What is counted. Labels come from closed sets; names of workers and models appear nowhere.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::table::Counts;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Method {
    PublishMetadata,
    ListSources,
    GetMetadata,
    UpdateStatus,
}

/// How a request ended, also where the reply is OK by the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Ok,
    /// The message broke a rule.
    Invalid,
    /// There is no such worker.
    Unknown,
    Full,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: Method,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum State {
    Initializing,
    Ready,
    Stale,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: State,
}

#[derive(Debug, Clone)]
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    workers: Family<StateLabels, Gauge>,
    bytes: Gauge,
    pub(super) connections: Gauge,
    pub(super) rejects: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            workers: Family::default(),
            bytes: Gauge::default(),
            connections: Gauge::default(),
            rejects: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("warmd_model_express");
        r.register("requests", "Requests by method and outcome", metrics.requests.clone());
        r.register("workers", "Workers by state", metrics.workers.clone());
        r.register("bytes", "Bytes of all that workers say of themselves", metrics.bytes.clone());
        r.register("connections", "Open connections", metrics.connections.clone());
        r.register("connection_rejects", "Connections refused because there were too many", metrics.rejects.clone());
        metrics
    }

    pub(super) fn request(&self, method: Method, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { method, outcome }).inc();
    }

    pub(super) fn set(&self, counts: Counts) {
        let of = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in
            [(State::Initializing, counts.initializing), (State::Ready, counts.ready), (State::Stale, counts.stale)]
        {
            self.workers.get_or_create(&StateLabels { state }).set(of(count));
        }
        self.bytes.set(of(counts.bytes));
    }
}
