//! An engine that is kept warm and running, the fleet's adapters, and the proxy that is the only way to both.
//!
//! ```text
//! Supervisor -- Status --> Upstream --> Proxy  <-- clients
//!     | Starts: warm, prove, publish      | Models: Catalogue --> Adapters --> Fleet (agent), EngineRegistry (engine)
//! ```
//!
//! The proxy answers from the first moment: until the engine serves, that it is not ready. Adapters begin with the first
//! engine that serves, and anew with one of another kind, because its version decides what may be made of them.

mod attach;
mod begin;
mod catalogue;
mod config;
mod entrance;
mod fleet;
mod ownership;
mod registry;
mod reload;
mod report;
mod starts;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::attach::Attached;
use self::begin::Begin;
use self::starts::Starts;
use super::adapters;
use super::admin::{Admin, Control};
use super::start::Spec;
use super::target::{Say, Site};
use super::trust::{self, Trust};
use crate::caches::{Environment, Launch};
use crate::engine::arguments::{Arguments, ArgumentsError, Given, Limits as Slots, Model, Wish};
use crate::engine::{self, Address, Probe, ProbeError, Secret, StartError, State, Status, Supervisor};
use crate::install;
use crate::lifecycle::Tasks;
use crate::local::SocketError;
use crate::proxy::auth::{AuthConfig, AuthError, Authenticator};
use crate::proxy::limits::Limits;
use crate::proxy::pause::Gates;
use crate::proxy::{self, Access, Proxy, Server, Upstream, access};
use crate::telemetry::{MetricsServer, Registry};

pub(super) use self::catalogue::Catalogue;
pub(super) use self::reload::Effective;
pub use config::{Preparation, ServeConfig};

/// For what is left when requests and engine are gone.
const LAST: Duration = Duration::from_secs(2);

/// Nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the engine's command line is not understood: {0}")]
    Launch(String),
    #[error(transparent)]
    Arguments(#[from] ArgumentsError),
    #[error("there is no directory for the state of this server: say --state-dir")]
    NoState,
    #[error("{path}: {source}", path = .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("{path}: others may enter it, and with it the engine: chmod 700 it, or say another --state-dir", path = .0.display())]
    NotPrivate(PathBuf),
    #[error("`{0}` names no address to listen on")]
    Host(String),
    #[error("listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(
        "everybody who reaches {0} could use the engine: say who may in [auth] of a configuration file (--config; [serve.auth] in an agent's), or let everybody in: --anonymous, or [auth.anonymous] there"
    )]
    Open(SocketAddr),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("watch the engine: {0}")]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Engine(#[from] StartError),
}

/// What is served: an engine of ours, or one that somebody else runs.
pub enum Backend {
    Own(Spec),
    Attached {
        address: Address,
        key: Option<Secret>,
        socket: PathBuf,
        trust: Trust,
        /// For adapters.
        limits: install::Limits,
    },
}

/// Everything that runs.
pub struct Serving {
    server: Server,
    proxy: Arc<Proxy>,
    supervisor: Option<Arc<Supervisor>>,
    catalogue: Arc<Catalogue>,
    access: Arc<Access>,
    effective: Effective,
    admin: Admin,
    metrics: Option<MetricsServer>,
    tasks: Tasks,
    drain_deadline: Duration,
}

/// Everything that `warmd serve` counts, put together in one place.
#[derive(Debug, Clone)]
pub struct Metrics {
    access: access::Metrics,
    proxy: proxy::Metrics,
    engine: engine::Metrics,
    adapters: adapters::Metrics,
}

impl Metrics {
    /// `named` adapters have a series of their own.
    pub fn register(r: &mut Registry, named: usize) -> Self {
        Self {
            access: access::Metrics::register(r),
            proxy: proxy::Metrics::register(r),
            engine: engine::Metrics::register(r),
            adapters: adapters::Metrics::register(r, named),
        }
    }
}

/// What is known of the engine before it runs.
struct Known {
    model: Option<Model>,
    limits: Option<Slots>,
    listen: Wish,
    /// The agent's socket, and what is admitted from it.
    socket: PathBuf,
    trust: Trust,
    /// Where the engine's caches are.
    roots: Vec<PathBuf>,
    /// What a transfer may take of the disk.
    room: install::Limits,
}

impl Serving {
    /// Starts the engine and returns at once.
    pub async fn start(config: ServeConfig, backend: Backend, anonymous: bool, say: Say) -> Result<Self, ServeError> {
        let mut registry = Registry::of_process();
        let metrics = Metrics::register(&mut registry, config.adapters.named_in_metrics);
        let root = match &backend {
            Backend::Own(spec) => spec.target.root.as_deref(),
            Backend::Attached { .. } => None,
        };
        let state = entrance::state_directory(config.state_dir.as_deref(), root, &Environment::of_this_process())?;
        let (upstream_sender, upstream) = watch::channel(None);
        let tasks = Tasks::new();
        let (known, engine) = known(&config, backend, &state, &say)?;
        let addr = entrance::listen(config.listen, &known.listen)?;
        let auth = entrance::auth(&config.auth, addr, anonymous)?;
        let access = access(&config, auth, &state, metrics.access)?;
        let catalogue = Arc::new(Catalogue::new(known.model.as_ref(), config.adapters.retry_after));
        let proxy =
            Proxy::new(config.proxy.clone(), upstream.clone(), catalogue.clone(), access.clone(), metrics.proxy);
        let server = Server::bind(addr, proxy.clone()).await.map_err(|source| ServeError::Listen { addr, source })?;
        say(&format!("clients connect to http://{}", server.addr()));
        // What can fail has failed before an engine takes a GPU.
        let socket = config.admin.clone().unwrap_or_else(|| state.join("admin.sock"));
        let admin = Admin::bind(socket).await?;
        let metrics_server = metrics_server(&config, registry).await?;
        let (catalogue_now, socket) = (catalogue.clone(), known.socket.clone());
        tasks.spawn("report", report::tell(Arc::downgrade(&proxy), catalogue_now, upstream.clone(), socket));
        let supervisor = engine.run(&config, &state, &proxy, metrics.engine, &tasks, upstream_sender);
        let (trust, agent, roots, told) = (known.trust.clone(), known.socket.clone(), known.roots.clone(), say.clone());
        tasks.spawn("trust", async move { trust.watch(&agent, &roots, &told).await });
        let begin = Begin {
            config: config.clone(),
            known,
            state: state.clone(),
            upstream,
            epoch: watch::Sender::new(None),
            disk: None,
            metrics: metrics.adapters,
            access: access.clone(),
            say: say.clone(),
        };
        tasks.spawn("catalogue", begin.run(catalogue.clone()));
        let drain_deadline = config.drain_deadline;
        let effective = Effective::new(config);
        let control = Control::new(access.clone(), catalogue.clone(), supervisor.clone(), effective.clone());
        let admin = Admin::serve(admin, control, &say);
        let metrics = metrics_server;
        metrics.iter().for_each(|metrics| metrics.set_ready(true));
        Ok(Self { server, proxy, supervisor, catalogue, access, effective, admin, metrics, tasks, drain_deadline })
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::addr)
    }

    /// Completes when the engine is in a crash loop, with the reason of its latest end. It is started again all the same,
    /// unless this server ends.
    pub async fn crash_loop(&self) -> String {
        let Some(supervisor) = &self.supervisor else { return std::future::pending().await };
        let mut status = supervisor.status();
        match status.wait_for(|status| status.crash_loop.is_some()).await {
            Ok(status) => status.crash_loop.clone().unwrap_or_default(),
            Err(_) => "nobody looks after it any more".to_owned(),
        }
    }

    /// Requests that are under way end first, then the engine, then what served them.
    pub async fn shutdown(self) {
        let Self { server, proxy, supervisor, catalogue, admin, metrics, tasks, drain_deadline, .. } = self;
        let until = Instant::now() + drain_deadline;
        metrics.iter().for_each(|metrics| metrics.set_ready(false));
        server.announce_end();
        // Answers under way may take what the engine's own end leaves of the time.
        let for_requests = drain_deadline.mul_f64(0.7);
        if !server.shutdown(for_requests).await {
            tracing::warn!("requests were cut off at the end");
        }
        drop(proxy);
        admin.shutdown(LAST).await;
        tasks.shutdown(LAST).await;
        if let Some(adapters) = catalogue.take() {
            adapters.shutdown(LAST).await;
        }
        drop(catalogue);
        if let Some(supervisor) = supervisor.and_then(Arc::into_inner) {
            let left = until.saturating_duration_since(Instant::now()).max(LAST);
            let status = supervisor.shutdown(left).await;
            if let Some(leader) = status.leader {
                tracing::error!(leader, "something of the engine could not be ended");
            }
        }
        if let Some(metrics) = metrics {
            metrics.shutdown(LAST).await;
        }
    }
}

/// In the state directory, where only this user gets in.
const SOCKET: &str = "engine.sock";

/// Who runs the engine.
enum Running {
    Own(Arc<Starts>),
    Attached(Attached),
}

impl Running {
    /// From now on `upstream` says where the engine is.
    fn run(
        self,
        config: &ServeConfig,
        state: &Path,
        proxy: &Proxy,
        metrics: engine::Metrics,
        tasks: &Tasks,
        upstream: watch::Sender<Option<Upstream>>,
    ) -> Option<Arc<Supervisor>> {
        match self {
            Self::Own(starts) => {
                let record = Some(state.join("engine.json"));
                let supervisor =
                    Supervisor::start(config.supervision.clone(), starts.clone(), proxy.in_flight(), record, metrics);
                tasks.spawn("upstream", follow(supervisor.status(), starts, upstream));
                Some(Arc::new(supervisor))
            }
            Self::Attached(attached) => {
                tasks.spawn("attached engine", attached.follow(upstream));
                None
            }
        }
    }
}

/// What can be said before anything runs.
fn known(config: &ServeConfig, backend: Backend, state: &Path, say: &Say) -> Result<(Known, Running), ServeError> {
    match backend {
        Backend::Own(spec) => {
            let (known, arguments, spec, probe) = own(config, spec, state, say)?;
            let supervision = config.supervision.clone();
            let starts = Starts::new(spec, arguments, state.join(SOCKET), probe, supervision, say.clone());
            Ok((known, Running::Own(Arc::new(starts))))
        }
        Backend::Attached { address, key, socket, trust, limits: room } => {
            let (limits, listen) = (attached_limits(config), Wish::default());
            Ok((
                Known { model: None, limits, listen, socket, trust, roots: Vec::new(), room },
                Running::Attached(Attached::new(address, key, say.clone())),
            ))
        }
    }
}

/// What the engine is run with, and what its hook is told.
fn own(
    config: &ServeConfig,
    mut spec: Spec,
    state: &Path,
    say: &Say,
) -> Result<(Known, Arguments, Spec, Probe), ServeError> {
    engine::check()?;
    let launch = Launch::parse(&spec.target.command).map_err(|error| ServeError::Launch(error.to_string()))?;
    let socket = state.join(SOCKET);
    let environment = Environment::of_this_process();
    let mut engine = config.engine.clone();
    if launch.has("enable-lora") {
        engine.adapters.get_or_insert_default();
    }
    let given = Given {
        command: &spec.target.command,
        launch: &launch,
        environment: &environment,
        config: &engine,
        socket: &socket,
    };
    let arguments = Arguments::new(given)?;
    arguments.notes.iter().for_each(|note| say(note));
    spec.target.command.clone_from(&arguments.command);
    let set = arguments.set.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
    spec.target.changes = set.chain(arguments.unset.iter().map(|name| (name.clone(), None))).collect();
    let quiet: Say = Arc::new(|_| ());
    let site = Site::of(&spec.target, &quiet);
    let probe = site.readiness(spec.ready_url.as_deref())?;
    let known = Known {
        model: arguments.model.clone(),
        limits: arguments.limits,
        listen: arguments.listen.clone(),
        socket: spec.target.socket.clone(),
        trust: spec.trust.clone(),
        roots: trust::roots(&site.environment),
        room: spec.limits,
    };
    Ok((known, arguments, spec, probe))
}

/// Of an engine that somebody else has started with adapters: what the configuration says that it has.
fn attached_limits(config: &ServeConfig) -> Option<Slots> {
    config.engine.adapters.as_ref().map(|adapters| Slots {
        max_loras: adapters.max_loras,
        max_cpu_loras: adapters.max_cpu_loras.max(adapters.max_loras),
        max_lora_rank: adapters.max_lora_rank,
    })
}

fn access(
    config: &ServeConfig,
    auth: AuthConfig,
    state: &Path,
    metrics: access::Metrics,
) -> Result<Arc<Access>, ServeError> {
    let authenticator = Authenticator::open(auth, state)?;
    let limits = Limits::new(config.limits.clone());
    Ok(Arc::new(Access::new(authenticator, limits, Gates::default(), config.proxy.at_gate, metrics)))
}

async fn metrics_server(config: &ServeConfig, registry: Registry) -> Result<Option<MetricsServer>, ServeError> {
    let Some(addr) = config.metrics.listen else { return Ok(None) };
    let server = MetricsServer::bind(addr, Arc::new(registry)).await;
    server.map(Some).map_err(|source| ServeError::Listen { addr, source })
}

/// Where the proxy sends requests: nowhere unless the engine is ready.
async fn follow(mut status: watch::Receiver<Status>, starts: Arc<Starts>, upstream: watch::Sender<Option<Upstream>>) {
    loop {
        let Status { state, epoch, .. } = status.borrow_and_update().clone();
        let now = if state == State::Ready { starts.upstream(epoch) } else { None };
        upstream.send_if_modified(|before| {
            let changed = *before != now;
            *before = now.clone();
            changed
        });
        if status.changed().await.is_err() {
            upstream.send_replace(None);
            return;
        }
    }
}
