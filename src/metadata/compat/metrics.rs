//! What is counted. Labels come from closed sets; names of workers and models appear nowhere.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::table::Counts;
use crate::telemetry::{Registry, label, labels};

label! {
    pub(super) enum Method {
        PublishMetadata,
        ListSources,
        GetMetadata,
        UpdateStatus,
    }
}

label! {
    /// How a request ended, also where the reply is OK by the letter.
    pub(super) enum Outcome {
        Ok,
        /// The message broke a rule.
        Invalid,
        /// There is no such worker.
        Unknown,
        Full,
    }
}

labels! {
    struct RequestLabels {
        method: Method,
        outcome: Outcome,
    }
}

label! {
    enum State {
        Initializing,
        Ready,
        Stale,
    }
}

labels! {
    struct StateLabels {
        state: State,
    }
}

/// Of the service for clients of ModelExpress.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    workers: Family<StateLabels, Gauge>,
    bytes: Gauge,
    pub(super) connections: Gauge,
    pub(super) rejects: Counter,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            requests: r.add("warmd_model_express_requests_total", "Requests by method and outcome"),
            workers: r.add("warmd_model_express_workers", "Workers by state"),
            bytes: r.add("warmd_model_express_bytes", "Memory for what workers say of themselves"),
            connections: r.add("warmd_model_express_connections", "Open connections"),
            rejects: r
                .add("warmd_model_express_connection_rejects_total", "Connections refused because there were too many"),
        }
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
