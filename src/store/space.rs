//! Room on the disk: what is free, what stays free, and making more of it.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::evict::{self, Candidate};
use super::{Artifact, Change, Limits, State, Store, StoreError, Swept};
use crate::digest::ArtifactId;
use crate::identity::UnixTime;

/// The default reserve is the smaller of these.
const RESERVE_BYTES: u64 = 5 << 30;
const RESERVE_PART: u64 = 20;

/// Room that is lacking.
struct Shortage {
    bytes: u64,
    error: StoreError,
}

impl Store {
    /// Bytes of all chunks.
    pub fn usage(&self) -> u64 {
        self.shared.index.bytes()
    }

    /// Bytes that this process could still write to the store's file system.
    pub fn free_space(&self) -> Result<u64, StoreError> {
        let root = self.shared.layout.root();
        let free = free_space(root).map_err(|error| StoreError::io("look at free space of", root, error))?;
        self.shared.metrics.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        Ok(free)
    }

    pub(super) fn limits(&self) -> Limits {
        *self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the same keys of [`super::Config`], for this store's file system.
    pub fn limits_of(&self, max_bytes: Option<u64>, reserve_bytes: Option<u64>) -> Result<Limits, StoreError> {
        let root = self.shared.layout.root();
        let reserve =
            reserve(root, reserve_bytes).map_err(|error| StoreError::io("look at free space of", root, error))?;
        Ok(Limits { max_bytes, reserve })
    }

    /// From now on. What is over them goes when room is needed, or by [`Store::gc`].
    pub fn set_limits(&self, limits: Limits) {
        self.shared.metrics.limited(limits);
        *self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Makes room for `needed` bytes that are about to be put, by eviction if need be and if that is enough.
    #[cfg(test)]
    pub(super) fn make_room(&self, needed: u64) -> Result<Swept, StoreError> {
        let change = self.change();
        self.make_room_within(&change, needed)
    }

    pub(super) fn make_room_within(&self, change: &Change<'_>, needed: u64) -> Result<Swept, StoreError> {
        self.find_room(change, needed).inspect_err(|_| _ = self.shared.metrics.full.inc())
    }

    pub(super) fn find_room(&self, change: &Change<'_>, needed: u64) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        if self.shortage(needed)?.is_none() {
            return Ok(swept);
        }
        self.sweep_orphans(UnixTime::now(), &mut swept);
        let Some(shortage) = self.shortage(needed)? else { return Ok(swept) };
        let possible: u64 = self.inventory().iter().map(|candidate| candidate.bytes).sum();
        if possible < shortage.bytes {
            return Err(shortage.error);
        }
        self.evict(change, shortage.bytes, &mut swept);
        // Files that are still mapped give their space back later.
        self.shortage(needed)?.map_or(Ok(swept), |shortage| Err(shortage.error))
    }

    /// Evicts until `need` bytes are free or nothing is left that may go.
    pub(super) fn evict(&self, change: &Change<'_>, mut need: u64, swept: &mut Swept) {
        while need > 0 {
            // What one eviction frees depends on the others where chunks are shared, so look again after each round.
            let chosen = evict::decide(&self.inventory(), need);
            if chosen.is_empty() {
                return;
            }
            for id in chosen {
                let Ok(freed) = self.remove_within(change, &id) else { continue };
                tracing::info!(artifact = %id, freed_bytes = freed, "evicted");
                self.shared.metrics.evictions.inc();
                swept.evicted.push(id);
                self.shared.metrics.evicted_bytes.inc_by(freed);
                swept.freed_bytes += freed;
                need = need.saturating_sub(freed);
            }
        }
    }

    /// How far the store is over its limits now.
    pub(super) fn excess(&self) -> Result<u64, StoreError> {
        Ok(self.shortage(0)?.map_or(0, |shortage| shortage.bytes))
    }

    fn shortage(&self, needed: u64) -> Result<Option<Shortage>, StoreError> {
        let promised = needed.saturating_add(self.promised());
        self.shortage_of(promised)
    }

    fn shortage_of(&self, needed: u64) -> Result<Option<Shortage>, StoreError> {
        let (Limits { max_bytes, reserve }, free, used) = (self.limits(), self.free_space()?, self.usage());
        let on_disk = needed.saturating_add(reserve).saturating_sub(free);
        let max_bytes = max_bytes.unwrap_or(u64::MAX);
        let in_limit = needed.saturating_add(used).saturating_sub(max_bytes);
        let error = match on_disk >= in_limit {
            true => StoreError::NoSpace { needed, free, reserve },
            false => StoreError::OverLimit { needed, used, max_bytes },
        };
        let bytes = on_disk.max(in_limit);
        Ok((bytes > 0).then_some(Shortage { bytes, error }))
    }

    /// The reserve is checked for every chunk: somebody else may be filling the same disk.
    pub(super) fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        self.shortage_of(needed)?.map_or(Ok(()), |shortage| Err(shortage.error))
    }

    /// Bytes that the artifacts being fetched still need.
    fn promised(&self) -> u64 {
        let fetching = |artifact: &&Arc<Artifact>| artifact.is_held() && artifact.state() == State::Partial;
        self.artifacts().values().filter(fetching).map(|artifact| artifact.missing_bytes()).sum()
    }

    fn inventory(&self) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = self.artifacts().values().map(|artifact| candidate(artifact)).collect();
        candidates.sort_unstable_by_key(Candidate::order);
        let may_go = candidates.iter().enumerate().filter(|(_, candidate)| candidate.may_go());
        let ranks: HashMap<ArtifactId, usize> = may_go.map(|(rank, candidate)| (candidate.id, rank)).collect();
        self.shared.index.visit(|len, users| {
            // The last of its users, if all of them may go.
            let mut user_ranks = users.map(|artifact| ranks.get(&artifact.id()).copied());
            if let Some(Some(rank)) = user_ranks.try_fold(None, |last, rank| Some(last.max(Some(rank?)))) {
                candidates[rank].bytes += len;
            }
        });
        candidates
    }

    /// An error while writing, told apart by whether room would help.
    pub(super) fn write_error(&self, action: &'static str, path: &Path, needed: u64, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace {
                needed,
                free: free_space(self.shared.layout.root()).unwrap_or(0),
                reserve: self.limits().reserve,
            },
            _ => StoreError::io(action, path, error),
        }
    }
}

fn candidate(artifact: &Artifact) -> Candidate {
    Candidate {
        id: artifact.id(),
        bytes: 0,
        last_used: artifact.last_used(),
        revoked: artifact.is_revoked(),
        pinned: artifact.is_pinned(),
        in_use: artifact.is_held(),
    }
}

fn free_space(root: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(root)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What stays free on the file system of `root`.
pub(super) fn reserve(root: &Path, configured: Option<u64>) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(root)?;
    let size = stat.f_blocks.saturating_mul(stat.f_frsize);
    Ok(configured.unwrap_or_else(|| RESERVE_BYTES.min(size / RESERVE_PART)))
}
