//! The node daemon: store, peer endpoint, announcements, local API. All wiring is in [`Agent::start`], bottom up; the
//! order of the end is in [`Agent::shutdown`].

mod audit;
mod config;
mod control;
mod convert;
mod directory;
mod epoch;
mod fetching;
mod gpus;
mod holdings;
mod link;
mod metrics;
mod publish;
mod reload;
mod reporting;
mod starts;
mod trust;
mod uploads;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::StreamExt;

use self::audit::Audit;
pub use self::config::{AgentConfig, GpuSection, StoreSection};
use self::control::{Control, Parts, Turns};
use self::directory::Directory;
use self::fetching::{Cold, Fetching};
use self::holdings::Holdings;
pub use self::holdings::TELL_AGAIN;
pub use self::metrics::Metrics;
use self::publish::Publisher;
pub use self::reload::Reloaded;
use self::reload::{Changeable, Effective};
use self::reporting::{Reporter, Sources};
use self::trust::Trust;
use self::uploads::Uploads;
use crate::discovery::DiscoveryError;
use crate::durable::{Lock, LockError};
use crate::identity::trust::TrustError;
use crate::identity::{KeyError, NodeId, PolicyError, PrivateKey, TlsError, watch_certificate};
use crate::lifecycle::Tasks;
use crate::local::{self, SocketError};
use crate::metadata::ClientError;
use crate::origin::{Origin, OriginConfig, OriginError};
use crate::protocol::fleet::{Document, NodeDocument};
use crate::protocol::metadata::NodeState;
use crate::store::{Store, StoreError};
use crate::telemetry::audit::AuditError;
use crate::telemetry::{MetricsServer, Registry};
use crate::transfer::{Connections, Fetcher, PlanConfig, Provider};
use crate::transport::{Endpoint, StreamCode, TransportError};
use crate::web;

/// How long the end waits for a metadata server to take its last word; the lease runs out by itself.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("signer: {0}")]
    Signer(#[source] KeyError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("audit log: {0}")]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Metadata(#[from] ClientError),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("no address to announce: set `advertise` to the addresses under which peers reach this node")]
    NoAddress,
    #[error("`provide.link_share` is above 0 and at most 1, not {0}")]
    LinkShare(f64),
    #[error("`provide.link_share`: the kernel tells the speed of no link: say `provide.max_rate` in bytes a second")]
    LinkSpeed,
    #[error("serve metrics on {addr}")]
    Metrics { addr: SocketAddr, source: std::io::Error },
    #[error(
        "state directory {path} is in use by process {pid}: stop that, or give this one another `state_dir`",
        path = path.display()
    )]
    InUse { path: PathBuf, pid: String },
    #[error("lock the state directory {path}", path = path.display())]
    StateDirectory { path: PathBuf, source: std::io::Error },
    #[error("remember the agent's epoch in {path}", path = path.display())]
    Epoch { path: PathBuf, source: std::io::Error },
    #[error("the thread that opens the store or the origin panicked")]
    Thread,
}

/// A running agent.
pub struct Agent {
    node: NodeId,
    addr: SocketAddr,
    socket: PathBuf,
    metrics: Option<MetricsServer>,
    drain_deadline: Duration,
    provider: Arc<Provider>,
    endpoint: Arc<Endpoint>,
    directory: Arc<Directory>,
    changeable: Changeable,
    reporter: Arc<Reporter>,
    page: web::Metrics,
    local: Tasks,
    serving: Arc<Tasks>,
    working: Arc<Tasks>,
    /// Of the state directory, until all is written.
    _lock: Lock,
}

/// What a node tells of itself. Cheap to clone, and of no use once its agent has ended.
#[derive(Clone)]
pub struct View(Arc<Reporter>);

impl View {
    /// The node and what it holds, as documents of a fleet of one.
    pub async fn documents(&self) -> Vec<Document> {
        self.0.documents().await
    }
}

impl Agent {
    /// Builds the parts from the bottom up; returns once the node is reachable.
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        let mut registry = Registry::of_process();
        let metrics = Metrics::register(&mut registry);
        let tls = config.node.tls(&config.state_dir)?;
        let node = tls.node_id();
        let signer = config.signer.as_deref().map(PrivateKey::load).transpose().map_err(AgentError::Signer)?;
        // Before anything is written there: another agent may be at work.
        let lock = lock(&config.state_dir)?;
        let working = Arc::new(Tasks::new());
        let audit = Audit::open(&config.state_dir, &working, metrics.audit.clone())?;
        let trust = Trust::load(config.trust.clone(), &config.state_dir, audit.clone())?;

        let (store_config, store_metrics) = (config.store_config(), metrics.store.clone());
        let opened = tokio::task::spawn_blocking(move || Store::open(&store_config, store_metrics)).await;
        let store = opened.map_err(|_| AgentError::Thread)??;

        let endpoint = Arc::new(Endpoint::bind(&config.transport, &tls)?);
        if let Some(buffers) = endpoint.buffers() {
            metrics.transfer.path.has_buffers(buffers);
        }
        let serving = Arc::new(Tasks::new());
        let provide = link::capped(config.provide.clone(), link::fastest)?;
        let provider = Provider::new(store.clone(), provide, trust.may_serve(&store), metrics.transfer.clone());
        serving.spawn("accept peers", provider.clone().serve(endpoint.clone(), serving.clone()));
        let connections = Arc::new(Connections::new(endpoint.clone(), metrics.transfer.clone(), working.child()));
        let port = NonZeroU16::new(endpoint.local_addr().port()).filter(|_| config.provide.enabled);
        let (wanted, counted) = (provider.wanted(), metrics.transfer.clone());
        let fetcher = Fetcher::new(connections, store.clone(), PlanConfig::default(), port, wanted, counted);

        let directory = directory::open(&config, &tls, endpoint.local_addr(), &metrics, &working).await?;
        metrics.asks(directory.mode());
        working.spawn("introduction", directory.clone().get_introduced());
        working.spawn("reach", directory.clone().watch_reach(config.discovery.bootstrap.clone()));
        let holdings = Holdings::new(store.clone(), directory.clone(), provider.clone(), trust.clone());
        working.spawn("certificate", watch_certificate(tls.membership(), metrics.certificate.clone()));
        working.spawn("announce holdings", holdings.clone().run());
        working.spawn("reload policy", trust.clone().watch());
        if let Some((client, heard)) = directory.documents_of_trust() {
            working.spawn("fetch policy", trust.clone().follow(client, heard));
        }
        verify_after_reboot(&working, &store);
        metrics.gpus.follow(&config.gpu, &working);

        let origin = open_origin(&config.origin, &metrics).await?;
        if let Some(origin) = &origin {
            let (of_uploads, transfer) = (metrics.uploads.clone(), metrics.transfer.clone());
            let (origin, store) = (origin.clone(), store.clone());
            let uploads = Uploads::new(origin, store, &trust, &config.origin.push, of_uploads, transfer);
            working.spawn("upload to origin", uploads.run());
        }
        let cold =
            origin.clone().map(|origin| Cold::new(origin, config.origin.find_deadline, metrics.transfer.clone()));
        let fetching = Fetching::new(
            fetcher,
            store.clone(),
            directory.clone(),
            cold,
            trust.clone(),
            audit.clone(),
            metrics.fetching.clone(),
            node,
            &config,
            working.clone(),
        );
        let sources = Sources {
            node,
            endpoint: endpoint.clone(),
            store: store.clone(),
            trust: trust.clone(),
            directory: directory.clone(),
            fetching: fetching.clone(),
            provider: provider.clone(),
            own: tls.membership(),
            transfers: metrics.transfer.clone(),
            gpus: metrics.gpus,
        };
        let reporter = Reporter::new(sources, &config);
        working.spawn("report", reporter.clone().run());
        let page = metrics.page;
        let publisher = Publisher::new(store.clone(), signer, trust.clone());
        let mut listener = local::Listener::bind(&config.local).await?;
        let socket = listener.path().to_owned();
        let effective: Effective = Arc::new(RwLock::new(config.clone()));
        let (config_in_force, trusted) = (effective.clone(), trust.clone());
        let callers = vec![listener.callers().clone()];
        let mut changeable = Changeable { tls, trust: trusted, store: store.clone(), callers, config: config_in_force };
        let parts = Arc::new(Parts {
            node,
            addr: endpoint.local_addr(),
            config: effective,
            store,
            trust,
            directory: directory.clone(),
            servers: config.metadata.servers.clone(),
            provider: provider.clone(),
            holdings,
            fetching,
            origin,
            publisher,
            starts: metrics.starts,
            wanted: metrics.fetching,
            transfer: metrics.transfer,
            reporter: reporter.clone(),
            audit,
            turns: Turns::new(),
            tasks: working.clone(),
        });
        let local = Tasks::new();
        changeable.callers.extend(control::chunks::listen(&local, &config.local, parts.clone()).await);
        let service = Control::calls(parts);
        let (incoming, stop) = (listener.incoming().map(Ok::<_, Infallible>), local.token().clone());
        local.spawn_finishing("local API", async move {
            // The listener removes its socket file when the server has ended.
            let _listener = listener;
            let served =
                local::server().add_service(service).serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "local API ended");
            }
        });
        let metrics = match config.metrics.listen {
            Some(addr) => Some(
                MetricsServer::bind(addr, Arc::new(registry))
                    .await
                    .map_err(|source| AgentError::Metrics { addr, source })?,
            ),
            None => None,
        };
        directory.set_state(NodeState::Ready);
        metrics.iter().for_each(|metrics| metrics.set_ready(true));
        let addr = endpoint.local_addr();
        tracing::info!(node = %node, %addr, socket = %socket.display(), "agent ready");
        Ok(Self {
            node,
            addr,
            socket,
            metrics,
            drain_deadline: config.drain_deadline,
            provider,
            endpoint,
            directory,
            changeable,
            reporter,
            page,
            local,
            serving,
            working,
            _lock: lock,
        })
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What this node tells of itself, as it is now.
    pub async fn document(&self) -> NodeDocument {
        self.reporter.document().await
    }

    /// Where the page of this node counts.
    pub fn page_metrics(&self) -> web::Metrics {
        self.page.clone()
    }

    /// The same, for as long as somebody looks.
    pub fn view(&self) -> View {
        View(self.reporter.clone())
    }

    /// TCP address of this agent's discovery, unless it asks a metadata server alone.
    pub fn discovery_addr(&self) -> Option<SocketAddr> {
        self.directory.discovery_addr()
    }

    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::addr)
    }

    /// Ends in order, within the drain deadline: nobody is sent here any more, no request begins, those that run finish,
    /// the lease ends for good, and the connections close.
    pub async fn shutdown(mut self) {
        let deadline = tokio::time::Instant::now() + self.drain_deadline;
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        self.metrics.iter().for_each(|metrics| metrics.set_ready(false));
        self.directory.set_state(NodeState::Draining);
        self.provider.drain();
        if !self.local.shutdown(left() / 2).await {
            tracing::warn!("local callers did not end in time");
        }
        self.provider.idle(left() / 2).await;
        // The last message of this epoch.
        self.directory.close((left() / 2).min(LAST_WORD)).await;
        self.endpoint.close(StreamCode::Draining, left() / 2).await;
        self.serving.shutdown(left()).await;
        self.working.shutdown(left()).await;
        if let Some(metrics) = self.metrics.take() {
            metrics.shutdown(Duration::from_millis(100)).await;
        }
        tracing::info!("agent ended");
    }
}

impl Drop for Agent {
    /// Without a shutdown, nothing is waited for; but no task stays.
    fn drop(&mut self) {
        for tasks in [&self.serving, &self.working] {
            tasks.token().cancel();
        }
    }
}

/// The right to be the one agent of a state directory, which is made if it is not there.
fn lock(state: &Path) -> Result<Lock, AgentError> {
    let failed = |source| AgentError::StateDirectory { path: state.to_owned(), source };
    std::fs::create_dir_all(state).map_err(failed)?;
    Lock::take(&state.join("agent.lock")).map_err(|error| match error {
        LockError::Held { pid } => AgentError::InUse { path: state.to_owned(), pid },
        LockError::Io(source) => failed(source),
    })
}

async fn open_origin(config: &OriginConfig, metrics: &Metrics) -> Result<Option<Origin>, AgentError> {
    let (config, metrics) = (config.clone(), metrics.origin.clone());
    let opened = tokio::task::spawn_blocking(move || Origin::open(&config, metrics)).await;
    Ok(opened.map_err(|_| AgentError::Thread)??)
}

/// After a reboot the store hashes every chunk once; until then each is hashed when it is read.
fn verify_after_reboot(tasks: &Tasks, store: &Store) {
    if store.is_trusted() {
        return;
    }
    let (store, stop) = (store.clone(), tasks.token().clone());
    tasks.spawn("verify store", async move {
        tracing::info!("first start on this boot: verifying the store in the background");
        let mut go_on = move |_| match stop.is_cancelled() {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        };
        match tokio::task::spawn_blocking(move || store.verify(None, &mut go_on)).await {
            Ok(Ok(report)) => {
                tracing::info!(chunks = report.checked_chunks, corrupt = report.corrupt.len(), "store verified")
            }
            Ok(Err(error)) => tracing::warn!(%error, "verify store"),
            Err(_) => {}
        }
    });
}
