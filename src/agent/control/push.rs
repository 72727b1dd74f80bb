//! A push as its caller sends it: one message after the other, few of them in memory, no wait without an end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::super::publish::{Grant, PublishError, Published, Publisher, Push, PushError};
use crate::protocol::pb::push_request::Request;
use crate::protocol::pb::{PushBase, PushReply, PushRequest, push_reply};

/// Longest silence of a caller; while it reads files it says so every few MiB.
const STALL: Duration = Duration::from_secs(120);

/// Chunks of one push that are being written: with the one that is coming, at most 20 MiB.
const WRITING: usize = 4;

/// From the first message to the signed artifact.
pub(super) async fn receive(
    publisher: &Arc<Publisher>,
    grant: Grant,
    requests: impl Stream<Item = Result<PushRequest, Status>> + Unpin,
    replies: &mpsc::Sender<Result<PushReply, Status>>,
) -> Result<Published, PublishError> {
    let mut caller = Caller { requests, ends: Instant::now() + publisher.push_deadline() };
    let Request::Begin(begin) = caller.next().await? else { return Err(PushError::Order.into()) };
    let mut push = Push::begin(publisher, grant, begin)?;
    let reply = push_reply::Reply::Base(PushBase { envelope: push.base() });
    replies.send(Ok(PushReply { reply: Some(reply) })).await.map_err(|_| PushError::Gone)?;
    let mut writing = JoinSet::new();
    let body = loop {
        match caller.next().await? {
            Request::Begin(_) => return Err(PushError::Order.into()),
            Request::Reading(_) => {}
            Request::Chunk(encoded) => {
                if writing.len() == WRITING {
                    written(&mut writing).await?;
                }
                writing.spawn_blocking(push.chunk(encoded)?);
            }
            Request::Seal(body) => break body,
        }
    };
    while !writing.is_empty() {
        written(&mut writing).await?;
    }
    tokio::task::spawn_blocking(move || push.seal(&body)).await.map_err(|_| PushError::Thread)?
}

/// Waits for one of them.
async fn written(writing: &mut JoinSet<Result<(), PublishError>>) -> Result<(), PublishError> {
    match writing.join_next().await {
        None => Ok(()),
        Some(written) => written.map_err(|_| PushError::Thread)?,
    }
}

struct Caller<S> {
    requests: S,
    ends: Instant,
}

impl<S: Stream<Item = Result<PushRequest, Status>> + Unpin> Caller<S> {
    async fn next(&mut self) -> Result<Request, PushError> {
        let stalled = Instant::now() + STALL;
        match timeout_at(stalled.min(self.ends), self.requests.next()).await {
            Ok(Some(Ok(request))) => request.request.ok_or(PushError::Order),
            Ok(Some(Err(_)) | None) => Err(PushError::Gone),
            Err(_) if stalled < self.ends => Err(PushError::Stalled),
            Err(_) => Err(PushError::Deadline),
        }
    }
}

#[cfg(test)]
mod tests;
