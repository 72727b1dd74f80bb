//! What a push has brought and no artifact has yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::Grant;
use super::{PublishError, PushError};
use crate::digest::Digest;
use crate::store::{Bringing, Store};

/// Bytes of each user in pushes that are going on. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct Unsealed(Arc<Mutex<HashMap<u32, u64>>>);

impl Unsealed {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of one push, until nobody writes for it any more: what no artifact has then need not be kept.
pub(super) struct Brought {
    store: Store,
    unsealed: Unsealed,
    grant: Grant,
    sent: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    bytes: u64,
    /// Those that were not there.
    chunks: Vec<(Digest, Bringing)>,
}

impl Brought {
    pub(super) fn new(store: Store, unsealed: Unsealed, grant: Grant) -> Self {
        Self { store, unsealed, grant, sent: Mutex::default() }
    }

    /// Counts a chunk before it is written.
    pub(super) fn count(&self, len: usize) -> Result<(), PushError> {
        let Grant { uid, push_bytes, .. } = self.grant;
        let mut unsealed = self.unsealed.lock();
        let bytes = unsealed.get(&uid).copied().unwrap_or(0).saturating_add(len as u64);
        if bytes > push_bytes {
            return Err(PushError::Quota { uid, push_bytes });
        }
        unsealed.insert(uid, bytes);
        self.sent().bytes += len as u64;
        Ok(())
    }

    /// Blocking.
    pub(super) fn put(&self, encoded: &[u8]) -> Result<(), PublishError> {
        let digest = Digest::of(encoded);
        if let Some(bringing) = self.store.put_new_chunk(&digest, encoded)? {
            self.sent().chunks.push((digest, bringing));
        }
        Ok(())
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        let Sent { bytes, chunks } = std::mem::take(&mut *self.sent());
        self.store.abandon(&chunks);
        let mut unsealed = self.unsealed.lock();
        let left = unsealed.get(&self.grant.uid).map_or(0, |all| all.saturating_sub(bytes));
        match left {
            0 => unsealed.remove(&self.grant.uid),
            left => unsealed.insert(self.grant.uid, left),
        };
    }
}
