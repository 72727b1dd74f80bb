//! Connections to holders, kept while they are of use, and their path statistics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::metrics::{CarrierLabel, Metrics};
use crate::identity::NodeId;
use crate::lifecycle::Tasks;
use crate::transport::{Carried, Connection, Endpoint, PathStats, TransportError};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Connections to more holders than this: those that nobody asks for are let go, and close when their last stream ends.
const MAX_KEPT: usize = 512;

type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// One connection to each holder, shared by all fetches; dialled once however many ask for it at the same time.
pub struct Connections {
    endpoint: Arc<Endpoint>,
    slots: Mutex<HashMap<NodeId, Slot>>,
    most: usize,
    metrics: Metrics,
    tasks: Tasks,
}

impl Connections {
    pub fn new(endpoint: Arc<Endpoint>, metrics: Metrics, tasks: Tasks) -> Self {
        Self { endpoint, slots: Mutex::default(), most: MAX_KEPT, metrics, tasks }
    }

    /// The open connection to `node`, or a new one.
    pub async fn get(&self, node: NodeId, addrs: &[SocketAddr]) -> Result<Connection, TransportError> {
        let slot = self.slot(node);
        let mut guard = slot.lock().await;
        if let Some(connection) = guard.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = self.endpoint.connect(node, addrs).await?;
        tracing::debug!(node = %node.short(), addr = %connection.remote_address(), "connected to holder");
        let kept = Arc::downgrade(&slot);
        watch(&self.tasks, &self.metrics, connection.clone(), move || Weak::strong_count(&kept) > 0);
        *guard = Some(connection.clone());
        Ok(connection)
    }

    fn slot(&self, node: NodeId) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= self.most && !slots.contains_key(&node) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(node).or_default().clone()
    }
}

/// Keeps count of a connection until it closes, or is no longer `kept` by anyone: this handle must not be what keeps it open.
pub(super) fn watch(
    tasks: &Tasks,
    metrics: &Metrics,
    connection: Connection,
    kept: impl Fn() -> bool + Send + 'static,
) {
    let open = OpenConnection::new(metrics, &connection);
    tasks.spawn("connection statistics", async move {
        let (mut path, mut carried) = (PathStats::default(), Carried::default());
        loop {
            let ended = tokio::time::timeout(SAMPLE_EVERY, connection.closed()).await.is_ok();
            if let Some(now) = connection.stats() {
                open.metrics.path.observe(&path, &now);
                path = now;
            }
            let now = connection.carried();
            open.metrics.carried(connection.carrier(), carried, now);
            carried = now;
            if ended || !kept() {
                return;
            }
        }
    });
}

struct OpenConnection {
    metrics: Metrics,
    gauge: Gauge,
}

impl OpenConnection {
    fn new(metrics: &Metrics, connection: &Connection) -> Self {
        let label = CarrierLabel { carrier: connection.carrier().into() };
        let gauge = metrics.connections.get_or_create_owned(&label);
        gauge.inc();
        Self { metrics: metrics.clone(), gauge }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Admission, NodeCertificate, NodeTls, PrivateKey};
    use crate::telemetry::Registry;
    use crate::transport::TransportConfig;

    fn endpoint(seed: u8) -> Arc<Endpoint> {
        let key = PrivateKey::from_seed(seed);
        let certificate = NodeCertificate::self_signed(&key).unwrap();
        let admit = (1..4).map(|seed| PrivateKey::from_seed(seed).node_id()).collect();
        let tls = NodeTls::new(key, certificate, Admission::new(None, Some(admit)).unwrap()).unwrap();
        let config = TransportConfig { listen: "127.0.0.1:0".parse().unwrap(), ..Default::default() };
        Arc::new(Endpoint::bind(&config, &tls).unwrap())
    }

    #[tokio::test]
    async fn beyond_the_limit_a_connection_that_nobody_uses_closes_at_both_ends() {
        let (tasks, mut registry) = (Tasks::new(), Registry::default());
        let mut connections = Connections::new(endpoint(1), Metrics::register(&mut registry), tasks.child());
        connections.most = 1;
        let holders = [endpoint(2), endpoint(3)];
        let mut ends = Vec::new();
        for (holder, seed) in holders.iter().zip(2..) {
            let accept = async { holder.accept().await.unwrap().handshake().await.unwrap() };
            let addrs = [holder.local_addr()];
            let dial = connections.get(PrivateKey::from_seed(seed).node_id(), &addrs);
            let (ours, theirs) = tokio::join!(dial, accept);
            ours.unwrap();
            ends.push(theirs);
        }
        ends[0].closed().await;
        assert!(!ends[1].is_closed());
        tasks.shutdown(Duration::from_secs(5)).await;
    }
}
