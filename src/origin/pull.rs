//! From the origin into this node's store, where peers find it.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt};

use super::{Origin, OriginError, Progress, blocking, layout};
use crate::artifact::{Admitted, Chunk};
use crate::digest::Digest;
use crate::store::Store;

/// What a pull cost, in encoded bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulled {
    pub read_bytes: u64,
    /// This node had them before.
    pub reused_bytes: u64,
}

impl Origin {
    /// Brings all chunks of an admitted artifact into the store and seals it. What arrived before a failure stays there,
    /// and the next attempt, here or from peers, resumes with it. The caller brings the deadline for the whole.
    pub async fn pull(
        &self,
        store: &Store,
        admitted: Admitted,
        tell: &(dyn Fn(Progress) + Sync),
    ) -> Result<Pulled, OriginError> {
        let id = admitted.id();
        let begun = store.clone();
        // Held, so that it is not evicted while it is pulled.
        let held = blocking(move || begun.begin(admitted)).await?;
        let bytes_total = held.manifest().wire_size();
        let chunks = held.manifest().chunks.iter().enumerate();
        let mut missing: Vec<Chunk> = chunks.filter(|(index, _)| !held.has(*index)).map(|(_, chunk)| *chunk).collect();
        let reused_bytes = bytes_total - missing.iter().map(|chunk| u64::from(chunk.encoded_len)).sum::<u64>();
        let mut seen = HashSet::new();
        missing.retain(|chunk| seen.insert(chunk.digest));
        let (origin, into) = (self.clone(), store.clone());
        let bring = move |chunk| origin.clone().bring(into.clone(), chunk);
        let mut coming = stream::iter(missing).map(bring).buffer_unordered(self.parallel);
        let mut read_bytes = 0;
        tell(Progress { bytes: reused_bytes, bytes_total });
        while let Some(bytes) = coming.next().await {
            read_bytes += bytes?;
            tell(Progress { bytes: held.progress().bytes, bytes_total });
        }
        let sealed = store.clone();
        blocking(move || sealed.seal(&id)).await?;
        Ok(Pulled { read_bytes, reused_bytes })
    }

    /// Its encoded bytes.
    async fn bring(self, store: Store, chunk: Chunk) -> Result<u64, OriginError> {
        let name = layout::chunk(&chunk.digest);
        let encoded = self.objects.get(&name, chunk.encoded_len as usize).await?;
        let kept = blocking(move || match Digest::of(&encoded) == chunk.digest {
            true => store.put_chunk(&chunk.digest, &encoded).map(|_| true),
            false => Ok(false),
        });
        match kept.await? {
            true => Ok(u64::from(chunk.encoded_len)),
            false => {
                self.objects.metrics().bad_objects.inc();
                Err(OriginError::Damaged(name.to_string()))
            }
        }
    }
}
