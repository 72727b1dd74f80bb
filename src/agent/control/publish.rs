//! Publishing what the agent reads itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tonic::Status;

use super::super::convert;
use super::super::publish::Grant;
use super::status::publish_status;
use super::turns::Turn;
use super::{ANNOUNCE_TIMEOUT, PROGRESS_STEP, Parts};
use crate::artifact::Tree;
use crate::local::Publication;
use crate::protocol::pb;

/// Of what `tree` holds; the turn ends with the reading.
pub(super) async fn publish(
    parts: Arc<Parts>,
    publication: Publication,
    tree: Tree,
    (grant, turn): (Grant, Turn),
    events: mpsc::Sender<Result<pb::PublishEvent, Status>>,
) {
    let (worker, publishing) = (events.clone(), parts.clone());
    let published = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let read = AtomicU64::new(0);
        let progress = |bytes| {
            let before = read.fetch_add(bytes, Ordering::Relaxed);
            let now = before + bytes;
            if before / PROGRESS_STEP != now / PROGRESS_STEP {
                // A full queue drops a report of progress, nothing else.
                let _ = worker.try_send(Ok(convert::reading(now, 0)));
            }
        };
        publishing.publisher.publish(publication, &tree, grant, &progress)
    });
    let event = match published.await {
        Ok(Ok((published, skipped))) => {
            // Who asks right afterwards finds it.
            parts.holdings.settle(ANNOUNCE_TIMEOUT).await;
            Ok(pb::publish_event::Event::Published(convert::published(published, skipped)))
        }
        Ok(Err(error)) => Err(publish_status(&error)),
        Err(_) => Err(Status::internal("the publishing thread panicked")),
    };
    // The caller is gone: the artifact is published all the same.
    let _ = events.send(event.map(|event| pb::PublishEvent { event: Some(event) })).await;
}
