//! Connections to holders, kept while they are of use, and their path statistics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use super::metrics::{CarrierLabel, Metrics};
use crate::identity::NodeId;
use crate::lifecycle::Tasks;
use crate::transport::{Carried, Connection, Endpoint, PathStats, TransportError};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Connections to more holders than this: those that nobody asks for are let go, and close when their last stream ends.
const MAX_KEPT: usize = 512;

/// A connection that nobody asks for is let go after this time: a holder has places for so many, and each of a fleet's nodes
/// may have fetched from it once. A new one costs a round trip or two.
const KEPT_FOR: Duration = Duration::from_secs(60);

struct Slot {
    connection: tokio::sync::Mutex<Option<Connection>>,
    asked_at: Mutex<Instant>,
}

impl Slot {
    fn new() -> Self {
        Self { connection: tokio::sync::Mutex::default(), asked_at: Mutex::new(Instant::now()) }
    }

    fn ask(&self) {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// False once the connection was let go, since nobody has asked for it for so long.
    fn keeps(&self, kept_for: Duration) -> bool {
        let asked_at = *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        if asked_at.elapsed() < kept_for {
            return true;
        }
        // Whoever has the lock is about to use it.
        self.connection.try_lock().map(|mut connection| *connection = None).is_err()
    }
}

/// One connection to each holder, shared by all fetches; dialled once however many ask for it at the same time.
pub struct Connections {
    endpoint: Arc<Endpoint>,
    slots: Mutex<HashMap<NodeId, Arc<Slot>>>,
    most: usize,
    kept_for: Duration,
    metrics: Metrics,
    tasks: Tasks,
}

impl Connections {
    pub fn new(endpoint: Arc<Endpoint>, metrics: Metrics, tasks: Tasks) -> Self {
        Self { endpoint, slots: Mutex::default(), most: MAX_KEPT, kept_for: KEPT_FOR, metrics, tasks }
    }

    /// The open connection to `node`, or a new one.
    pub async fn get(&self, node: NodeId, addrs: &[SocketAddr]) -> Result<Connection, TransportError> {
        let slot = self.slot(node);
        let mut guard = slot.connection.lock().await;
        slot.ask();
        if let Some(connection) = guard.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = self.endpoint.connect(node, addrs).await?;
        tracing::debug!(node = %node.short(), addr = %connection.remote_address(), "connected to holder");
        let (kept, kept_for) = (Arc::downgrade(&slot), self.kept_for);
        let keeps = move || kept.upgrade().is_some_and(|slot: Arc<Slot>| slot.keeps(kept_for));
        watch(&self.tasks, &self.metrics, connection.clone(), keeps);
        *guard = Some(connection.clone());
        Ok(connection)
    }

    fn slot(&self, node: NodeId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= self.most && !slots.contains_key(&node) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(node).or_insert_with(|| Arc::new(Slot::new())).clone()
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

    /// Dials the holder; its end.
    async fn dialled(connections: &Connections, holder: &Endpoint, seed: u8) -> Connection {
        let accept = async { holder.accept().await.unwrap().handshake().await.unwrap() };
        let addrs = [holder.local_addr()];
        let dial = connections.get(PrivateKey::from_seed(seed).node_id(), &addrs);
        let (ours, theirs) = tokio::join!(dial, accept);
        ours.unwrap();
        theirs
    }

    #[tokio::test]
    async fn beyond_the_limit_a_connection_that_nobody_uses_closes_at_both_ends() {
        let (tasks, mut registry) = (Tasks::new(), Registry::default());
        let mut connections = Connections::new(endpoint(1), Metrics::register(&mut registry), tasks.child());
        connections.most = 1;
        let holders = [endpoint(2), endpoint(3)];
        let first = dialled(&connections, &holders[0], 2).await;
        let second = dialled(&connections, &holders[1], 3).await;
        first.closed().await;
        assert!(!second.is_closed());
        tasks.shutdown(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_connection_that_nobody_asks_for_any_more_is_let_go_and_dialled_again() {
        let (tasks, mut registry) = (Tasks::new(), Registry::default());
        let mut connections = Connections::new(endpoint(1), Metrics::register(&mut registry), tasks.child());
        connections.kept_for = Duration::ZERO;
        let holder = endpoint(2);
        dialled(&connections, &holder, 2).await.closed().await;
        connections.kept_for = KEPT_FOR;
        let kept = dialled(&connections, &holder, 2).await;
        assert!(connections.slot(PrivateKey::from_seed(2).node_id()).keeps(KEPT_FOR) && !kept.is_closed());
        tasks.shutdown(Duration::from_secs(5)).await;
    }
}
