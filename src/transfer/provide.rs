//! Serves manifests and chunks to peers.
//!
//! Memory per peer is bounded: requests are small, chunks are mapped files, and what is queued in a connection is bounded
//! by its send window. Work per node is bounded by upload slots: when all are taken the answer is Busy with the names of
//! others who fetch the artifact, too, never a queue. Who asks for fresh chunks is told which ones others were given. [`Desk`]
//! decides that. A reader that is too slow loses its stream.

mod config;
mod desk;
mod given;
mod parts;
mod recent;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::Instrument;

pub use self::config::ProvideConfig;
pub use self::desk::{Ask, Desk, NotNow, Slot, What};
use self::parts::Parts;
use super::cap::Cap;
use super::connections;
use super::metrics::{Direction, Holder, Metrics, Outcome, OutcomeLabel, Refusal};
use crate::artifact::{Bitmap, Chunk};
use crate::digest::ArtifactId;
use crate::identity::{NodeId, UnixTime};
use crate::lifecycle::Tasks;
use crate::protocol::metadata;
use crate::protocol::peer::{Answer, FRAME_HEAD, HaveAnswer, Neighbour, Reason, Request, Traced, body_len, chunk_head};
use crate::store::{Artifact, State, Store};
use crate::transport::{Connection, Endpoint, Incoming, RecvStream, SendStream, StreamCode, TransportError};

/// A request must arrive whole within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer must take bytes at least this fast, and every chunk has this time at least.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer to a holder's have waits so long for news. Pullers wait a multiple of it.
const HAVE_WAIT: Duration = Duration::from_millis(200);

/// Bytes of chunks opened ahead of the one that is being sent.
const READ_AHEAD: u64 = 8 * 1024 * 1024;

/// Tells whether an artifact may still be handed out; false once it is revoked.
pub type MayServe = Arc<dyn Fn(&ArtifactId) -> bool + Send + Sync>;

/// The serving half of a node.
pub struct Provider {
    store: Store,
    config: ProvideConfig,
    metrics: Metrics,
    may_serve: MayServe,
    desk: Mutex<Desk>,
    /// Uploads in progress.
    uploads: watch::Sender<u32>,
    /// Bytes of chunks so far.
    sent: AtomicU64,
    connections: Arc<Semaphore>,
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
            uploads: watch::Sender::new(0),
            sent: AtomicU64::new(0),
            connections: Arc::new(Semaphore::new(config.max_connections.max(1) as usize)),
            cap: Cap::new(config.max_rate, Instant::now()),
            draining: AtomicBool::new(false),
            store,
            config,
            metrics,
            may_serve,
        })
    }

    /// Uploads in progress, and how many there can be.
    pub fn load(&self) -> (u32, u32) {
        self.desk().load()
    }

    /// From now on: upload slots and cap. What runs goes on, at the new pace.
    pub fn set_limits(&self, upload_slots: u32, max_rate: Option<u64>) {
        self.desk().set_slots(upload_slots);
        self.cap.set_most(max_rate, Instant::now());
    }

    /// Whether this node serves what it has.
    pub fn is_enabled(&self) -> bool {
        self.config.enabled
    }

    /// What clients of the engine on this node wait from one token to the next: uploads yield while that is long.
    pub fn engine_serves(&self, between_tokens: Duration) {
        let ruled = self.cap.hear(between_tokens, self.sent.load(Ordering::Relaxed), Instant::now());
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
            let Ok(slot) = self.connections.clone().try_acquire_owned() else {
                self.metrics.refuse(Refusal::Full);
                tracing::warn!(addr = %incoming.remote_address(), "too many connections: refused");
                continue;
            };
            let provider = self.clone();
            let owner = tasks.clone();
            tasks.spawn("peer connection", async move { provider.connection(incoming, slot, owner).await });
        }
    }

    async fn connection(self: Arc<Self>, incoming: Incoming, slot: OwnedSemaphorePermit, tasks: Arc<Tasks>) {
        let _slot = slot;
        let connection = match incoming.handshake().await {
            Ok(connection) => connection,
            Err(error) => {
                self.metrics.refuse(Refusal::Handshake);
                tracing::info!(%error, "peer refused");
                return;
            }
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
        let ask = |artifact, what| self.slot(&Ask { artifact, by: peer, reachable, what });
        match traced.request {
            Request::Manifest(id) => {
                let envelope = self.artifact(&id)?.signed().envelope().clone();
                let _slot = ask(id, What::Manifest)?;
                self.write(send, Answer::Manifest { len: envelope.len() }.encode()).await?;
                self.write(send, envelope).await?;
            }
            Request::Have(id, known) => {
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
                let _slot = ask(id, What::Chunks { count, indices, fresh })?;
                self.send_chunks(&artifact, indices, chunks, send).await?;
            }
        }
        send.finish()?;
        Ok(())
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

    fn slot(&self, ask: &Ask<'_>) -> Result<Upload<'_>, Refused> {
        let slot = self.desk().ask(ask, Instant::now(), &mut rand::rng()).map_err(Refused::NotNow)?;
        self.uploads.send_modify(|uploads| *uploads += 1);
        self.metrics.uploads.inc();
        Ok(Upload { provider: self, slot: Some(slot) })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_chunks(
        &self,
        artifact: &Artifact,
        indices: &[u32],
        chunks: Vec<Chunk>,
        send: &mut SendStream,
    ) -> Result<(), Refused> {
        let len = chunks.iter().map(|chunk| u64::from(chunk.encoded_len)).sum();
        self.write(send, Answer::Chunks { len }.encode()).await?;
        let holder = if artifact.state() == State::Complete { Holder::Peer } else { Holder::Partial };
        let sent = self.metrics.bytes(artifact.manifest().identity.family(), Direction::Sent, holder);
        let mut rest = chunks.as_slice();
        let mut indices = indices.iter();
        let mut opening = self.open(&mut rest);
        while let Some(opened) = opening.take() {
            let opened = opened.await.map_err(Refused::Store)?;
            // The next ones are opened while these are on their way.
            opening = self.open(&mut rest);
            for (bytes, index) in opened.into_iter().zip(&mut indices) {
                let len = bytes.len();
                let head = chunk_head(*index, u32::try_from(len).unwrap_or(u32::MAX));
                self.throttle(len as u64).await;
                self.write_all(send, &mut [Bytes::copy_from_slice(&head), bytes]).await?;
                sent.inc_by(len as u64);
                self.sent.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
        self.store.touch(artifact, UnixTime::now());
        Ok(())
    }

    /// Opens the next chunks on a blocking thread: their pages must be in memory before a network thread touches them.
    fn open(
        &self,
        rest: &mut &[Chunk],
    ) -> Option<impl Future<Output = Result<Vec<Bytes>, crate::store::StoreError>> + use<>> {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take_while(|chunk| {
                let first = bytes == 0;
                bytes += u64::from(chunk.encoded_len);
                first || bytes <= READ_AHEAD
            })
            .count();
        let (now, later) = rest.split_at(count);
        *rest = later;
        if now.is_empty() {
            return None;
        }
        let (store, now) = (self.store.clone(), now.to_vec());
        let opened = tokio::task::spawn_blocking(move || {
            now.iter().map(|chunk| store.read_chunk(chunk)).collect::<Result<_, _>>()
        });
        Some(async move { opened.await.unwrap_or_else(|_| Ok(Vec::new())) })
    }

    async fn throttle(&self, bytes: u64) {
        let wait = self.cap.wait(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    async fn write(&self, send: &mut SendStream, bytes: Bytes) -> Result<(), Refused> {
        self.write_all(send, &mut [bytes]).await
    }

    async fn write_all(&self, send: &mut SendStream, parts: &mut [Bytes]) -> Result<(), Refused> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let time = STALL_TIMEOUT + Duration::from_secs(len as u64 / SLOWEST_BYTES_PER_SECOND);
        tokio::time::timeout(time, send.write_all(parts)).await.map_err(|_| Refused::TooSlow)??;
        Ok(())
    }
}

/// Given back when dropped.
struct Upload<'p> {
    provider: &'p Provider,
    slot: Option<Slot>,
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.provider.desk().end(slot, Instant::now());
        }
        self.provider.uploads.send_modify(|uploads| *uploads -= 1);
        self.provider.metrics.uploads.dec();
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
