//! What a client counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::identity::UnixTime;
use crate::telemetry::{Registry, label, labels};

label! {
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
}

label! {
    pub(super) enum CallResult {
        Ok,
        Overloaded,
        Unavailable,
        Refused,
        Protocol,
    }
}

labels! {
    struct CallLabels {
        method: Call,
        outcome: CallResult,
    }
}

/// What a client counts.
#[derive(Debug, Clone, Default)]
pub struct ClientMetrics {
    calls: Family<CallLabels, Counter>,
    connected: Gauge,
    answered: Gauge,
}

impl ClientMetrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            calls: r.add("warmd_metadata_client_calls_total", "Calls to metadata servers by method and outcome"),
            connected: r.add(
                "warmd_metadata_client_connected",
                "1 while a metadata server takes what this node announces, and so keeps its lease",
            ),
            answered: r.add(
                "warmd_metadata_client_last_answer_timestamp_seconds",
                "When a metadata server took an announcement last, in Unix time; 0: never",
            ),
        }
    }

    /// A server took what was said, or did not.
    pub(in crate::metadata) fn announced(&self, taken: bool) {
        self.connected.set(taken.into());
        if taken {
            self.answered.set(i64::try_from(UnixTime::now().seconds()).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn called(&self, method: Call, outcome: CallResult) {
        self.calls.get_or_create(&CallLabels { method, outcome }).inc();
    }
}
