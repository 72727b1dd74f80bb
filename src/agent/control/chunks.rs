//! Chunks for the installs of this node: on the socket that is theirs, and by gRPC.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::super::{convert, reload};
use super::Parts;
use super::status::{no_artifact, store_status};
use crate::lifecycle::{Shares, Tasks};
use crate::local::chunks::{receive_request, refuse, send_chunk};
use crate::local::{self, Callers, Connection, SocketConfig};
use crate::protocol::pb;
use crate::store::{Held, Store};
use crate::transfer::{Direction, Holder};

/// Chunks of one caller on their way to it: at most 16 MiB.
pub(super) const QUEUED: usize = 4;

/// Callers of one user that are answered at a time, and those that wait for it.
const ANSWERED: usize = 128;
const CONNECTED: usize = 512;

/// For a caller's request, and for it to take one chunk: its disk may be slow.
const PATIENCE: Duration = Duration::from_secs(60);

type Sender = mpsc::Sender<Result<pb::ChunkData, Status>>;

/// Without this socket chunks go by gRPC, which takes longer. Tells who may use it.
pub(in crate::agent) async fn listen(tasks: &Tasks, config: &SocketConfig, parts: Arc<Parts>) -> Option<Callers> {
    let config = SocketConfig { socket: local::chunk_socket(&config.socket), ..config.clone() };
    match local::Listener::bind(&config).await {
        Ok(listener) => {
            let mut listener = listener.at_most(CONNECTED);
            let callers = listener.callers().clone();
            tasks.spawn("chunks", async move {
                let incoming = std::pin::pin!(listener.incoming());
                serve(parts, incoming).await;
            });
            Some(callers)
        }
        Err(error) => {
            tracing::warn!(%error, "installs read chunks by gRPC");
            None
        }
    }
}

/// Answers the callers that come until there are no more.
async fn serve(parts: Arc<Parts>, mut incoming: impl Stream<Item = Connection> + Unpin) {
    let places = Shares::new(ANSWERED);
    while let Some(connection) = incoming.next().await {
        let (answering, places) = (parts.clone(), places.clone());
        parts.tasks.spawn("send chunks", async move {
            // Each before it ends some time.
            let _place = places.wait(connection.uid()).await;
            let (stream, _share) = connection.into_parts();
            if let Err(error) = answer(&answering, stream).await {
                tracing::debug!(%error, "a reader of chunks went away");
            }
        });
    }
}

async fn answer(parts: &Parts, stream: UnixStream) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let request = timeout(PATIENCE, receive_request(&mut from)).await??;
    let (held, indices) = match wanted(&parts.store, request) {
        Ok(wanted) => wanted,
        Err(status) => return timeout(PATIENCE, refuse(&mut to, status.message())).await?,
    };
    let (queue, mut queued) = mpsc::channel::<Result<pb::ChunkData, Status>>(QUEUED);
    let write = async {
        while let Some(chunk) = queued.recv().await {
            match chunk {
                Ok(chunk) => timeout(PATIENCE, send_chunk(&mut to, chunk.index, &chunk.data)).await??,
                Err(status) => return timeout(PATIENCE, refuse(&mut to, status.message())).await?,
            }
        }
        Ok(())
    };
    let mut nothing = [0];
    tokio::select! {
        ((), written) = async { tokio::join!(send(parts, &held, indices, queue), write) } => written,
        // It has nothing more to say: this is the end of it.
        _ = from.read(&mut nothing) => Ok(()),
    }
}

/// The artifact and the chunks of it that a caller asks for.
pub(super) fn wanted(store: &Store, request: pb::ReadChunksRequest) -> Result<(Held, Vec<u32>), Status> {
    let id = convert::artifact_id(&request.artifact_id)?;
    let held = store.hold(&id).ok_or_else(|| no_artifact(&id))?;
    let chunks = held.manifest().chunks.len();
    if request.indices.iter().any(|index| *index as usize >= chunks) || request.indices.len() > chunks {
        return Err(Status::invalid_argument("`indices` names a chunk that the artifact does not have"));
    }
    Ok((held, request.indices))
}

/// Sends each chunk as soon as it is here.
pub(super) async fn send(parts: &Parts, held: &Held, indices: Vec<u32>, out: Sender) {
    let patience = reload::now(&parts.config).fetch_deadline;
    if let Err(status) = send_all(parts, held, indices, &out, patience).await {
        // The caller is gone, or does not listen.
        let _ = timeout(PATIENCE, out.send(Err(status))).await;
    }
}

/// Waits at most for `patience` for a next chunk to come.
async fn send_all(
    parts: &Parts,
    held: &Held,
    indices: Vec<u32>,
    out: &Sender,
    patience: Duration,
) -> Result<(), Status> {
    let sent = parts.transfer.bytes(held.manifest().identity.family(), Direction::Sent, Holder::Local);
    let mut progress = held.subscribe();
    let mut waiting = indices;
    while !waiting.is_empty() {
        progress.borrow_and_update();
        let (here, later): (Vec<u32>, Vec<u32>) = waiting.into_iter().partition(|index| held.has(*index as usize));
        waiting = later;
        for index in here {
            let chunk = held.manifest().chunks[index as usize];
            let store = parts.store.clone();
            let read = tokio::task::spawn_blocking(move || store.read_chunk(&chunk)).await;
            let data = read.map_err(|_| Status::internal("the store's thread panicked"))?;
            let data = data.map_err(|error| store_status(&error))?;
            let len = data.len() as u64;
            match timeout(PATIENCE, out.send(Ok(pb::ChunkData { index, data }))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Status::deadline_exceeded("the caller takes no chunk")),
            }
            sent.inc_by(len);
        }
        if !waiting.is_empty() {
            tokio::select! {
                changed = progress.changed() => {
                    changed.map_err(|_| Status::aborted("the artifact was removed"))?;
                }
                () = out.closed() => return Ok(()),
                () = tokio::time::sleep(patience) => {
                    return Err(Status::deadline_exceeded("nobody fetches the artifact any more: ask for it again"));
                }
            }
        }
    }
    Ok(())
}
