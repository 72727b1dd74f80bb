//! Publishing what the agent does not see: this process reads the files, with its own rights, and hands chunks over as they
//! are made.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::artifact::{Base, BuildError, Chunk, ManifestError, Outputs, SignedManifest, Tree};
use crate::caches::SnapshotError;
use crate::digest::Digest;
use crate::local::{Client, ClientError, Publication, chain};
use crate::protocol::pb::push_reply::Reply;
use crate::protocol::pb::push_request::Request;
use crate::protocol::pb::{Published, PushBegin, PushReply, PushRequest};

/// Messages that wait for the agent to take them; a chunk has at most 1 MiB.
const QUEUE: usize = 2;

/// Bytes between two messages that tell how far the reading is.
const STEP: u64 = 8 * 1024 * 1024;

/// The agent gives no push more time.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{}", chain(.0))]
    Client(#[from] ClientError),
    #[error("the agent ended the call without an answer")]
    NoAnswer,
    #[error("not done within {DEADLINE:?}")]
    Deadline,
    #[error("the reading thread panicked")]
    Thread,
}

impl From<tonic::Status> for PushError {
    fn from(status: tonic::Status) -> Self {
        Self::Client(status.into())
    }
}

/// Captures the directory and has the agent sign, keep and announce it. `progress` is told now and then how many bytes were
/// read.
pub async fn push(
    client: &Client,
    publication: Publication,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Published, PushError> {
    let pushing = timeout(DEADLINE, run(client, publication, progress));
    pushing.await.unwrap_or(Err(PushError::Deadline))
}

/// Dropped, it ends the call: whoever still makes chunks for it finds nobody who takes them.
async fn run(
    client: &Client,
    publication: Publication,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Published, PushError> {
    let (requests, outgoing) = mpsc::channel(QUEUE);
    let identity = Bytes::copy_from_slice(publication.identity.id().as_bytes());
    let begin = Request::Begin(PushBegin { identity, subject: publication.subject.clone() });
    requests.send(message(begin)).await.map_err(|_| PushError::NoAnswer)?;
    let mut replies = client.push(ReceiverStream::new(outgoing)).await?;
    let Reply::Base(base) = reply(&mut replies).await? else { return Err(PushError::NoAnswer) };
    let base = Some(base.envelope).filter(|envelope| !envelope.is_empty());
    let base = base.map(SignedManifest::decode_unverified).transpose()?;

    // The call stays open until it is known here why there is no `seal`, so that the agent does not tell its own reason first.
    let _open = requests.clone();
    let output = Output { requests, sent: Mutex::default(), read: AtomicU64::new(0), progress };
    let mut capturing = tokio::task::spawn_blocking(move || capture(publication, base.as_ref(), &output));
    let mut answer = pin!(async {
        match reply(&mut replies).await? {
            Reply::Published(published) => Ok(published),
            Reply::Base(_) => Err(PushError::NoAnswer),
        }
    });
    let (captured, published) = tokio::select! {
        captured = &mut capturing => match captured.map_err(|_| PushError::Thread)? {
            // The agent says why it takes no more.
            Err(PushError::NoAnswer) => return Err(answer.await.err().unwrap_or(PushError::NoAnswer)),
            captured => (captured?, answer.await?),
        },
        published = &mut answer => {
            let published = published?;
            (capturing.await.map_err(|_| PushError::Thread)??, published)
        }
    };
    Ok(Published { skipped: captured, ..published })
}

fn message(request: Request) -> PushRequest {
    PushRequest { request: Some(request) }
}

async fn reply(replies: &mut Streaming<PushReply>) -> Result<Reply, PushError> {
    replies.message().await?.and_then(|reply| reply.reply).ok_or(PushError::NoAnswer)
}

/// What was left out; the agent has everything else by then.
fn capture<P: Fn(u64) + Sync>(
    publication: Publication,
    base: Option<&SignedManifest>,
    output: &Output<P>,
) -> Result<Vec<String>, PushError> {
    // The agent keeps all of it until the call ends.
    let base = base.map(|base| Base { manifest: base.manifest(), has_chunk: &|_| true });
    let store = |chunk: &Chunk, encoded: &[u8]| output.chunk(chunk, encoded);
    let progress = |bytes| output.read(bytes);
    let tree = Tree::open(&publication.directory).map_err(|error| SnapshotError::Scan(error.into()))?;
    let taken = match publication.capture(&tree, base.as_ref(), &Outputs { store: &store, progress: &progress }) {
        Err(SnapshotError::Build(BuildError::Sink(_))) => return Err(PushError::NoAnswer),
        taken => taken?,
    };
    let (draft, skipped) = publication.draft(taken);
    let seal = Request::Seal(draft.encode()?);
    output.requests.blocking_send(message(seal)).map_err(|_| PushError::NoAnswer)?;
    Ok(skipped)
}

/// From the threads that read to the call.
struct Output<P> {
    requests: mpsc::Sender<PushRequest>,
    /// A tree that changes is read again, and most of its chunks are the same.
    sent: Mutex<HashSet<Digest>>,
    read: AtomicU64,
    progress: P,
}

impl<P: Fn(u64)> Output<P> {
    /// Waits until the agent has room for it.
    fn chunk(&self, chunk: &Chunk, encoded: &[u8]) -> std::io::Result<()> {
        if !self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk.digest) {
            return Ok(());
        }
        let chunk = message(Request::Chunk(Bytes::copy_from_slice(encoded)));
        self.requests.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn read(&self, bytes: u64) {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        let now = before + bytes;
        if before / STEP != now / STEP {
            // Where chunks wait, the agent knows that there is somebody.
            let _ = self.requests.try_send(message(Request::Reading(now)));
            (self.progress)(now);
        }
    }
}

#[cfg(test)]
mod tests;
