//! What discovery counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a look-up among the other agents ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Found,
    Nothing,
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    pub(super) result: Outcome,
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
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("warmd_discovery");
        r.register("connected_nodes", "Other agents that are connected", metrics.connected.clone());
        r.register("known_nodes", "Other agents in the routing table", metrics.known.clone());
        r.register("records", "Records kept for other agents", metrics.records.clone());
        r.register("announced_identities", "Source identities announced to other agents", metrics.announced.clone());
        r.register("turned_away", "Connections that did not get as far as admission", metrics.turned_away.clone());
        r.register("lookups", "Look-ups among other agents by result", metrics.lookups.clone());
        metrics
    }
}
