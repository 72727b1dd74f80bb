//! Drives a fetch: asks the plan what to do, does it, and tells the plan what came of it.
//!
//! One task owns the plan. Requests run as tasks of a set that the driver owns, so ending the fetch ends them. What is
//! verified is in the store at once, where this node's own provider serves it onward while the rest is still on its way.

mod driver;
mod search;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};

use self::driver::Driver;
pub use self::search::Search;
use super::buffers::Buffers;
use super::connections::Connections;
use super::metrics::{FetchLabel, FetchOutcome, Metrics};
use super::plan::{Locality, PlanConfig};
use super::request::{Event, Peer, Shared};
use super::wanted::{Wanted, Wanting};
use crate::artifact::Admitted;
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::lifecycle::Doubling;
use crate::protocol::peer::Neighbour;
use crate::store::{Store, StoreError};
use crate::telemetry::trace::TraceParent;

/// No holder is asked for a manifest longer than this.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Nor are all of them together, however many they name.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);

/// While a fetch runs, the directory is asked again, because pullers that started with us have become holders.
pub const FIND_AGAIN: Doubling = Doubling::new(Duration::from_millis(20), Duration::from_secs(2));

/// Events that requests may be ahead of the driver.
const EVENTS: usize = 1024;

/// Where an artifact can be had. Hints: whatever they say, chunks are verified.
#[derive(Debug, Clone)]
pub struct Source {
    pub node: NodeId,
    pub addrs: Vec<SocketAddr>,
    pub locality: Locality,
    pub holds: Holds,
}

/// How much of an artifact a source has, as far as the directory knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// It looks for the artifact as we do.
    Nothing,
    Part,
    All,
}

impl Holds {
    /// `held` of so many chunks.
    pub fn of(held: u32, chunks: u32) -> Self {
        match held {
            _ if held >= chunks => Self::All,
            0 => Self::Nothing,
            _ => Self::Part,
        }
    }
}

impl Source {
    /// Of a holder at `by` that is busy and names another. An address on this machine means something only if it is itself
    /// here.
    fn named(other: &Neighbour, by: &[SocketAddr]) -> Option<Self> {
        let is_here = by.iter().any(|addr| addr.ip().is_loopback());
        (is_here || !other.endpoint.is_loopback()).then(|| Self {
            node: other.node,
            addrs: vec![other.endpoint.addr()],
            locality: Locality::Other,
            holds: Holds::Nothing,
        })
    }
}

/// Asks the directory for holders of the artifact that is being fetched.
pub type Find = Arc<dyn Fn() -> BoxFuture<'static, Vec<Source>> + Send + Sync>;

/// Takes an envelope, or not. It may be large: whoever judges it holds up no other task.
pub type Accept<'a> = dyn Fn(Bytes) -> BoxFuture<'a, bool> + Send + Sync + 'a;

/// How far a fetch is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Encoded bytes there, and in all.
    pub bytes: u64,
    pub bytes_total: u64,
    /// Holders that are sending now.
    pub holders: u32,
    /// Encoded bytes that each holder has sent, as of a moment ago.
    pub from: Arc<[(NodeId, u64)]>,
}

/// What a fetch cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Encoded bytes that crossed the network and were verified; duplicates included.
    pub wire_bytes: u64,
    /// Encoded bytes that this node had before.
    pub reused_bytes: u64,
    /// Holders that sent something.
    pub holders: u32,
}

/// A fetch ended without the artifact. What arrived stays in the store, and the next fetch resumes there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no holder could be reached for artifact {}", .0.short())]
    NoHolder(ArtifactId),
    #[error("the time for the fetch is over: {bytes} of {bytes_total} bytes are there")]
    Deadline { bytes: u64, bytes_total: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store's thread: {0}")]
    Thread(#[source] tokio::task::JoinError),
}

/// The fetching half of a node.
#[derive(Clone)]
pub struct Fetcher {
    connections: Arc<Connections>,
    store: Store,
    buffers: Buffers,
    config: PlanConfig,
    port: Option<NonZeroU16>,
    wanted: Arc<Wanted>,
    metrics: Metrics,
}

impl Fetcher {
    /// `port` is where this node serves, if it does: holders name it to others. `wanted` is its
    /// [`Provider`](super::Provider)'s.
    pub fn new(
        connections: Arc<Connections>,
        store: Store,
        config: PlanConfig,
        port: Option<NonZeroU16>,
        wanted: Arc<Wanted>,
        metrics: Metrics,
    ) -> Self {
        Self { connections, store, buffers: Buffers::default(), config, port, wanted, metrics }
    }

    /// The envelope of an artifact from whichever source answers first with one that `accept` takes: [`Search`] says who is
    /// asked when.
    pub async fn manifest(
        &self,
        artifact: ArtifactId,
        sources: &[Source],
        context: TraceParent,
        accept: &Accept<'_>,
    ) -> Result<(), FetchError> {
        let wanting = self.wanted.begin(artifact, Instant::now());
        self.search(artifact, sources, context, accept).await?;
        wanting.into_iter().for_each(Wanting::goes_on);
        Ok(())
    }

    async fn search(
        &self,
        artifact: ArtifactId,
        sources: &[Source],
        context: TraceParent,
        accept: &Accept<'_>,
    ) -> Result<(), FetchError> {
        let (events, _unused) = mpsc::channel(1);
        let shared = self.shared(artifact, context, events);
        let mut search = Search::new(sources.iter().cloned(), Instant::now());
        let mut asking = FuturesUnordered::new();
        let give_up = Instant::now() + SEARCH_TIMEOUT;
        while Instant::now() < give_up {
            while let Some(source) = search.next(Instant::now()) {
                let shared = shared.clone();
                asking.push(async move {
                    let peer = Peer { node: source.node, addrs: source.addrs.clone(), context };
                    (source, tokio::time::timeout(MANIFEST_TIMEOUT, shared.manifest(&peer)).await)
                });
            }
            if search.is_over() {
                break;
            }
            let wake = search.next_deadline().map_or(give_up, |at| at.min(give_up));
            let (source, answer) = tokio::select! {
                Some(answered) = asking.next() => answered,
                () = tokio::time::sleep_until(wake.into()) => continue,
            };
            let now = Instant::now();
            match answer {
                Ok(Ok(Ok(envelope))) => {
                    if accept(envelope).await {
                        return Ok(());
                    }
                    self.metrics.bad_manifests.inc();
                    search.failed(source.node, Instant::now());
                }
                Ok(Ok(Err(busy))) => {
                    let others: Vec<Source> =
                        busy.others.iter().filter_map(|other| Source::named(other, &source.addrs)).collect();
                    search.busy(source, busy.retry_after, others, rand::random(), now);
                }
                Ok(Err(_)) | Err(_) => search.failed(source.node, now),
            }
        }
        Err(FetchError::NoHolder(artifact))
    }

    /// Brings all chunks of an admitted artifact into the store and seals it.
    pub async fn fetch(
        &self,
        admitted: Admitted,
        sources: Vec<Source>,
        find: Find,
        deadline: Instant,
        context: TraceParent,
        progress: &watch::Sender<Progress>,
    ) -> Result<Fetched, FetchError> {
        let started = Instant::now();
        let id = admitted.id();
        let wanting = self.wanted.begin(id, started);
        let result = self.run(admitted, sources, find, deadline, context, progress).await;
        drop(wanting);
        let outcome = match &result {
            Ok(_) => FetchOutcome::Complete,
            Err(FetchError::NoHolder(_)) => FetchOutcome::NoHolder,
            Err(FetchError::Deadline { .. }) => FetchOutcome::Deadline,
            Err(FetchError::Store(error)) if error.is_no_space() => FetchOutcome::NoSpace,
            Err(FetchError::Store(_) | FetchError::Thread(_)) => FetchOutcome::Failed,
        };
        self.metrics.fetches.get_or_create(&FetchLabel { outcome }).inc();
        self.metrics.fetch_seconds.observe(started.elapsed().as_secs_f64());
        result
    }

    async fn run(
        &self,
        admitted: Admitted,
        sources: Vec<Source>,
        find: Find,
        deadline: Instant,
        context: TraceParent,
        progress: &watch::Sender<Progress>,
    ) -> Result<Fetched, FetchError> {
        let id = admitted.id();
        let store = self.store.clone();
        // Held, so that it is not evicted while it is fetched.
        let held = blocking(move || store.begin(admitted)).await?;
        let (events, incoming) = mpsc::channel(EVENTS);
        let shared = self.shared(id, context, events);
        let mut driver = Driver::new(self, held, shared, find, progress);
        sources.into_iter().for_each(|source| driver.add(source));
        let fetched = driver.drive(incoming, deadline).await?;
        let store = self.store.clone();
        blocking(move || store.seal(&id)).await?;
        Ok(fetched)
    }

    fn shared(&self, artifact: ArtifactId, context: TraceParent, events: mpsc::Sender<Event>) -> Arc<Shared> {
        Arc::new(Shared {
            connections: self.connections.clone(),
            store: self.store.clone(),
            buffers: self.buffers.clone(),
            metrics: self.metrics.clone(),
            artifact,
            port: self.port,
            patience: self.config.first_byte,
            context,
            events,
        })
    }
}

/// Runs store work where it may block. A panic there is reported as a failed thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(FetchError::Thread(error)),
    }
}
