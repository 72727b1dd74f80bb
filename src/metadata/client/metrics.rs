//! What a client counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Call {
    Announce,
    Withdraw,
    Lookup,
    Watch,
    List,
    Trust,
    PutTrust,
    Report,
    Fleet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum CallResult {
    Ok,
    Overloaded,
    Unavailable,
    Refused,
    Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: Call,
    result: CallResult,
}

/// What a client counts.
#[derive(Debug, Clone, Default)]
pub struct ClientMetrics {
    calls: Family<CallLabels, Counter>,
    pub(in crate::metadata) connected: Gauge,
}

impl ClientMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("warmd_metadata_client");
        r.register("calls", "Calls to a metadata server by method and result", metrics.calls.clone());
        r.register("connected", "1 while a metadata server takes our announcements.", metrics.connected.clone());
        metrics
    }

    pub(super) fn called(&self, method: Call, result: CallResult) {
        self.calls.get_or_create(&CallLabels { method, result }).inc();
    }
}
