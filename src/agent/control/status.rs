//! How the node is, and errors as the local API tells them.

use std::time::Instant;

use bytes::Bytes;
use tonic::Status;

use super::super::publish::{PublishError, PushError};
use super::Parts;
use super::callers::unread;
use crate::digest::ArtifactId;
use crate::local;
use crate::protocol::pb;
use crate::protocol::report::Transfer;
use crate::store::StoreError;

pub(super) async fn of(parts: &Parts) -> Result<pb::StatusReply, Status> {
    let store = parts.store.clone();
    let space = tokio::task::spawn_blocking(move || (store.list().len(), store.usage(), store.free_space())).await;
    let (artifacts, store_bytes, free) = space.map_err(|_| Status::internal("the store's thread panicked"))?;
    let policy = parts.trust.policy();
    let transfers = parts.fetching.transfers(Instant::now()).into_iter();
    Ok(pb::StatusReply {
        node: parts.node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: if parts.provider.is_draining() { "draining" } else { "ready" }.to_owned(),
        endpoints: vec![parts.addr.to_string()],
        metadata_server: parts.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        metadata_connected: parts.directory.is_connected(),
        discovery: parts.directory.mode().to_string(),
        connected_agents: u32::try_from(parts.directory.connected_agents()).unwrap_or(u32::MAX),
        artifacts: u32::try_from(artifacts).unwrap_or(u32::MAX),
        store_bytes,
        disk_free_bytes: free.map_err(|error| store_status(&error))?,
        policy_version: policy.as_ref().map_or(0, |policy| policy.version),
        policy_state: parts.trust.state().to_owned(),
        signers: policy.iter().flat_map(|policy| policy.signers_in_force()).map(|signer| signer.name.clone()).collect(),
        transfers: transfers.map(transfer).collect(),
    })
}

fn transfer(transfer: Transfer) -> pb::TransferStatus {
    pb::TransferStatus {
        artifact_id: Bytes::copy_from_slice(transfer.artifact.as_bytes()),
        bytes: transfer.done,
        bytes_total: transfer.total,
        holders: u32::try_from(transfer.holders.len()).unwrap_or(u32::MAX),
    }
}

pub(super) fn no_artifact(id: &ArtifactId) -> Status {
    Status::not_found(format!("artifact {id} is not on this node (see `warmd ls`)"))
}

pub(super) fn publish_status(error: &PublishError) -> Status {
    let message = local::chain(error);
    match error {
        PublishError::NoSigner | PublishError::LastGeneration => Status::failed_precondition(message),
        PublishError::Class { .. } => Status::permission_denied(message),
        PublishError::Snapshot(error) => error.unread().map_or_else(|| Status::invalid_argument(message), unread),
        PublishError::Manifest(_) => Status::invalid_argument(message),
        PublishError::Store(error) => store_status(error),
        PublishError::Push(error) => match error {
            PushError::Quota { .. } => Status::resource_exhausted(message),
            PushError::Stalled | PushError::Deadline => Status::deadline_exceeded(message),
            PushError::Thread => Status::internal(message),
            _ => Status::invalid_argument(message),
        },
    }
}

pub(super) fn store_status(error: &StoreError) -> Status {
    let message = local::chain(error);
    match error {
        StoreError::NoSpace { .. } | StoreError::OverLimit { .. } => Status::resource_exhausted(message),
        StoreError::NoArtifact(_) | StoreError::Missing(_) => Status::not_found(message),
        StoreError::Pinned(_) | StoreError::InUse(_) | StoreError::Incomplete { .. } => {
            Status::failed_precondition(message)
        }
        StoreError::Damaged(_) => Status::data_loss(message),
        StoreError::Directory { .. } | StoreError::Locked { .. } | StoreError::Io { .. } => Status::internal(message),
    }
}
