//! One request to one holder: a stream, its answer, and the chunks that follow, verified off the network threads.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::buffers::{Buffer, Buffers};
use super::connections::Connections;
use super::metrics::Metrics;
use super::plan::{Failure, RequestId};
use crate::artifact::{Bitmap, Chunk};
use crate::digest::{ArtifactId, Digest};
use crate::identity::NodeId;
use crate::protocol::peer::{
    Answer, Busy, CHUNK_HEAD, FRAME_HEAD, HaveAnswer, Reason, Request, Traced, body_len, chunk_head,
};
use crate::store::{Store, StoreError};
use crate::telemetry::trace::TraceParent;
use crate::transport::{RecvStream, StreamCode, TransportError};

/// Bytes between two reports of progress within a chunk.
const REPORT_EVERY: usize = 256 * 1024;

/// A peer that speaks another language is not asked again.
const MALFORMED: Failure = Failure::Forbidden;

/// What requests tell the driver of a fetch.
pub(super) enum Event {
    FirstByte(RequestId),
    Bytes(RequestId, u64),
    Verified(RequestId, u32),
    Bad(RequestId, u32),
    Store(StoreError),
    Finished(RequestId),
    Failed(RequestId, Failure),
    /// The request failed because of what others were given.
    Given(RequestId, Bitmap),
    /// The request found no slot.
    Busy(RequestId, Busy),
    Have(NodeId, HaveAnswer),
    NoHave(NodeId, Failure),
}

/// What every request of a fetch shares.
pub(super) struct Shared {
    pub(super) connections: Arc<Connections>,
    pub(super) store: Store,
    pub(super) buffers: Buffers,
    pub(super) metrics: Metrics,
    pub(super) artifact: ArtifactId,
    /// At which this node serves, if it does.
    pub(super) port: Option<NonZeroU16>,
    /// For a bitmap, as long as the plan waits for it: what both see end at once counts as one failure.
    pub(super) patience: Duration,
    /// Of the fetch.
    pub(super) context: TraceParent,
    pub(super) events: mpsc::Sender<Event>,
}

/// How a request ended that did not fail.
enum Ended {
    Whole,
    Given(Bitmap),
    Busy(Busy),
}

/// The holder that is asked.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) addrs: Vec<SocketAddr>,
    /// Of its part in the fetch.
    pub(super) context: TraceParent,
}

impl Shared {
    /// Asks for chunks and reports each, then the end. `wanted` is not empty.
    pub(super) async fn chunks(self: Arc<Self>, id: RequestId, peer: Peer, wanted: Vec<(u32, Chunk)>, fresh: bool) {
        let mut verifying = JoinSet::new();
        let ended = self.receive(id, &peer, &wanted, fresh, &mut verifying).await;
        // Every chunk that arrived is reported before the end is.
        while verifying.join_next().await.is_some() {}
        let event = match ended {
            Ok(Ended::Whole) => Event::Finished(id),
            Ok(Ended::Given(given)) => Event::Given(id, given),
            Ok(Ended::Busy(busy)) => Event::Busy(id, busy),
            Err(failure) => Event::Failed(id, failure),
        };
        self.report(event).await;
    }

    pub(super) async fn have(self: Arc<Self>, peer: Peer, known: Option<u32>) {
        let answer = tokio::time::timeout(self.patience, self.ask(&peer, Request::Have(self.artifact, known))).await;
        self.report(match answer.unwrap_or(Err(Failure::TimedOut)) {
            Ok((Answer::Have(have), ..)) => Event::Have(peer.node, have),
            Ok((other, ..)) => Event::NoHave(peer.node, unexpected(&other)),
            Err(failure) => Event::NoHave(peer.node, failure),
        })
        .await;
    }

    /// The envelope as the holder has it; nothing about it is verified. Or whom it names, because it is busy.
    pub(super) async fn manifest(&self, peer: &Peer) -> Result<Result<Bytes, Busy>, Failure> {
        match self.ask(peer, Request::Manifest(self.artifact)).await? {
            (Answer::Manifest { len }, _, mut recv) => {
                let mut envelope = vec![0; len];
                recv.read_exact(&mut envelope).await.map_err(|error| failure(&error))?;
                Ok(Ok(envelope.into()))
            }
            (Answer::Busy(busy), ..) => Ok(Err(busy)),
            (answer, ..) => Err(unexpected(&answer)),
        }
    }

    async fn report(&self, event: Event) {
        // Nobody listens once the fetch has ended.
        let _ = self.events.send(event).await;
    }

    /// Sends a request and reads the answer's frame; the stream offset behind it, and the stream.
    async fn ask(&self, peer: &Peer, request: Request) -> Result<(Answer, u64, RecvStream), Failure> {
        let connection = self.connections.get(peer.node, &peer.addrs).await.map_err(|error| {
            tracing::info!(node = %peer.node.short(), %error, "holder not reached");
            failure(&error)
        })?;
        let exchange = async {
            let (mut send, mut recv) = connection.open().await?;
            send.write(Traced { request, port: self.port, traceparent: peer.context.to_string() }.encode()).await?;
            send.finish()?;
            let mut head = [0; FRAME_HEAD];
            recv.read_exact(&mut head).await?;
            Ok::<_, TransportError>((head, recv))
        };
        let (head, mut recv) = exchange.await.map_err(|error| failure(&error))?;
        let mut body = vec![0; body_len(head).map_err(|_| MALFORMED)?];
        recv.read_exact(&mut body).await.map_err(|error| failure(&error))?;
        let answer = Answer::decode(head, &body).map_err(|_| MALFORMED)?;
        Ok((answer, (FRAME_HEAD + body.len()) as u64, recv))
    }

    async fn receive(
        self: &Arc<Self>,
        id: RequestId,
        peer: &Peer,
        wanted: &[(u32, Chunk)],
        fresh: bool,
        verifying: &mut JoinSet<()>,
    ) -> Result<Ended, Failure> {
        let asked = Instant::now();
        let indices = wanted.iter().map(|(index, _)| *index).collect();
        let request = if fresh { Request::FreshChunks } else { Request::Chunks };
        let (answer, base, mut recv) = self.ask(peer, request(self.artifact, indices)).await?;
        let expected: u64 = wanted.iter().map(|(_, chunk)| u64::from(chunk.encoded_len)).sum();
        match answer {
            Answer::Chunks { len } if len == expected => {}
            Answer::Given(given) if fresh => return Ok(Ended::Given(given)),
            Answer::Busy(busy) => return Ok(Ended::Busy(busy)),
            other => return Err(unexpected(&other)),
        }
        self.metrics.first_byte_seconds.observe(asked.elapsed().as_secs_f64());
        self.report(Event::FirstByte(id)).await;
        let mut landing = Landing::new(base, wanted, self.buffers.clone());
        let mut unreported = 0;
        while !landing.is_complete() {
            let Some((offset, piece)) = recv.read_piece().await.map_err(|error| failure(&error))? else {
                return Err(MALFORMED);
            };
            unreported += piece.len();
            let Ok(complete) = landing.place(offset, &piece) else {
                recv.stop(StreamCode::Malformed);
                return Err(MALFORMED);
            };
            for (index, chunk, buffer) in complete {
                self.verify(id, index, chunk, buffer, verifying);
            }
            if unreported >= REPORT_EVERY {
                self.report(Event::Bytes(id, unreported as u64)).await;
                unreported = 0;
            }
        }
        Ok(Ended::Whole)
    }

    /// Hashes and stores a chunk on a blocking thread.
    fn verify(self: &Arc<Self>, id: RequestId, index: u32, chunk: Chunk, buffer: Buffer, verifying: &mut JoinSet<()>) {
        let shared = self.clone();
        verifying.spawn_blocking(move || {
            let event = if Digest::of(&buffer) != chunk.digest {
                Event::Bad(id, index)
            } else {
                match shared.store.put_chunk(&chunk.digest, &buffer) {
                    Ok(_) => Event::Verified(id, index),
                    Err(error) => Event::Store(error),
                }
            };
            // Nobody listens once the fetch has ended.
            let _ = shared.events.blocking_send(event);
        });
    }
}

fn failure(error: &TransportError) -> Failure {
    match error {
        TransportError::Reset(StreamCode::Draining) => Failure::Draining,
        TransportError::Reset(_) | TransportError::Ended => Failure::Reset,
        TransportError::TimedOut(_) => Failure::TimedOut,
        _ => Failure::Disconnected,
    }
}

fn unexpected(answer: &Answer) -> Failure {
    match answer {
        Answer::Busy(busy) => Failure::Busy { retry_after: busy.retry_after },
        Answer::Refused(Reason::NotFound) => Failure::NotFound,
        Answer::Refused(Reason::Draining) => Failure::Draining,
        Answer::Refused(Reason::Forbidden) => Failure::Forbidden,
        _ => MALFORMED,
    }
}

/// Where the bytes of an answer belong: heads and chunks lie behind each other in an order that the manifest gives, so
/// every piece has its place whenever it arrives.
struct Landing {
    slots: Vec<Slot>,
    buffers: Buffers,
    missing: usize,
}

struct Slot {
    index: u32,
    chunk: Chunk,
    /// Stream offset of the head.
    begin: u64,
    head: [u8; CHUNK_HEAD],
    buffer: Option<Buffer>,
    filled: usize,
}

impl Slot {
    fn len(&self) -> usize {
        CHUNK_HEAD + self.chunk.encoded_len as usize
    }
}

/// The holder sends something else than was asked for.
struct Misplaced;

impl Landing {
    fn new(base: u64, wanted: &[(u32, Chunk)], buffers: Buffers) -> Self {
        let mut begin = base;
        let slots: Vec<Slot> = wanted
            .iter()
            .map(|(index, chunk)| {
                let slot = Slot { index: *index, chunk: *chunk, begin, head: [0; CHUNK_HEAD], buffer: None, filled: 0 };
                begin += slot.len() as u64;
                slot
            })
            .collect();
        Self { missing: slots.len(), slots, buffers }
    }

    fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Copies a piece to its place; the chunks that it completed.
    fn place(&mut self, mut offset: u64, mut piece: &[u8]) -> Result<Vec<(u32, Chunk, Buffer)>, Misplaced> {
        let mut complete = Vec::new();
        let mut at = self.slots.partition_point(|slot| slot.begin <= offset).checked_sub(1).ok_or(Misplaced)?;
        while !piece.is_empty() {
            let slot = self.slots.get_mut(at).ok_or(Misplaced)?;
            // Below one slot's length, by the choice of `at`, except behind the last slot.
            let inside = usize::try_from(offset - slot.begin).map_err(|_| Misplaced)?;
            let room = slot.len().checked_sub(inside).filter(|room| *room > 0).ok_or(Misplaced)?;
            let (now, later) = piece.split_at(room.min(piece.len()));
            slot.fill(inside, now, &self.buffers);
            if slot.filled == slot.len() {
                self.missing -= 1;
                complete.push(slot.complete()?);
            }
            offset += now.len() as u64;
            piece = later;
            at += 1;
        }
        Ok(complete)
    }
}

impl Slot {
    fn fill(&mut self, inside: usize, bytes: &[u8], buffers: &Buffers) {
        self.filled += bytes.len();
        let in_head = CHUNK_HEAD.saturating_sub(inside).min(bytes.len());
        let (head, content) = bytes.split_at(in_head);
        if !head.is_empty() {
            self.head[inside..inside + in_head].copy_from_slice(head);
        }
        if !content.is_empty() {
            let len = self.chunk.encoded_len as usize;
            let begin = inside + in_head - CHUNK_HEAD;
            let buffer = self.buffer.get_or_insert_with(|| buffers.take(len));
            buffer[begin..begin + content.len()].copy_from_slice(content);
        }
    }

    fn complete(&mut self) -> Result<(u32, Chunk, Buffer), Misplaced> {
        if self.head != chunk_head(self.index, self.chunk.encoded_len) {
            return Err(Misplaced);
        }
        let buffer = self.buffer.take().ok_or(Misplaced)?;
        Ok((self.index, self.chunk, buffer))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::artifact::Codec;

    fn chunk(content: &[u8]) -> Chunk {
        let len = content.len() as u32;
        Chunk { digest: Digest::of(content), encoded_len: len, decoded_len: len, codec: Codec::Raw }
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_land_in_their_place(
            lens in prop::collection::vec(1usize..3000, 1..6),
            cuts in prop::collection::vec(1usize..700, 1..40),
            base in 0u64..100,
            seed in any::<u64>(),
        ) {
            let contents: Vec<Vec<u8>> =
                lens.iter().enumerate().map(|(i, len)| (0..*len).map(|b| (b * 7 + i) as u8).collect()).collect();
            let wanted: Vec<(u32, Chunk)> = contents.iter().enumerate().map(|(i, c)| (i as u32 * 3, chunk(c))).collect();
            let mut stream = Vec::new();
            for ((index, chunk), content) in wanted.iter().zip(&contents) {
                stream.extend(chunk_head(*index, chunk.encoded_len));
                stream.extend(content);
            }
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at == stream.len() { break; }
                let end = (at + cut).min(stream.len());
                pieces.push((base + at as u64, stream[at..end].to_vec()));
                at = end;
            }
            use rand::{SeedableRng, seq::SliceRandom};
            pieces.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
            let mut landing = Landing::new(base, &wanted, Buffers::default());
            let mut landed = Vec::new();
            for (offset, piece) in &pieces {
                prop_assert!(!landing.is_complete());
                landed.extend(landing.place(*offset, piece).unwrap_or_else(|_| panic!("misplaced")));
            }
            prop_assert!(landing.is_complete());
            landed.sort_by_key(|(index, ..)| *index);
            for ((index, _, buffer), (i, content)) in landed.iter().zip(contents.iter().enumerate()) {
                prop_assert_eq!(*index, i as u32 * 3);
                prop_assert_eq!(&buffer[..], &content[..]);
            }
        }
    }

    #[test]
    fn another_chunk_than_the_one_asked_for_and_bytes_past_the_end_are_refused() {
        let content = b"content";
        let wanted = [(5, chunk(content))];
        let land = |head: [u8; CHUNK_HEAD], more: &[u8]| {
            let mut landing = Landing::new(0, &wanted, Buffers::default());
            landing.place(0, &[&head[..], content, more].concat()).is_ok()
        };
        assert!(land(chunk_head(5, 7), b""));
        assert!(!land(chunk_head(6, 7), b""));
        assert!(!land([0; CHUNK_HEAD], b""));
        assert!(!land(chunk_head(5, 7), b"more"));
        assert!(Landing::new(10, &wanted, Buffers::default()).place(9, b"x").is_err());
        assert!(Landing::new(0, &wanted, Buffers::default()).place(1 << 40, b"x").is_err());
    }
}
