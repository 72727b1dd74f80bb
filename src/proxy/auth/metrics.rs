//! Counts of who was let in and who was not, for `/metrics`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{Caller, Denied, Method};
use crate::telemetry::{Registry, labels};

labels! {
    struct MethodLabel {
        method: Method,
    }
}

labels! {
    struct ReasonLabel {
        reason: Denied,
    }
}

#[derive(Debug, Clone)]
pub struct Metrics {
    accepted: Family<MethodLabel, Counter>,
    denied: Family<ReasonLabel, Counter>,
}

impl Metrics {
    pub fn register(r: &mut Registry) -> Self {
        Self {
            accepted: r.add("warmd_proxy_auth_accepted_total", "Requests by how they proved who sent them"),
            denied: r.add("warmd_proxy_auth_denied_total", "Requests by why they were denied"),
        }
    }

    pub fn observe(&self, result: &Result<Caller, Denied>) {
        match result {
            Ok(caller) => self.accepted.get_or_create(&MethodLabel { method: caller.method() }).inc(),
            Err(reason) => self.denied.get_or_create(&ReasonLabel { reason: *reason }).inc(),
        };
    }
}
