//! From this node's store to the origin.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt};

use super::{Origin, OriginError, Progress, blocking, layout};
use crate::artifact::Chunk;
use crate::digest::ArtifactId;
use crate::protocol::metadata::Summary;
use crate::store::{State, Store, StoreError};

/// What a push cost, in encoded bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    pub written_bytes: u64,
    /// Of chunks that the origin had.
    pub skipped_bytes: u64,
}

impl Origin {
    /// Writes what the origin lacks of a complete artifact. Its entry in the index comes last: after a failure, readers see
    /// nothing new, and the next push goes on where this one ended.
    pub async fn push(
        &self,
        store: &Store,
        id: ArtifactId,
        tell: &(dyn Fn(Progress) + Sync),
    ) -> Result<Pushed, OriginError> {
        // Held, so that it is not evicted while it is pushed.
        let held = store.hold(&id).ok_or(StoreError::NoArtifact(id))?;
        let missing = held.manifest().chunks.len() - held.progress().chunks;
        if missing > 0 || held.state() != State::Complete {
            return Err(StoreError::Incomplete { id, missing }.into());
        }
        let mut seen = HashSet::new();
        let mut chunks = held.manifest().chunks.clone();
        chunks.retain(|chunk| seen.insert(chunk.digest));
        let bytes_total = chunks.iter().map(|chunk| u64::from(chunk.encoded_len)).sum();
        let (origin, from) = (self.clone(), store.clone());
        let take = move |chunk| origin.clone().take(from.clone(), chunk);
        let mut going = stream::iter(chunks).map(take).buffer_unordered(self.parallel);
        let mut pushed = Pushed::default();
        while let Some(one) = going.next().await {
            let one = one?;
            pushed.written_bytes += one.written_bytes;
            pushed.skipped_bytes += one.skipped_bytes;
            tell(Progress { bytes: pushed.written_bytes + pushed.skipped_bytes, bytes_total });
        }
        self.objects.put(&layout::artifact(&id), held.signed().envelope().clone()).await?;
        let summary = Summary::of(held.signed(), held.content_id());
        self.objects.put(&layout::entry(&summary), summary.encode().into()).await?;
        Ok(pushed)
    }

    /// One of another length than it must have is written again.
    async fn take(self, store: Store, chunk: Chunk) -> Result<Pushed, OriginError> {
        let name = layout::chunk(&chunk.digest);
        let bytes = u64::from(chunk.encoded_len);
        if self.objects.size(&name).await? == Some(bytes) {
            return Ok(Pushed { written_bytes: 0, skipped_bytes: bytes });
        }
        let encoded = blocking(move || store.read_chunk(&chunk)).await?;
        self.objects.put(&name, encoded).await?;
        Ok(Pushed { written_bytes: bytes, skipped_bytes: 0 })
    }
}
