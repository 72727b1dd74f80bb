//! Why a request was not answered, as a status and as a label.

use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::identity::NodeId;
use crate::metadata::backend::shared::{ChangeError, StoreError};
use crate::metadata::metrics::Outcome;
use crate::metadata::registry::RegistryError;
use crate::metadata::room::{RETRY_AFTER, RETRY_AFTER_MS};
use crate::metadata::trust::PutError;
use crate::metadata::watch::WatchError;
use crate::protocol::ProtocolError;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(in crate::metadata) enum ServiceError {
    #[error("no client certificate")]
    NoCaller,
    #[error("{caller} must not speak for {node}")]
    NotYours { caller: NodeId, node: NodeId },
    #[error("{0} has no lease here: it announces first")]
    NoLease(NodeId),
    #[error("a loopback endpoint from a caller on another machine")]
    Loopback,
    #[error("too many requests at once: come again later")]
    Crowded,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Trust(PutError),
}

impl From<PutError> for ServiceError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Store(error) => Self::Store(error),
            other => Self::Trust(other),
        }
    }
}

impl From<ChangeError> for ServiceError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Registry(error) => Self::Registry(error),
            ChangeError::Store(error) => Self::Store(error),
        }
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let text = error.to_string();
        match error {
            ServiceError::NoCaller => Self::unauthenticated(text),
            ServiceError::Crowded => {
                let mut status = Self::unavailable(text);
                status.metadata_mut().insert(RETRY_AFTER_MS, MetadataValue::from(RETRY_AFTER.as_millis() as u64));
                status
            }
            ServiceError::NoLease(_) => Self::failed_precondition(text),
            ServiceError::NotYours { .. } => Self::permission_denied(text),
            ServiceError::Loopback | ServiceError::Protocol(_) => Self::invalid_argument(text),
            ServiceError::Registry(error) => match error {
                RegistryError::OldEpoch { .. } | RegistryError::Ended | RegistryError::Transition { .. } => {
                    Self::failed_precondition(text)
                }
                RegistryError::Overtaken { .. } => Self::aborted(text),
                RegistryError::Full { .. } => Self::resource_exhausted(text),
            },
            ServiceError::Watch(error) => match error {
                WatchError::PerCaller(_) | WatchError::Total(_) => Self::resource_exhausted(text),
                WatchError::Closed => Self::unavailable(text),
            },
            ServiceError::Store(_) | ServiceError::Trust(PutError::Keep(_) | PutError::Store(_)) => {
                Self::unavailable(text)
            }
            ServiceError::Trust(PutError::NoRoot | PutError::Refused(_)) => Self::failed_precondition(text),
        }
    }
}

impl ServiceError {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::NoCaller | Self::NotYours { .. } | Self::NoLease(_) => Outcome::Refused,
            Self::Loopback | Self::Protocol(_) => Outcome::Invalid,
            Self::Crowded => Outcome::Crowded,
            Self::Registry(RegistryError::Full { .. }) => Outcome::Full,
            Self::Registry(_) => Outcome::Refused,
            Self::Watch(WatchError::PerCaller(_) | WatchError::Total(_)) => Outcome::Full,
            Self::Trust(PutError::NoRoot | PutError::Refused(_)) => Outcome::Refused,
            Self::Watch(WatchError::Closed) | Self::Store(_) | Self::Trust(_) => Outcome::Unavailable,
        }
    }
}
