//! What the origin costs.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::telemetry::{Registry, label, labels};

label! {
    pub(super) enum Operation {
        Read,
        Write,
        /// Whether there is one object.
        Look,
        List,
    }
}

label! {
    pub(super) enum Outcome {
        Ok,
        Missing,
        Failed,
        Late,
    }
}

labels! {
    struct RequestLabels {
        operation: Operation,
        outcome: Outcome,
    }
}

labels! {
    struct OperationLabel {
        operation: Operation,
    }
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
        Self::register(&mut Registry::default())
    }
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        // From a millisecond to half a minute.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        Self {
            requests: r.add("warmd_origin_requests_total", "Requests to the origin by operation and outcome"),
            bytes: r.add("warmd_origin_object_bytes_total", "Objects read and written"),
            seconds: r.insert(
                "warmd_origin_request_seconds",
                "Time of a request to the origin",
                Family::new_with_constructor(seconds as fn() -> Histogram),
            ),
            bad_objects: r.add("warmd_origin_bad_objects_total", "Objects that are not what their names say"),
        }
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
