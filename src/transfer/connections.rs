//! Connections to holders, kept while they are of use, and their path statistics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::metrics::{CarrierLabel, Metrics};
use crate::identity::NodeId;
use crate::lifecycle::Tasks;
use crate::transport::{Carried, Connection, Endpoint, PathStats, TransportError};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// More open connections to holders than this: the idle ones are closed first.
const MAX_KEPT: usize = 512;

type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// One connection to each holder, shared by all fetches; dialled once however many ask for it at the same time.
pub struct Connections {
    endpoint: Arc<Endpoint>,
    slots: Mutex<HashMap<NodeId, Slot>>,
    metrics: Metrics,
    tasks: Tasks,
}

impl Connections {
    pub fn new(endpoint: Arc<Endpoint>, metrics: Metrics, tasks: Tasks) -> Self {
        Self { endpoint, slots: Mutex::default(), metrics, tasks }
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
        watch(&self.tasks, &self.metrics, connection.clone());
        *guard = Some(connection.clone());
        Ok(connection)
    }

    fn slot(&self, node: NodeId) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_KEPT && !slots.contains_key(&node) {
            // Slots that nobody is using now; dropping the last handle closes the connection.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(node).or_default().clone()
    }
}

/// Keeps count of a connection until it closes.
pub(super) fn watch(tasks: &Tasks, metrics: &Metrics, connection: Connection) {
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
            if ended {
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
