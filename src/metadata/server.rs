//! Listens, admits nodes by their certificates, and hands their connections to gRPC.
//!
//! Order of an end: watches end and no connection is accepted any more, requests in flight are answered, what is left at the
//! deadline is cut, the store gets the last changes.

mod connection;
mod gate;
mod pace;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use super::backend::shared::{Drifted, Follower, JoinError, RedisConfig, Shared, StoreError, StoreUrl, follow};
use super::backend::{self, Backend, BackendError, Marked};
use super::fleet::{About, Fleet};
use super::metrics::{self, Metrics};
use super::registry::{self, Registry};
use super::room::Room;
use super::service::{Directory, Door, Service};
use super::trust::{self, TrustStore};
use super::watch::{Caps, Watchers};
use crate::identity::trust::TrustError;
use crate::identity::{Envelope, NodeTls, RPC_ALPN, TlsError, watch_certificate};
use crate::lifecycle::{Shares, Tasks};
use crate::protocol::metadata::{MAX_MESSAGE, ServerEpoch, pb};
use crate::telemetry;
use crate::telemetry::trace;
pub(super) use connection::{Connection, Peer};
use gate::Gate;
use pace::Paced;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Certificates are only looked at when a connection begins.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(3600);
const MAX_STREAMS: u32 = 64;
/// Connections of one node: of its agent, of an agent that ended a moment ago, and of commands with its key.
pub(super) const MAX_OF_NODE: usize = 32;
const MAX_HEADERS: u32 = 16 * 1024;
/// How often leases are expired, gauges set and changes written.
const TICK: Duration = Duration::from_secs(1);
const MAX_BATCHES: usize = 2_000;
const FIRST_READ: Duration = Duration::from_secs(10);

/// Where a server keeps what it knows.
#[derive(Debug, Clone)]
pub enum Store {
    Memory,
    /// In memory, and as hints in a file of this directory, for the next start.
    File(PathBuf),
    /// With other servers. What else is in the configuration must be the same for all of them.
    Shared(StoreUrl, RedisConfig),
}

/// What a metadata server needs.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    pub store: Store,
    /// Signed root document; absent, the server keeps no documents of trust.
    pub trust: Option<Envelope>,
    pub registry: registry::Config,
    pub max_connections: usize,
    /// Requests worked at together; more are told to come again. A quarter is reserved for announcements.
    pub max_requests: usize,
    pub max_watches: usize,
    pub max_watches_per_caller: usize,
    /// Events that a watcher may be behind before it loses some.
    pub watch_backlog: usize,
}

impl Config {
    /// Memory only, with the usual limits.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            store: Store::Memory,
            trust: None,
            registry: registry::Config::default(),
            max_connections: 20_000,
            max_requests: 1_024,
            max_watches: 20_000,
            max_watches_per_caller: 16,
            watch_backlog: 256,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("listen on {addr}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] BackendError),
    #[error(transparent)]
    Shared(#[from] StoreError),
    #[error(transparent)]
    Drifted(#[from] Drifted),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

impl From<JoinError> for ServerError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Store(error) => error.into(),
            JoinError::Drifted(error) => error.into(),
        }
    }
}

/// A running metadata server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    directory: Arc<Directory>,
    /// Cancelled, it accepts no more and lets connections finish what they are at.
    serving: Tasks,
    /// Cancelled, it cuts connections.
    connections: Tasks,
    upkeep: Tasks,
}

impl Server {
    /// Returns once it is listening. The store is read before.
    pub async fn bind(config: Config, tls: &NodeTls, metrics: &mut telemetry::Registry) -> Result<Self, ServerError> {
        let acceptor = TlsAcceptor::from(Arc::new(tls.server_config(RPC_ALPN)?));
        let epoch = new_server_epoch()?;
        let (data, follower) = match &config.store {
            Store::Memory => (None, None),
            Store::File(directory) => (Some(directory.as_path()), None),
            Store::Shared(url, redis) => {
                let cluster = tls.cluster().map(|authority| authority.to_string());
                let join = Follower::join(url, redis, &config.registry, cluster.as_deref(), epoch);
                (None, Some(join.await?))
            }
        };
        let (backend, remembered) = Backend::open(data)?;
        let trust = TrustStore::open(config.trust.as_ref(), trust::directory(&config.store).as_deref())?;
        let listen = |source| ServerError::Listen { addr: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;

        let metrics = Metrics::register(metrics);
        metrics.keeps(match &config.store {
            Store::Memory => metrics::Store::Memory,
            Store::File(_) => metrics::Store::File,
            Store::Shared(..) => metrics::Store::Shared,
        });
        let mut registry = Registry::new(config.registry.clone(), epoch);
        let caps = Caps {
            per_caller: config.max_watches_per_caller,
            total: config.max_watches,
            backlog: config.watch_backlog.max(1),
        };
        let watchers = Arc::new(Watchers::new(caps, registry.server_epoch(), metrics.watchers.clone()));
        backend::restore(&mut registry, &remembered, Duration::ZERO);
        drop(remembered);
        let marked = Marked::of(&backend);
        let shared = follower.as_ref().map(|_| Shared::new());
        let room = Room::new(config.max_requests);
        let about = About::of(&config.store, tls);
        let directory = Directory::new(about, registry, marked, shared.clone(), trust, watchers, room, metrics);
        let directory = Arc::new(directory);

        let server = Self {
            addr,
            directory: directory.clone(),
            serving: Tasks::new(),
            connections: Tasks::new(),
            upkeep: Tasks::new(),
        };
        let (ready, incoming) = mpsc::channel(64);
        let gate = Gate {
            acceptor,
            slots: Arc::new(Semaphore::new(config.max_connections)),
            of_nodes: Shares::new(MAX_OF_NODE),
            ready,
            cut: server.connections.token().clone(),
            metrics: directory.metrics.clone(),
        };
        let drain = server.serving.token();
        let accepting = gate::accept(listener, gate, server.connections.child(), drain.clone());
        server.serving.spawn_finishing("metadata accept", accepting);
        server.serving.spawn_finishing("metadata rpc", serve(directory.clone(), incoming, drain.clone()));
        server
            .upkeep
            .spawn("certificate", watch_certificate(tls.membership(), server.directory.metrics.certificate.clone()));
        let token = server.upkeep.token().clone();
        match shared.zip(follower) {
            Some((shared, follower)) => {
                let following = follow(directory, shared.clone(), follower, token);
                server.upkeep.spawn_finishing("metadata store", following);
                // Not for ever: requests are refused with the reason until the store was read.
                shared.ready(FIRST_READ).await;
            }
            None => server.upkeep.spawn_finishing("metadata upkeep", upkeep(directory, Arc::new(backend), token)),
        }
        tracing::info!(%addr, "metadata server listens");
        Ok(server)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it knows, for people.
    pub fn fleet(&self) -> Fleet {
        Fleet(self.directory.clone())
    }

    #[cfg(test)]
    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    #[cfg(test)]
    pub(super) fn rejected_handshakes(&self) -> u64 {
        use super::metrics::RejectLabels;
        self.directory.metrics.rejects.get_or_create(&RejectLabels { reason: metrics::Reject::Handshake }).get()
    }

    /// True if everything ended in good order before the deadline.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let left = || end.saturating_duration_since(Instant::now());
        self.directory.watchers.close();
        // Requests take milliseconds; the other half is for cutting and for the store.
        let drained = self.serving.shutdown(deadline / 2).await;
        self.connections.token().cancel();
        let cut = self.serving.shutdown(left() / 2).await;
        self.upkeep.shutdown(left()).await && drained && cut
    }
}

/// Never 0, and never one that was used before.
fn new_server_epoch() -> Result<ServerEpoch, ServerError> {
    Ok(ServerEpoch(getrandom::u64().map_err(ServerError::Random)?.max(1)))
}

async fn serve(directory: Arc<Directory>, incoming: mpsc::Receiver<io::Result<Connection>>, drain: CancellationToken) {
    let served = tonic::transport::Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .load_shed(true)
        .concurrency_limit_per_connection(MAX_STREAMS as usize)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE / 2))
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .max_connection_age(MAX_CONNECTION_AGE)
        .max_connection_age_grace(REQUEST_TIMEOUT)
        .trace_fn(trace::of_call)
        .add_service(guarded(directory))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), drain.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "metadata rpc ended");
    }
}

type Handlers = pb::metadata_server::MetadataServer<Service>;

/// The handlers, none of which a stranger reaches.
fn guarded(directory: Arc<Directory>) -> Paced<InterceptedService<Handlers, Door>> {
    let handlers = Handlers::new(Service(directory.clone())).max_decoding_message_size(MAX_MESSAGE);
    Paced(InterceptedService::new(handlers, Door(directory)))
}

/// Expires leases, sets gauges, writes changes; the last time when the server ends.
async fn upkeep(directory: Arc<Directory>, backend: Arc<Backend>, token: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ending = token.run_until_cancelled(tick.tick()).await.is_none();
        let counts = directory.expire();
        directory.metrics.set(&counts);
        write_changes(&directory, &backend).await;
        if ending {
            return;
        }
    }
}

async fn write_changes(directory: &Directory, backend: &Arc<Backend>) {
    // What comes faster than it can be written waits for the next tick.
    for _ in 0..MAX_BATCHES {
        let batch = directory.read(|registry, _| directory.marked().take(registry));
        if batch.is_empty() {
            return;
        }
        let begin = Instant::now();
        let backend = backend.clone();
        let write = move || {
            let result = backend.write(&batch);
            (result, batch)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok((Ok(()), _)) => {}
            Ok((Err(error), batch)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "write hints: will try again");
                directory.metrics.store_errors.inc();
                directory.marked().mark_again(batch);
                return;
            }
            Err(error) => {
                tracing::error!(%error, "write hints");
                directory.metrics.store_errors.inc();
                return;
            }
        }
        directory.metrics.store_seconds.inc_by(begin.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What stands behind the TLS gate.
    pub(in crate::metadata) fn bare_service() -> Paced<InterceptedService<Handlers, Door>> {
        guarded(bare_directory())
    }

    pub(in crate::metadata) fn bare_directory() -> Arc<Directory> {
        let registry = Registry::new(registry::Config::default(), ServerEpoch(1));
        let metrics = Metrics::register(&mut telemetry::Registry::default());
        let caps = Caps { per_caller: 1, total: 1, backlog: 1 };
        let watchers = Arc::new(Watchers::new(caps, ServerEpoch(1), metrics.watchers.clone()));
        let trust = TrustStore::default();
        let about = About {
            name: String::new(),
            cluster: None,
            backend: crate::protocol::fleet::Backend::Memory,
            started_at: Default::default(),
        };
        let marked = Marked::of(&Backend::Memory);
        Arc::new(Directory::new(about, registry, marked, None, trust, watchers, Room::new(1), metrics))
    }
}
