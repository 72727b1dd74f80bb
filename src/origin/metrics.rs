//! What the origin costs.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Operation {
    Read,
    Write,
    /// Whether there is one object.
    Look,
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Ok,
    Missing,
    Failed,
    Late,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: Operation,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: Operation,
}

/// Requests of one node.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<OperationLabel, Counter>,
    seconds: Family<OperationLabel, Histogram, fn() -> Histogram>,
    pub(super) bad_objects: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to half a minute.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        Self {
            requests: Family::default(),
            bytes: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            bad_objects: Counter::default(),
        }
    }
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let part = registry.sub_registry_with_prefix("warmd_origin");
        part.register("requests", "Requests to the origin by operation and outcome", metrics.requests.clone());
        part.register_with_unit("object", "Bytes of objects read and written", Unit::Bytes, metrics.bytes.clone());
        part.register_with_unit("request", "Time of a request", Unit::Seconds, metrics.seconds.clone());
        part.register("bad_objects", "Objects that are not what their names say", metrics.bad_objects.clone());
        metrics
    }

    pub(super) fn count(&self, operation: Operation, outcome: Outcome, took: Duration) {
        self.requests.get_or_create(&RequestLabels { operation, outcome }).inc();
        self.seconds.get_or_create(&OperationLabel { operation }).observe(took.as_secs_f64());
    }

    pub(super) fn count_bytes(&self, operation: Operation, bytes: usize) {
        self.bytes.get_or_create(&OperationLabel { operation }).inc_by(bytes as u64);
    }

    #[cfg(test)]
    pub(super) fn requests(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.requests.get_or_create(&RequestLabels { operation, outcome }).get()
    }
}
