//! What the server counts. Labels come from closed sets; node ids appear in logs only.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::backend::shared::StoreError;
use super::registry::Counts;
use crate::identity::CertificateMetrics;
use crate::telemetry::{Registry, label, labels};

label! {
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
}

label! {
    /// How a request ended.
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
}

labels! {
    pub(super) struct RequestLabels {
        pub(super) method: Method,
        pub(super) outcome: Outcome,
    }
}

labels! {
    pub(super) struct MethodLabels {
        pub(super) method: Method,
    }
}

label! {
    enum State {
        Initializing,
        Ready,
        Draining,
        Stale,
        Lapsed,
    }
}

labels! {
    struct StateLabels {
        state: State,
    }
}

label! {
    pub(super) enum Reject {
        /// Too many connections.
        Full,
        /// No admitted certificate, not TLS, or not in time.
        Handshake,
    }
}

labels! {
    pub(super) struct RejectLabels {
        pub(super) reason: Reject,
    }
}

label! {
    enum Loss {
        Unreachable,
        Silent,
        Refused,
        /// The store has begun anew, or its log was ahead of us.
        Reread,
        Damaged,
    }
}

labels! {
    struct LossLabels {
        reason: Loss,
    }
}

label! {
    /// Where a server keeps what it knows.
    pub(super) enum Store {
        Memory,
        File,
        Shared,
    }
}

labels! {
    pub(super) struct StoreLabels {
        pub(super) kind: Store,
    }
}

/// Of one server.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) certificate: CertificateMetrics,
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
    pub(super) seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    store: Family<StoreLabels, Gauge>,
    pub(super) store_errors: Counter,
    pub(super) store_seconds: Counter<f64, AtomicU64>,
    shared_up: Gauge,
    shared_losses: Family<LossLabels, Counter>,
    pub(super) leads: Gauge,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        // 50 us to 3.3 s.
        let seconds = || Histogram::new(exponential_buckets(0.000_05, 4.0, 9));
        Self {
            certificate: CertificateMetrics::register(r),
            nodes: r.add("warmd_metadata_nodes", "Nodes by state; 0 on a server that does not lead"),
            artifacts: r.add("warmd_metadata_artifacts", "Distinct artifacts; 0 on a server that does not lead"),
            identities: r.add(
                "warmd_metadata_identities",
                "Source identities with an artifact; 0 on a server that does not lead",
            ),
            holdings: r.add(
                "warmd_metadata_holdings",
                "Pairs of an artifact and a node that has all or some of it; 0 on a server that does not lead",
            ),
            watchers: r.add("warmd_metadata_watchers", "Open watches"),
            connections: r.add("warmd_metadata_connections", "Open connections"),
            rejects: r.add("warmd_metadata_connection_rejects_total", "Connections refused"),
            lapses: r.add("warmd_metadata_lease_expiries_total", "Leases of nodes that ran out"),
            turned_away: r
                .add("warmd_metadata_turned_away_total", "Requests for which there was no room: to come again later"),
            requests: r.add("warmd_metadata_requests_total", "Requests by method and outcome"),
            seconds: r.insert(
                "warmd_metadata_request_seconds",
                "Time to answer a request",
                Family::new_with_constructor(seconds as fn() -> Histogram),
            ),
            store: r.add("warmd_metadata_store", "1 for where this server keeps what it knows"),
            store_errors: r.add("warmd_metadata_store_errors_total", "Failed writes of hints to disk"),
            store_seconds: r.add("warmd_metadata_store_seconds_total", "Time spent writing hints to disk"),
            shared_up: r.add("warmd_metadata_shared_store_up", "1 while this server follows a shared store"),
            shared_losses: r
                .add("warmd_metadata_shared_store_losses_total", "Times that it lost the shared store, by reason"),
            leads: r.add(
                "warmd_metadata_leads",
                "1 on the server that counts for all that share a store; of one alone, always",
            ),
        }
    }

    pub(super) fn keeps(&self, kind: Store) {
        self.store.get_or_create(&StoreLabels { kind }).set(1);
        self.leads.set((kind != Store::Shared).into());
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
