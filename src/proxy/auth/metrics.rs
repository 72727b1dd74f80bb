//! Counts of who was let in and who was not, for `/metrics`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Caller, Denied, Method};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: Method,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Denied,
}

#[derive(Debug, Clone)]
pub struct Metrics {
    accepted: Family<MethodLabel, Counter>,
    denied: Family<ReasonLabel, Counter>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { accepted: Family::default(), denied: Family::default() };
        registry.register(
            "warmd_proxy_auth_accepted",
            "Requests by how they proved who sent them",
            metrics.accepted.clone(),
        );
        registry.register("warmd_proxy_auth_denied", "Requests by why they were denied", metrics.denied.clone());
        metrics
    }

    pub fn observe(&self, result: &Result<Caller, Denied>) {
        match result {
            Ok(caller) => self.accepted.get_or_create(&MethodLabel { method: caller.method() }).inc(),
            Err(reason) => self.denied.get_or_create(&ReasonLabel { reason: *reason }).inc(),
        };
    }
}
