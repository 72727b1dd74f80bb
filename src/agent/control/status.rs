//! Errors as the local API tells them.

use tonic::Status;

use super::super::publish::{PublishError, PushError};
use crate::digest::ArtifactId;
use crate::local;
use crate::store::StoreError;

pub(super) fn no_artifact(id: &ArtifactId) -> Status {
    Status::not_found(format!("artifact {id} is not on this node (see `warmd ls`)"))
}

pub(super) fn publish_status(error: &PublishError) -> Status {
    let message = local::chain(error);
    match error {
        PublishError::NoSigner => Status::failed_precondition(message),
        PublishError::Snapshot(_) | PublishError::Manifest(_) => Status::invalid_argument(message),
        PublishError::Store(error) => store_status(error),
        PublishError::Push(error) => match error {
            PushError::Busy => Status::resource_exhausted(message),
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
