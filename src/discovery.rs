//! Agents that find each other without a metadata server: the only place that names libp2p.
//!
//! Every agent keeps a table of what it holds. Others ask it ([`Discovery::lookup`]): all of them in a small cluster, and in a
//! larger one those that a Kademlia DHT names. The DHT maps source identities to nodes and holds nothing else. What comes
//! back has the shape of a metadata server's answer and is worth as much: a hint, bounded and checked, never trust.
//!
//! A node's peer id is its node key. A connection begins with noise and an exchange of the certificates that TLS has (see
//! [`crate::identity::Membership`]); who is not admitted to the cluster gets no stream, so he reads and writes nothing.

mod admit;
mod bootstrap;
mod config;
mod driver;
mod exchange;
mod found;
mod key;
mod memory;
mod metrics;
mod network;
mod peer;
mod providers;
mod publish;
mod search;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::config::{BootstrapAddr, DiscoveryConfig, InvalidBootstrapAddr, Mode};
use self::driver::{Command, Driver};
pub use self::metrics::Metrics;
use self::providers::Limits;
use self::table::Table;
use crate::digest::ArtifactId;
use crate::identity::NodeTls;
use crate::lifecycle::Tasks;
use crate::protocol::metadata::{Endpoint, Held, Load, Locality, Lookup, NodeState, Offer};

/// Commands that wait for the task.
const QUEUE: usize = 64;

/// Longer than the deadline of a look-up, for the case that the task hangs.
const SLACK: Duration = Duration::from_secs(1);

/// Discovery could not start, or took no look-up.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error(
        "listen for other agents on tcp {addr}: choose another address in `discovery.listen`, or `discovery.mode = \"server\"`"
    )]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error("the node key cannot be a libp2p identity")]
    Key,
    #[error("send multicast for `discovery.mdns`")]
    Mdns(#[source] std::io::Error),
    #[error("too many look-ups among other agents at once, or this one is ending")]
    Busy,
}

/// Where the discovery of a node is whose peer endpoint is at `peer`, on all nodes alike: two ports further (4782 beside
/// 4780, with the metadata server's 4781 in between), so that whoever knows the one knows the other.
pub fn beside(peer: SocketAddr) -> SocketAddr {
    let port = peer.port();
    SocketAddr::new(peer.ip(), port.checked_add(PORTS_FURTHER).unwrap_or(port - PORTS_FURTHER))
}

const PORTS_FURTHER: u16 = 2;

/// The node, as far as discovery has to know it.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// TCP address to listen on.
    pub listen: SocketAddr,
    /// Of its peer endpoint, as others are told. They reach its discovery [`beside`] them.
    pub endpoints: Arc<[Endpoint]>,
    pub locality: Arc<Locality>,
    /// Where to keep, for the next start, at which addresses others were found.
    pub memory: Option<PathBuf>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// What is announced has changed.
    changed: Notify,
    /// The version of the table of which every key was published.
    published: watch::Sender<u64>,
    connected: watch::Sender<usize>,
    /// Addresses of others, the newest first.
    met: watch::Sender<Vec<SocketAddr>>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Table) -> bool) {
        if change(&mut self.table()) {
            self.changed.notify_one();
        }
    }
}

/// A node among the others. It answers and announces nothing before it is READY.
#[derive(Debug)]
pub struct Discovery {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    addr: SocketAddr,
    deadline: Duration,
    tasks: Tasks,
}

impl Discovery {
    /// Listens and begins to look for others. All tasks end with `tasks`.
    pub async fn start(
        config: &DiscoveryConfig,
        node: LocalNode,
        tls: &NodeTls,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> Result<Self, DiscoveryError> {
        Self::start_within(config, node, tls, metrics, tasks, Limits::default()).await
    }

    async fn start_within(
        config: &DiscoveryConfig,
        node: LocalNode,
        tls: &NodeTls,
        metrics: Metrics,
        tasks: &Tasks,
        limits: Limits,
    ) -> Result<Self, DiscoveryError> {
        let tasks = tasks.child();
        let advertise: Vec<SocketAddr> = node.endpoints.iter().map(|endpoint| beside(endpoint.addr())).collect();
        let connections = Arc::new(tasks.child());
        let (swarm, addr) = network::open(tls, node.listen, &advertise, config.mdns, limits, connections).await?;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(node.endpoints, node.locality)),
            changed: Notify::new(),
            published: watch::Sender::default(),
            connected: watch::Sender::default(),
            met: watch::Sender::new(node.memory.as_deref().map(memory::read).unwrap_or_default()),
        });
        let (commands, queue) = mpsc::channel(QUEUE);
        let driver = Driver::new(swarm, shared.clone(), tls.node_id(), config, metrics);
        tasks.spawn("discovery", driver.run(queue));
        let (connected, met) = (shared.connected.subscribe(), shared.met.subscribe());
        tasks.spawn("bootstrap", bootstrap::run(config.bootstrap.clone(), commands.clone(), connected, met));
        if let Some(path) = node.memory {
            tasks.spawn("remember other agents", memory::run(path, shared.met.subscribe()));
        }
        Ok(Self { shared, commands, addr, deadline: config.deadline, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Other agents that are connected.
    pub fn connected(&self) -> usize {
        *self.shared.connected.borrow()
    }

    /// Waits until so many other agents are connected; false at the deadline.
    pub async fn met(&self, nodes: usize, deadline: Duration) -> bool {
        let mut connected = self.shared.connected.subscribe();
        let met = tokio::time::timeout(deadline, connected.wait_for(|connected| *connected >= nodes)).await;
        matches!(met, Ok(Ok(_)))
    }

    /// Waits until the DHT has taken all that was held when this was called; false at the deadline.
    pub async fn published(&self, deadline: Duration) -> bool {
        let version = self.shared.table().version();
        let mut published = self.shared.published.subscribe();
        let done = tokio::time::timeout(deadline, published.wait_for(|published| *published >= version)).await;
        matches!(done, Ok(Ok(_)))
    }

    /// The node holds this artifact, or more or less of it than before.
    pub fn hold(&self, held: Held) {
        self.shared.change(|table| table.hold(held));
    }

    /// The node no longer holds this artifact. Others may be sent here for a few minutes still.
    pub fn drop_artifact(&self, artifact: &ArtifactId) {
        self.shared.change(|table| table.drop_artifact(artifact));
    }

    /// Ignored if the node cannot become so.
    pub fn set_state(&self, state: NodeState) {
        self.shared.change(|table| table.set_state(state));
    }

    pub fn set_load(&self, load: Load) {
        self.shared.table().set_load(load);
    }

    /// Nodes that somebody else has told of: dialled, and asked from now on if they are of this cluster. TCP addresses.
    pub fn meet(&self, addrs: Vec<SocketAddr>) {
        // A full queue is a busy task, which has met enough.
        let _ = self.commands.try_send(Command::Meet(addrs));
    }

    /// What other agents hold of some identities, in no order. Takes at most the configured deadline.
    pub async fn lookup(&self, lookup: &Lookup) -> Result<Vec<Offer>, DiscoveryError> {
        let (reply, offers) = oneshot::channel();
        self.commands.try_send(Command::Look(lookup.clone(), reply)).map_err(|_| DiscoveryError::Busy)?;
        let offers = tokio::time::timeout(self.deadline + SLACK, offers).await;
        offers.ok().and_then(Result::ok).ok_or(DiscoveryError::Busy)
    }

    /// Ends all connections.
    pub async fn close(&self, deadline: Duration) -> bool {
        self.tasks.shutdown(deadline).await
    }
}

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
