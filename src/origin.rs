//! The coldest tier: an object store that holds the same signed artifacts as the nodes do.
//!
//! It is trusted with nothing. What is read is bounded before it is allocated and checked like what a peer sends: envelopes
//! by the policy, by whoever asks for them, and chunks by their digest, before they reach this node's store. Entries of the
//! index are hints.
//!
//! What is written appears in an order in which no reader finds an artifact that is not whole: chunks, envelope, index.
//! Nothing is ever changed into something else, so writers need no lock: two that push the same artifact write the same.

mod config;
mod layout;
mod metrics;
mod objects;
mod pull;
mod push;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

pub use self::config::{Cloud, InvalidUrl, OriginConfig, OriginUrl};
pub use self::metrics::Metrics;
use self::objects::Objects;
pub use self::pull::Pulled;
pub use self::push::Pushed;
use crate::artifact::MAX_ENVELOPE;
use crate::digest::{ArtifactId, IdentityId};
use crate::protocol::metadata::Summary;
use crate::store::StoreError;

/// Names that are read of one identity's index, and the newest of them that are told.
const MAX_NAMES: usize = 1_000;
const MAX_FOUND: usize = 64;

/// Artifacts in a listing of everything.
const MAX_LISTED: usize = 10_000;

/// Largest entry of the index in bytes: a summary with its longest subject.
const MAX_ENTRY: usize = 8 * 1024;

/// The origin did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("open origin {url}: {reason}")]
    Open { url: String, reason: String },
    #[error("the origin has no `{0}`")]
    Missing(String),
    /// Not what its name says, or larger than it can be.
    #[error("`{0}` in the origin is damaged: remove it there and push again")]
    Damaged(String),
    #[error("the origin did not answer for `{path}` within {seconds} s")]
    Deadline { path: String, seconds: u64 },
    #[error("the origin failed with `{path}`: {reason}")]
    Failed { path: String, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store's thread: {0}")]
    Thread(#[source] tokio::task::JoinError),
}

/// How far a push or pull is, in encoded bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    pub bytes_total: u64,
}

/// A handle; clones are the same origin.
#[derive(Debug, Clone)]
pub struct Origin {
    objects: Objects,
    parallel: usize,
}

impl Origin {
    /// Reads credentials from the environment; asks nothing of the store yet. A directory is made if it is not there, so
    /// this blocks. `None` without a URL.
    pub fn open(config: &OriginConfig, metrics: Metrics) -> Result<Option<Self>, OriginError> {
        let Some(url) = &config.url else { return Ok(None) };
        let store = url.store(config.deadline).map_err(|reason| OriginError::Open { url: url.to_string(), reason })?;
        Ok(Some(Self::with(store, config, metrics)))
    }

    fn with(store: Arc<dyn ObjectStore>, config: &OriginConfig, metrics: Metrics) -> Self {
        let parallel = usize::from(config.parallel.get());
        Self { objects: Objects::new(store, config.deadline, metrics), parallel }
    }

    /// The envelope of an artifact, not judged.
    pub async fn envelope(&self, id: &ArtifactId) -> Result<Bytes, OriginError> {
        self.objects.get(&layout::artifact(id), MAX_ENVELOPE).await
    }

    /// Whether an artifact was pushed to its end.
    pub async fn has(&self, summary: &Summary) -> Result<bool, OriginError> {
        Ok(self.objects.size(&layout::entry(summary)).await?.is_some())
    }

    /// What the index has of an identity: the newest, newest first.
    pub async fn find(&self, identity: IdentityId) -> Result<Vec<Summary>, OriginError> {
        let mut names = self.objects.list(&layout::entries(&identity), MAX_NAMES).await?;
        // Not every store lists in order.
        names.sort_unstable();
        let names = names.into_iter().filter(|name| layout::is_entry_of(name, Some(&identity))).take(MAX_FOUND);
        self.entries(names.collect()).await
    }

    /// What the index has, at most 10,000 artifacts, by identity and newest first within each.
    pub async fn list(&self) -> Result<Vec<Summary>, OriginError> {
        let mut names = self.objects.list(&layout::index(), MAX_LISTED).await?;
        names.sort_unstable();
        names.retain(|name| layout::is_entry_of(name, None));
        self.entries(names).await
    }

    /// In the order of the names. Entries that are gone or make no sense are left out.
    async fn entries(&self, names: Vec<Path>) -> Result<Vec<Summary>, OriginError> {
        let origin = self.clone();
        let read = move |name: Path| {
            let origin = origin.clone();
            async move {
                let entry = origin.objects.get(&name, MAX_ENTRY).await;
                (name, entry)
            }
        };
        let mut entries = stream::iter(names).map(read).buffered(self.parallel);
        let mut found = Vec::new();
        while let Some((name, entry)) = entries.next().await {
            match entry.map(|bytes| Summary::decode(&bytes)) {
                Ok(Ok(summary)) if layout::entry(&summary) == name => found.push(summary),
                Ok(_) => {
                    self.objects.metrics().bad_objects.inc();
                    tracing::warn!(entry = %name, "an entry of the origin's index makes no sense");
                }
                Err(OriginError::Missing(_) | OriginError::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Runs store work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, OriginError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(OriginError::Thread(error)),
    }
}

#[cfg(test)]
mod tests;
