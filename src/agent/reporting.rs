//! What this node tells of itself: gathered from its parts now and then, told to the metadata server with the heartbeats if
//! it is news, and to whoever asks on this machine.

mod documents;
mod problems;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::problems::{Seen, problems};
use super::AgentConfig;
use super::directory::Directory;
use super::fetching::Fetching;
use super::gpus::Gpus;
use super::starts::{History, Start};
use super::trust::Trust;
use crate::discovery::Mode;
use crate::identity::{Membership, NodeId, UnixTime};
use crate::metadata::ClientError;
use crate::protocol::fleet::{NodeDocument, Standing};
use crate::protocol::metadata::Locality;
use crate::protocol::report::{
    Discovery, Disk, End, Engine, EngineState, Network, NodeReport, PolicyInForce, Text, Totals, UnixMillis,
};
use crate::store::Store;
use crate::transfer::{Direction, Metrics, Provider};
use crate::transport::{Carriers, Endpoint};

/// How often it is looked whether there is news: while something is being fetched, and else.
const BUSY: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(10);

/// A server that does not know the call is asked again after this time: it may have been updated.
const OLD_SERVER: Duration = Duration::from_secs(600);

/// Between two reports, however much happens.
const SPACING: Duration = Duration::from_millis(250);

/// Of so many reports one is told although nothing is new: a server that began anew knows nothing.
const AT_LEAST_EVERY: u32 = 6;

/// An engine of which nothing was heard for so long may be gone.
const HEARD: Duration = Duration::from_secs(30);

/// The parts that are asked. None of them waits for another.
pub(super) struct Sources {
    pub(super) node: NodeId,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) store: Store,
    pub(super) trust: Arc<Trust>,
    pub(super) directory: Arc<Directory>,
    pub(super) fetching: Arc<Fetching>,
    pub(super) provider: Arc<Provider>,
    pub(super) own: Membership,
    pub(super) transfers: Metrics,
    pub(super) gpus: Gpus,
}

/// What was told last of the engine; of several on a node, by the one that told last.
#[derive(Clone, Copy)]
struct Heard {
    at: Instant,
    adapters: Option<u32>,
}

pub(super) struct Reporter {
    sources: Sources,
    name: String,
    started_at: UnixMillis,
    locality: Locality,
    buffer_wanted: u64,
    tcp_only: bool,
    starts: Mutex<History>,
    /// A fetch or a start has begun or ended.
    news: Arc<Notify>,
    engine: Mutex<Option<Heard>>,
}

impl Reporter {
    pub(super) fn new(sources: Sources, config: &AgentConfig) -> Arc<Self> {
        Arc::new(Self {
            news: sources.fetching.news(),
            sources,
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            started_at: UnixMillis::now(),
            locality: config.locality.clone(),
            buffer_wanted: config.transport.socket_buffer as u64,
            tcp_only: config.transport.carrier == Carriers::Tcp,
            starts: Mutex::default(),
            engine: Mutex::default(),
        })
    }

    /// `open` is there for as long as whoever has told it is connected.
    pub(super) fn started(&self, start: &Start, open: Weak<()>) {
        self.history().add(start, UnixMillis::now(), open);
        self.news.notify_one();
    }

    pub(super) fn engine_serves(&self, adapters: Option<u32>) {
        let heard = Heard { at: Instant::now(), adapters };
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the metadata server, if there is one, until the agent ends.
    pub(super) async fn run(self: Arc<Self>) {
        let Some(client) = self.sources.directory.server() else { return };
        let (mut told, mut silent) = (None, 0);
        loop {
            let report = self.report().await;
            silent += 1;
            let is_news = told.as_ref().is_none_or(|told| !report.adds_nothing_to(told));
            let mut pause = if report.transfers.is_empty() { QUIET } else { BUSY };
            if (is_news || silent >= AT_LEAST_EVERY) && self.sources.directory.is_connected() {
                match client.report(&report).await {
                    Ok(()) => (told, silent) = (Some(report), 0),
                    Err(error @ ClientError::Protocol { .. }) => {
                        tracing::info!(%error, "the metadata server takes no reports: it is of an older version");
                        tokio::time::sleep(OLD_SERVER).await;
                    }
                    Err(error) => tracing::debug!(%error, "this node's report was not taken"),
                }
            }
            if told.is_none() {
                pause = BUSY;
            }
            tokio::time::sleep(SPACING).await;
            // Told sooner, if it is.
            let _ = tokio::time::timeout(pause, self.news.notified()).await;
        }
    }

    /// This node as it is now.
    pub(super) async fn report(&self) -> NodeReport {
        let store = self.sources.store.clone();
        // Asks the file system.
        let disk = tokio::task::spawn_blocking(move || Disk {
            used: store.usage(),
            limit: store.max_bytes(),
            free: store.free_space().unwrap_or(0),
        });
        let disk = disk.await.unwrap_or_default();
        let mut report = self.gathered(disk);
        report.problems = problems(&report, &self.seen());
        report.bounded()
    }

    fn gathered(&self, disk: Disk) -> NodeReport {
        let Sources { trust, directory, fetching, transfers, gpus, .. } = &self.sources;
        let network = self.network();
        let history = self.history();
        let (starts, hits, misses) = (history.starts(), history.hits(), history.misses());
        drop(history);
        let expires = |seconds: u64| UnixMillis(seconds.saturating_mul(1000));
        NodeReport {
            name: Text::cut(&self.name),
            version: Text::cut(env!("CARGO_PKG_VERSION")),
            started_at: self.started_at,
            clock: UnixMillis::now(),
            discovery: match directory.mode() {
                Mode::Server => Discovery::Server,
                Mode::Hybrid => Discovery::Hybrid,
                Mode::Serverless => Discovery::Serverless,
            },
            carrier: network.carrier(),
            engine: self.engine(starts.last().map(|start| start.end)),
            disk,
            totals: Totals {
                received: transfers.with_peers(Direction::Received),
                sent: transfers.with_peers(Direction::Sent),
                hits,
                misses,
            },
            policy: trust
                .policy()
                .map(|policy| PolicyInForce { version: policy.version, expires_at: expires(policy.expires.seconds()) }),
            starts,
            transfers: fetching.transfers(Instant::now()),
            problems: Vec::new(),
            network,
            gpus: gpus.now(),
        }
    }

    fn engine(&self, last: Option<End>) -> Option<Engine> {
        let heard = *self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        match (heard.filter(|heard| heard.at.elapsed() < HEARD), last) {
            (Some(heard), _) => Some(Engine { state: EngineState::Serving, adapters: heard.adapters }),
            (None, Some(End::Crashed)) => Some(Engine { state: EngineState::Failed, adapters: None }),
            (None, _) => None,
        }
    }

    fn network(&self) -> Network {
        let transfers = &self.sources.transfers;
        let [quic, tcp] = transfers.open_connections();
        let buffers = self.sources.endpoint.buffers();
        let bytes = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        Network {
            quic,
            tcp,
            tcp_only: self.tcp_only,
            mtu: transfers.path.mtu().map(u32::from),
            black_holes: transfers.path.black_holes.get(),
            buffer_wanted: buffers.map_or(0, |_| self.buffer_wanted),
            receive_buffer: buffers.map_or(0, |buffers| bytes(buffers.receive)),
            send_buffer: buffers.map_or(0, |buffers| bytes(buffers.send)),
        }
    }

    fn seen(&self) -> Seen {
        let Sources { trust, directory, store, own, transfers, .. } = &self.sources;
        Seen {
            certificate: own.certificate(UnixTime::now()),
            policy: trust.state(),
            reaches_directory: directory.is_connected() || directory.connected_agents() > 0,
            unreached: directory.failure(),
            revoked: trust.policy().map(|policy| self.history().revoked(&policy)).unwrap_or_default(),
            reserve: store.reserve(),
            bad_chunks: transfers.bad_chunks.get(),
            bad_manifests: transfers.bad_manifests.get(),
        }
    }

    /// As a metadata server would show it.
    pub(super) async fn document(&self) -> NodeDocument {
        let Sources { node, endpoint, provider, .. } = &self.sources;
        NodeDocument {
            id: *node,
            state: if provider.is_draining() { Standing::Draining } else { Standing::Ready },
            seen_at: UnixMillis::now(),
            endpoint: Some(Text::cut(&endpoint.local_addr().to_string())),
            region: Text::cut(&self.locality.region),
            zone: Text::cut(&self.locality.zone),
            rack: Text::cut(&self.locality.rack),
            skew_ms: None,
            report: Some(self.report().await),
        }
    }
}
