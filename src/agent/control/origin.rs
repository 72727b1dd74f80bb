//! The origin, by hand.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::Status;

use super::super::convert;
use super::super::holdings::summary;
use super::status::store_status;
use super::warm::warm_all;
use super::{PROGRESS_STEP, Parts};
use crate::artifact::Family;
use crate::digest::{ArtifactId, IdentityId};
use crate::local;
use crate::origin::{Origin, OriginError, Progress, Pushed};
use crate::protocol::pb;
use crate::transfer::{Direction, Holder};

pub(super) fn configured(parts: &Parts) -> Result<Origin, Status> {
    let none = || Status::failed_precondition("this agent has no origin: set `origin.url` in its configuration");
    parts.origin.clone().ok_or_else(none)
}

/// What may not be served to peers is not written either.
pub(super) async fn push(
    parts: Arc<Parts>,
    origin: Origin,
    id: ArtifactId,
    events: mpsc::Sender<Result<pb::OriginPushEvent, Status>>,
) {
    let told = std::sync::atomic::AtomicU64::new(0);
    let tell = |now: Progress| {
        let step = now.bytes / PROGRESS_STEP;
        if told.swap(step, std::sync::atomic::Ordering::Relaxed) != step {
            // A full queue drops a report of progress, nothing else.
            let _ = events.try_send(Ok(convert::pushing(now.bytes, now.bytes_total)));
        }
    };
    let count = |pushed: &Pushed| {
        if let Some(artifact) = parts.store.get(&id) {
            let family = artifact.manifest().identity.family();
            parts.transfer.bytes(family, Direction::Sent, Holder::Origin).inc_by(pushed.written_bytes);
        }
    };
    let event = match (parts.trust.may_serve(&parts.store))(&id) {
        true => {
            let pushed = origin.push(&parts.store, id, &tell).await.inspect(count);
            pushed.map(convert::pushed).map_err(|error| origin_status(&error))
        }
        false => Err(Status::permission_denied(format!("artifact {id} is revoked"))),
    };
    // The caller is gone: the artifact is pushed all the same.
    let _ = events.send(event).await;
}

pub(super) async fn pull(parts: Arc<Parts>, id: ArtifactId, events: mpsc::Sender<Result<pb::WarmEvent, Status>>) {
    let told = match parts.fetching.look_in_origin(id).await {
        Ok(wanted) => {
            warm_all(&parts, wanted, "", "the origin has no artifact and no identity of this id", &events).await
        }
        Err(failed) => events.send(Ok(convert::failed(None, failed))).await.map_err(drop),
    };
    if told.is_err() {
        tracing::debug!("caller of OriginPull went away; fetches go on");
    }
}

pub(super) async fn list(parts: &Parts, origin: &Origin, family: &str) -> Result<pb::OriginListReply, Status> {
    let family: Option<Family> = match family {
        "" => None,
        name => Some(name.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?),
    };
    let mut listed = origin.list().await.map_err(|error| origin_status(&error))?;
    listed.retain(|summary| family.as_ref().is_none_or(|family| *family == summary.family));
    let info = |summary| convert::info_of(summary, parts.store.get(&summary.artifact).as_deref());
    Ok(pb::OriginListReply { artifacts: listed.iter().map(info).collect() })
}

/// What this node has itself costs one question, anything else the index of its identity.
pub(super) async fn has(
    parts: &Parts,
    origin: &Origin,
    asked: &pb::OriginHasRequest,
) -> Result<pb::OriginHasReply, Status> {
    let id = convert::artifact_id(&asked.artifact_id)?;
    let identity = IdentityId::try_from(&asked.identity[..])
        .map_err(|_| Status::invalid_argument("`identity` is not 32 bytes"))?;
    let has = match parts.store.get(&id) {
        Some(artifact) => origin.has(&summary(&artifact)).await,
        None => origin.find(identity).await.map(|found| found.iter().any(|one| one.artifact == id)),
    };
    Ok(pb::OriginHasReply { has: has.map_err(|error| origin_status(&error))? })
}

fn origin_status(error: &OriginError) -> Status {
    let message = local::chain(error);
    match error {
        OriginError::Store(error) => store_status(error),
        OriginError::Missing(_) => Status::not_found(message),
        OriginError::Damaged(_) => Status::data_loss(message),
        OriginError::Deadline { .. } => Status::deadline_exceeded(message),
        OriginError::Open { .. } | OriginError::Failed { .. } => Status::unavailable(message),
        OriginError::Thread(_) => Status::internal(message),
    }
}
