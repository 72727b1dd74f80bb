//! What was exported, and what was not.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::telemetry::{Registry, label, labels};

label! {
    /// What is exported.
    pub(super) enum Kind {
        Span,
        Log,
    }
}

label! {
    /// Why something was not.
    pub(super) enum Reason {
        /// More waits than `tracing.queue` allows.
        Full,
        /// The collector did not take it.
        Collector,
    }
}

labels! {
    struct Exported {
        kind: Kind,
    }
}

labels! {
    struct Dropped {
        kind: Kind,
        reason: Reason,
    }
}

/// `warmd_tracing_*`.
#[derive(Debug, Clone, Default)]
pub(crate) struct TraceMetrics {
    exported: Family<Exported, Counter>,
    dropped: Family<Dropped, Counter>,
}

/// One for the process, like the subscriber.
static METRICS: LazyLock<TraceMetrics> = LazyLock::new(TraceMetrics::default);

impl TraceMetrics {
    /// Shows what this process has exported.
    pub(crate) fn register(registry: &mut Registry) {
        let metrics = Self::of_process();
        let help = "Spans and log lines that the OpenTelemetry collector has taken";
        registry.insert("warmd_tracing_exported_total", help, metrics.exported.clone());
        let help = "Spans and log lines that were dropped: the queue was full, or the collector did not take them";
        registry.insert("warmd_tracing_dropped_total", help, metrics.dropped.clone());
    }

    pub(super) fn of_process() -> &'static Self {
        &METRICS
    }

    pub(super) fn exported(&self, kind: Kind, number: u64) {
        self.exported.get_or_create(&Exported { kind }).inc_by(number);
    }

    pub(super) fn dropped(&self, kind: Kind, reason: Reason, number: u64) {
        self.dropped.get_or_create(&Dropped { kind, reason }).inc_by(number);
    }
}
