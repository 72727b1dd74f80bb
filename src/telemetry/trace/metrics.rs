//! What was exported, and what was not.

use std::sync::LazyLock;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Kind {
    Span,
    Log,
}

/// Why something was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Reason {
    /// More waits than `tracing.queue` allows.
    Full,
    /// The collector did not take it.
    Collector,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exported {
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    kind: Kind,
    reason: Reason,
}

/// `warmd_tracing_*`.
#[derive(Debug, Clone, Default)]
pub struct TraceMetrics {
    exported: Family<Exported, Counter>,
    dropped: Family<Dropped, Counter>,
}

/// One for the process, like the subscriber.
static METRICS: LazyLock<TraceMetrics> = LazyLock::new(TraceMetrics::default);

impl TraceMetrics {
    /// Shows what this process has exported.
    pub fn register(registry: &mut Registry) {
        let metrics = Self::of_process();
        let help = "Spans and log lines that the OpenTelemetry collector has taken";
        registry.register("warmd_tracing_exported", help, metrics.exported.clone());
        let help = "Spans and log lines that were dropped: the queue was full, or the collector did not take them";
        registry.register("warmd_tracing_dropped", help, metrics.dropped.clone());
        for kind in [Kind::Span, Kind::Log] {
            metrics.exported(kind, 0);
            for reason in [Reason::Full, Reason::Collector] {
                metrics.dropped(kind, reason, 0);
            }
        }
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
