//! Drives a fetch: asks the plan what to do, does it, and tells the plan what came of it.
//!
//! One task owns the plan. Requests run as tasks of a set that the driver owns, so ending the fetch ends them. What is
//! verified is in the store at once, where this node's own provider serves it onward while the rest is still on its way.

mod driver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};

use self::driver::Driver;
use super::buffers::Buffers;
use super::connections::Connections;
use super::metrics::{FetchLabel, FetchOutcome, Metrics};
use super::plan::{Locality, PlanConfig};
use super::request::{Event, Peer, Shared};
use crate::artifact::Admitted;
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::store::{Store, StoreError};

/// A holder that does not answer with the manifest within this time gets company.
const HEDGE_AFTER: Duration = Duration::from_millis(300);

/// No holder is asked for a manifest longer than this.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Events that requests may be ahead of the driver.
const EVENTS: usize = 1024;

/// Where an artifact can be had. Hints: whatever they say, chunks are verified.
#[derive(Debug, Clone)]
pub struct Source {
    pub node: NodeId,
    pub addrs: Vec<SocketAddr>,
    pub locality: Locality,
    /// All chunks, as far as the directory knows.
    pub complete: bool,
}

/// Asks the directory for holders of the artifact that is being fetched.
pub type Find = Arc<dyn Fn() -> BoxFuture<'static, Vec<Source>> + Send + Sync>;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Encoded bytes there, and in all.
    pub bytes: u64,
    pub bytes_total: u64,
    /// Holders that are sending now.
    pub holders: u32,
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
    metrics: Metrics,
}

impl Fetcher {
    pub fn new(connections: Arc<Connections>, store: Store, config: PlanConfig, metrics: Metrics) -> Self {
        Self { connections, store, buffers: Buffers::default(), config, metrics }
    }

    /// The envelope of an artifact from whichever source answers first with one that `accept` takes. The sources are asked
    /// one after the other, the next one as soon as the one before fails or is slow.
    pub async fn manifest(
        &self,
        artifact: ArtifactId,
        sources: &[Source],
        traceparent: &str,
        accept: &(dyn Fn(Bytes) -> bool + Sync),
    ) -> Result<(), FetchError> {
        let (events, _unused) = mpsc::channel(1);
        let shared = self.shared(artifact, traceparent, events);
        let mut waiting = sources.iter();
        let mut asking = FuturesUnordered::new();
        loop {
            if let Some(source) = waiting.next() {
                let peer = Peer { node: source.node, addrs: source.addrs.clone() };
                let shared = shared.clone();
                asking.push(async move { tokio::time::timeout(MANIFEST_TIMEOUT, shared.manifest(&peer)).await });
            }
            let hedge = async {
                match waiting.len() {
                    0 => std::future::pending().await,
                    _ => tokio::time::sleep(HEDGE_AFTER).await,
                }
            };
            tokio::select! {
                answer = asking.next() => match answer {
                    Some(Ok(Ok(envelope))) if accept(envelope.clone()) => return Ok(()),
                    Some(Ok(Ok(_))) => {
                        self.metrics.bad_manifests.inc();
                    }
                    Some(_) => {}
                    None => return Err(FetchError::NoHolder(artifact)),
                },
                () = hedge => {}
            }
        }
    }

    /// Brings all chunks of an admitted artifact into the store and seals it.
    pub async fn fetch(
        &self,
        admitted: Admitted,
        sources: Vec<Source>,
        find: Find,
        deadline: Instant,
        traceparent: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<Fetched, FetchError> {
        let started = Instant::now();
        let result = self.run(admitted, sources, find, deadline, traceparent, progress).await;
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
        traceparent: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<Fetched, FetchError> {
        let id = admitted.id();
        let store = self.store.clone();
        // Held, so that it is not evicted while it is fetched.
        let held = blocking(move || store.begin(admitted)).await?;
        let (events, incoming) = mpsc::channel(EVENTS);
        let shared = self.shared(id, traceparent, events);
        let mut driver = Driver::new(self, held, shared, find, progress);
        sources.into_iter().for_each(|source| driver.add(source));
        let fetched = driver.drive(incoming, deadline).await?;
        let store = self.store.clone();
        blocking(move || store.seal(&id)).await?;
        Ok(fetched)
    }

    fn shared(&self, artifact: ArtifactId, traceparent: &str, events: mpsc::Sender<Event>) -> Arc<Shared> {
        Arc::new(Shared {
            connections: self.connections.clone(),
            store: self.store.clone(),
            buffers: self.buffers.clone(),
            metrics: self.metrics.clone(),
            artifact,
            traceparent: traceparent.to_owned(),
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
