//! What discovery counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::{Registry, label, labels};

label! {
    /// How a look-up among the other agents ended.
    pub(super) enum Outcome {
        Found,
        Nothing,
        Refused,
    }
}

labels! {
    pub(super) struct Labels {
        pub(super) outcome: Outcome,
    }
}

/// Metrics of discovery.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) connected: Gauge,
    pub(super) known: Gauge,
    pub(super) records: Gauge,
    pub(super) announced: Gauge,
    pub(super) turned_away: Counter,
    pub(super) lookups: Family<Labels, Counter>,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            connected: r.add("warmd_discovery_connected_nodes", "Other agents that are connected"),
            known: r.add("warmd_discovery_known_nodes", "Other agents in the routing table"),
            records: r.add("warmd_discovery_records", "Records kept for other agents"),
            announced: r.add("warmd_discovery_announced_identities", "Source identities announced to other agents"),
            turned_away: r.add(
                "warmd_discovery_turned_away_total",
                "Connections of other agents that did not get as far as admission",
            ),
            lookups: r.add("warmd_discovery_lookups_total", "Look-ups among other agents by outcome"),
        }
    }
}
