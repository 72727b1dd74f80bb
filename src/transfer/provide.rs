//! Serves manifests and chunks to peers.
//!
//! Memory per peer is bounded: requests are small, chunks are mapped files, and what is queued in a connection is bounded
//! by its send window. Work per node is bounded by upload slots: when all are taken the answer is Busy with the names of
//! others who fetch the artifact, too, never a queue; what has a slot waits for its turn, a few milliseconds. Who asks for
//! fresh chunks is told which ones others were given. [`Desk`] decides that. A reader that is too slow loses its stream.

mod config;
mod desk;
mod given;
mod parts;
mod recent;
mod turns;
mod upload;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinError;
use tracing::Instrument;

pub use self::config::ProvideConfig;
pub use self::desk::{Ask, Desk, NotNow, Slot, What};
use self::parts::Parts;
use super::cap::{Cap, EngineId};
use super::connections;
use super::metrics::{Metrics, Outcome, OutcomeLabel, Refusal};
use super::wanted::Wanted;
use crate::artifact::{Bitmap, Chunk};
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::lifecycle::{Share, Shares, Tasks};
use crate::protocol::metadata;
use crate::protocol::peer::{Answer, FRAME_HEAD, HaveAnswer, Neighbour, Reason, Request, Traced, body_len};
use crate::store::{Artifact, Store};
use crate::transport::{Connection, Endpoint, Incoming, RecvStream, SendStream, StreamCode, TransportError};

/// A request must arrive whole within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer to a holder's have waits so long for news. Pullers wait a multiple of it.
const HAVE_WAIT: Duration = Duration::from_millis(200);

/// Who asks for a manifest that this node looks for itself waits for it so long.
pub const MANIFEST_WAIT: Duration = Duration::from_millis(200);

/// This part of the connections that there may be can be at their handshake: nobody knows yet who that is.
const HANDSHAKING: u32 = 4;

/// Connections of one node: it needs one, and another while it starts anew.
const MAX_OF_NODE: usize = 8;

/// Tells whether an artifact may still be handed out; false once it is revoked.
pub type MayServe = Arc<dyn Fn(&ArtifactId) -> bool + Send + Sync>;

/// The serving half of a node.
pub struct Provider {
    store: Store,
    config: ProvideConfig,
    metrics: Metrics,
    may_serve: MayServe,
    desk: Mutex<Desk>,
    /// A slot was given back.
    given_back: Notify,
    wanted: Arc<Wanted>,
    /// Uploads in progress.
    uploads: watch::Sender<u32>,
    /// Bytes of chunks so far.
    sent: AtomicU64,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    of_nodes: Shares<NodeId>,
    draining: AtomicBool,
    cap: Cap,
}

/// How a request was refused.
enum Refused {
    Reason(Reason),
    NotNow(NotNow),
    Transport(TransportError),
    TooSlow,
    Store(crate::store::StoreError),
    Thread(JoinError),
}

impl From<TransportError> for Refused {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl Provider {
    pub fn new(store: Store, config: ProvideConfig, may_serve: MayServe, metrics: Metrics) -> Arc<Self> {
        metrics.upload_slots.set(config.upload_slots.into());
        Arc::new(Self {
            desk: Mutex::new(Desk::new(config.upload_slots)),
            given_back: Notify::new(),
            wanted: Arc::default(),
            uploads: watch::Sender::new(0),
            sent: AtomicU64::new(0),
            handshakes: Arc::new(Semaphore::new((config.max_connections / HANDSHAKING).max(1) as usize)),
            connections: Arc::new(Semaphore::new(config.max_connections.max(1) as usize)),
            of_nodes: Shares::new(MAX_OF_NODE),
            cap: Cap::new(config.max_rate, Instant::now()),
            draining: AtomicBool::new(false),
            store,
            config,
            metrics,
            may_serve,
        })
    }

    /// For the [`Fetcher`](super::Fetcher) of this node.
    pub fn wanted(&self) -> Arc<Wanted> {
        self.wanted.clone()
    }

    /// Uploads in progress, and how many there can be.
    pub fn load(&self) -> (u32, u32) {
        self.desk().load()
    }

    /// From now on: upload slots and cap. What runs goes on, at the new pace.
    pub fn set_limits(&self, upload_slots: u32, max_rate: Option<u64>) {
        self.desk().set_slots(upload_slots);
        self.metrics.upload_slots.set(self.load().1.into());
        self.cap.set_most(max_rate, Instant::now());
    }

    /// Whether this node serves what it has.
    pub fn is_enabled(&self) -> bool {
        self.config.enabled
    }

    /// What clients of this engine of the node wait from one token to the next: uploads yield while that is long.
    pub fn engine_serves(&self, engine: EngineId, between_tokens: Duration) {
        let ruled = self.cap.hear(engine, between_tokens, self.sent.load(Ordering::Relaxed), Instant::now());
        self.metrics.rate_limit.set(ruled.rate.map_or(0, |rate| i64::try_from(rate).unwrap_or(i64::MAX)));
        self.metrics.engine_pace.set(between_tokens.as_secs_f64());
        self.metrics.yields.inc_by(u64::from(ruled.lowered));
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until no upload is in progress, at most until `deadline`.
    pub async fn idle(&self, deadline: Duration) {
        let mut uploads = self.uploads.subscribe();
        // Those that are still at it then are cut off.
        let _ = tokio::time::timeout(deadline, uploads.wait_for(|uploads| *uploads == 0)).await;
    }

    /// From now on new requests are answered Draining.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Accepts connections until `tasks` is cancelled; every connection and request is a task of `tasks`.
    pub async fn serve(self: Arc<Self>, endpoint: Arc<Endpoint>, tasks: Arc<Tasks>) {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(handshake) = self.handshakes.clone().try_acquire_owned() else {
                self.metrics.refuse(Refusal::Full);
                tracing::warn!(addr = %incoming.remote_address(), "too many handshakes at once: refused");
                continue;
            };
            let provider = self.clone();
            let owner = tasks.clone();
            tasks.spawn("peer connection", async move { provider.connection(incoming, handshake, owner).await });
        }
    }

    async fn connection(self: Arc<Self>, incoming: Incoming, handshake: OwnedSemaphorePermit, tasks: Arc<Tasks>) {
        let connection = match incoming.handshake().await {
            Ok(connection) => connection,
            Err(error) => {
                self.metrics.refuse(Refusal::Handshake);
                tracing::info!(%error, "peer refused");
                return;
            }
        };
        drop(handshake);
        let Some(_slot) = self.place(connection.peer()) else {
            self.metrics.refuse(Refusal::Full);
            tracing::warn!(peer = %connection.peer().short(), "too many connections: refused");
            return connection.close(StreamCode::Cancelled);
        };
        connections::watch(&tasks, &self.metrics, connection.clone(), || true);
        let parts = Arc::new(Parts::new(connection.peer()));
        while let Ok((send, recv)) = connection.accept().await {
            let provider = self.clone();
            let connection = connection.clone();
            let (parts, owner) = (parts.clone(), tasks.clone());
            let request = async move { provider.request(&connection, &parts, &owner, send, recv).await };
            tasks.spawn("peer request", request);
        }
    }

    /// For a connection of a node, while there is room and the node has not had its share.
    fn place(&self, node: NodeId) -> Option<(Share<NodeId>, OwnedSemaphorePermit)> {
        Some((self.of_nodes.take(node)?, self.connections.clone().try_acquire_owned().ok()?))
    }

    async fn request(
        &self,
        connection: &Connection,
        parts: &Arc<Parts>,
        tasks: &Tasks,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        let read = tokio::time::timeout(REQUEST_TIMEOUT, read_request(&mut recv)).await;
        let served = match read {
            Ok(Ok(traced)) => {
                let (peer, span) = (connection.peer(), parts.span(&traced, tasks));
                self.answer(peer, connection.remote_address().ip(), traced, &mut send).instrument(span).await
            }
            Ok(Err(refused)) => Err(refused),
            Err(_) => Err(Refused::TooSlow),
        };
        let outcome = match served {
            Ok(()) => Outcome::Served,
            Err(refused) => refuse(refused, connection.peer(), &mut send).await,
        };
        self.metrics.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    async fn answer(&self, peer: NodeId, ip: IpAddr, traced: Traced, send: &mut SendStream) -> Result<(), Refused> {
        if !self.config.enabled {
            return Err(Refused::Reason(Reason::Forbidden));
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(Refused::Reason(Reason::Draining));
        }
        let endpoint = traced.port.and_then(|port| metadata::Endpoint::new((ip, port.get()).into()).ok());
        let reachable = endpoint.map(|endpoint| Neighbour { node: peer, endpoint });
        let ask = async |artifact, what| self.slot(&Ask { artifact, by: peer, reachable, what }).await;
        match traced.request {
            Request::Manifest(id) => {
                self.wait_for_manifest(&id).await;
                let envelope = self.artifact(&id)?.signed().envelope().clone();
                let _slot = ask(id, What::Manifest).await?;
                self.write(send, Answer::Manifest { len: envelope.len() }.encode()).await?;
                self.write(send, envelope).await?;
            }
            Request::Have(id, known) => {
                reachable.iter().for_each(|neighbour| self.wanted.meet(&id, *neighbour));
                let artifact = self.artifact(&id)?;
                if let Some(known) = known {
                    let mut progress = artifact.subscribe();
                    // Whether there is more or not: after that time the asker hears what there is.
                    let more = progress.wait_for(|progress| progress.chunks > known as usize);
                    let _ = tokio::time::timeout(HAVE_WAIT, more).await;
                }
                let have = artifact.have();
                let (uploads, upload_slots) = self.load();
                self.write(send, Answer::Have(HaveAnswer { have, uploads, upload_slots }).encode()).await?;
            }
            Request::Chunks(id, ref indices) | Request::FreshChunks(id, ref indices) => {
                let fresh = matches!(traced.request, Request::FreshChunks(..));
                let artifact = self.artifact(&id)?;
                let chunks = self.chunks_of(&artifact, indices)?;
                let count = artifact.manifest().chunks.len();
                let _slot = ask(id, What::Chunks { count, indices, fresh }).await?;
                self.send_chunks(&artifact, indices, chunks, send).await?;
            }
        }
        send.finish()?;
        Ok(())
    }

    /// While this node looks for it, too.
    async fn wait_for_manifest(&self, id: &ArtifactId) {
        let mut changes = self.store.subscribe();
        let is_over = |_: &u64| self.store.get(id).is_some() || !self.wanted.comes_soon(id, Instant::now());
        // Whether it came or not: the answer is what the store says then.
        let _ = tokio::time::timeout(MANIFEST_WAIT, changes.wait_for(is_over)).await;
    }

    fn artifact(&self, id: &ArtifactId) -> Result<Arc<Artifact>, Refused> {
        let artifact = self.store.get(id).ok_or(Refused::Reason(Reason::NotFound))?;
        if (self.may_serve)(id) { Ok(artifact) } else { Err(Refused::Reason(Reason::Forbidden)) }
    }

    fn chunks_of(&self, artifact: &Artifact, indices: &[u32]) -> Result<Vec<Chunk>, Refused> {
        let chunks = &artifact.signed().manifest().chunks;
        let have: Bitmap = artifact.have();
        let chunk = |index: &u32| {
            let chunk = chunks.get(*index as usize).ok_or(Refused::Reason(Reason::BadRequest))?;
            if have.get(*index as usize) { Ok(*chunk) } else { Err(Refused::Reason(Reason::NotFound)) }
        };
        indices.iter().map(chunk).collect()
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_request(recv: &mut RecvStream) -> Result<Traced, Refused> {
    let bad = |_| Refused::Reason(Reason::BadRequest);
    let mut head = [0; FRAME_HEAD];
    recv.read_exact(&mut head).await?;
    let mut body = vec![0; body_len(head).map_err(bad)?];
    recv.read_exact(&mut body).await?;
    Traced::decode(head, &body).map_err(bad)
}

/// Tells the peer why, as far as it can still be told.
async fn refuse(refused: Refused, peer: NodeId, send: &mut SendStream) -> Outcome {
    let (answer, outcome) = match refused {
        Refused::Reason(reason) => (Answer::Refused(reason), reason.into()),
        Refused::NotNow(NotNow::Busy(busy)) => (Answer::Busy(busy), Outcome::Busy),
        Refused::NotNow(NotNow::Given(given)) => (Answer::Given(given), Outcome::Given),
        Refused::TooSlow => {
            tracing::info!(peer = %peer.short(), "peer is too slow: stream reset");
            send.reset(StreamCode::TooSlow);
            return Outcome::TooSlow;
        }
        Refused::Transport(error) => {
            tracing::debug!(peer = %peer.short(), %error, "peer went away");
            send.reset(StreamCode::Failed);
            return Outcome::Failed;
        }
        Refused::Store(error) => {
            tracing::warn!(peer = %peer.short(), %error, "read chunk for peer");
            send.reset(StreamCode::Failed);
            return Outcome::Failed;
        }
        Refused::Thread(error) => {
            tracing::error!(peer = %peer.short(), %error, "the thread that reads chunks for a peer");
            send.reset(StreamCode::Failed);
            return Outcome::Failed;
        }
    };
    let told = async {
        send.write(answer.encode()).await?;
        send.finish()
    };
    // If it cannot be told, the stream is reset when it is dropped.
    let _ = tokio::time::timeout(REQUEST_TIMEOUT, told).await;
    outcome
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::NotFound => Self::NotFound,
            Reason::Draining => Self::Draining,
            Reason::Forbidden => Self::Forbidden,
            Reason::BadRequest => Self::BadRequest,
        }
    }
}
