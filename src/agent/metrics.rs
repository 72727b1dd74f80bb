//! Everything that an agent counts, put together in one place.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::fetching::FetchingMetrics;
use super::gpus::Gpus;
use super::starts::StartMetrics;
use super::uploads::UploadMetrics;
use crate::discovery::Mode;
use crate::identity::CertificateMetrics;
use crate::telemetry::audit::Action;
use crate::telemetry::{Registry, labels};
use crate::{discovery, metadata, origin, store, transfer, web};

labels! {
    pub(super) struct ActionLabel {
        pub(super) action: Action,
    }
}

labels! {
    struct ModeLabel {
        mode: Mode,
    }
}

/// Of one agent. Also what is counted where a part is not configured: its metrics stay at zero.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) audit: Family<ActionLabel, Counter>,
    pub(super) certificate: CertificateMetrics,
    pub(super) store: store::Metrics,
    pub(super) transfer: transfer::Metrics,
    pub(super) client: metadata::ClientMetrics,
    pub(super) discovery: discovery::Metrics,
    pub(super) fetching: FetchingMetrics,
    pub(super) origin: origin::Metrics,
    pub(super) uploads: UploadMetrics,
    pub(super) starts: StartMetrics,
    pub(super) gpus: Gpus,
    pub(super) page: web::Metrics,
    mode: Family<ModeLabel, Gauge>,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            audit: r.add(
                "warmd_audit_events_total",
                "What agent and pods of this node fetched, installed, refused and took away, as in its audit log",
            ),
            certificate: CertificateMetrics::register(r),
            store: store::Metrics::register(r),
            transfer: transfer::Metrics::register(r),
            client: metadata::ClientMetrics::register(r),
            discovery: discovery::Metrics::register(r),
            fetching: FetchingMetrics::register(r),
            origin: origin::Metrics::register(r),
            uploads: UploadMetrics::register(r),
            starts: StartMetrics::register(r),
            gpus: Gpus::register(r),
            page: web::Metrics::register(r),
            mode: r.add("warmd_discovery_mode", "1 for whom this agent asks for holders (discovery.mode)"),
        }
    }

    pub(super) fn asks(&self, mode: Mode) {
        self.mode.get_or_create(&ModeLabel { mode }).set(1);
    }
}
