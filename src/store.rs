//! The chunk store of a node: chunks by digest, artifacts complete and partial, eviction, archives.
//!
//! One process has it open at a time. What is had is derived from which chunk files exist, so no record of it can be wrong:
//! a chunk file gets its name only when it is complete. Chunks are not synced as they come; they survive the death of the
//! process, and after another boot each is hashed before it is used, so a power cut costs chunks, never correctness.
//!
//! Chunks are shared: one belongs to every artifact whose manifest names it and goes with the last of them. What was read
//! stays readable after it was deleted.
//!
//! Everything here that does I/O blocks: call it from a blocking thread.
//!
//! Locks, in the order in which they are taken: `syncing` (one manifest is being synced), `Change` (one change to the set
//! of artifacts at a time), the map of artifacts, a shard of the index. Reading and putting chunks takes only the last, for a
//! moment.

mod archive;
mod artifact;
mod change;
mod chunks;
pub mod evict;
mod index;
mod layout;
mod metrics;
mod open;
mod sealed;
mod space;
mod sweep;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use archive::ArchiveError;
pub use artifact::{Artifact, Held, Progress, Role, State};
pub use index::Bringing;
pub use metrics::Metrics;
pub use sweep::{Report, Swept};

use self::index::Index;
use self::layout::Layout;
use crate::digest::{ArtifactId, Digest, IdentityId};
use crate::identity::UnixTime;

/// Where the store is and how much it may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A directory of its own, mode 0700; made if it is not there.
    pub directory: PathBuf,
    /// Most bytes of chunks. Absent: only the disk bounds it.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Bytes that stay free on the file system. Absent: 5 GiB or 5 % of it, whichever is smaller.
    #[serde(default)]
    pub reserve_bytes: Option<u64>,
    /// A partial artifact that nobody went on fetching for this long is removed.
    #[serde(default = "three_days", with = "humantime_serde")]
    pub partial_max_age: Duration,
    /// A chunk of no artifact is kept this long: its manifest may be still to come.
    #[serde(default = "one_hour", with = "humantime_serde")]
    pub orphan_grace: Duration,
}

fn three_days() -> Duration {
    Duration::from_secs(3 * 24 * 3600)
}

fn one_hour() -> Duration {
    Duration::from_secs(3600)
}

impl Config {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            max_bytes: None,
            reserve_bytes: None,
            partial_max_age: three_days(),
            orphan_grace: one_hour(),
        }
    }
}

/// The store could not do what was asked; nothing that it had is lost by that.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store directory {path} {problem}: {mend}")]
    Directory { path: PathBuf, problem: &'static str, mend: String },
    #[error("store {path} is in use by process {pid}: stop that, or give this one a directory of its own")]
    Locked { path: PathBuf, pid: String },
    #[error(
        "{needed} bytes are needed; the disk has {free} free, of which {reserve} stay free: free some of it, \
         or lower `store.reserve_bytes`"
    )]
    NoSpace { needed: u64, free: u64, reserve: u64 },
    #[error("{needed} bytes are needed; the store holds {used} of at most {max_bytes}: raise `store.max_bytes`")]
    OverLimit { needed: u64, used: u64, max_bytes: u64 },
    #[error("chunk {0} is not in the store")]
    Missing(Digest),
    /// It is deleted now: fetch it again.
    #[error("chunk {0} was damaged on disk")]
    Damaged(Digest),
    #[error("artifact {0} is not in the store")]
    NoArtifact(ArtifactId),
    #[error("artifact {id} lacks {missing} chunks")]
    Incomplete { id: ArtifactId, missing: usize },
    #[error("artifact {0} is pinned")]
    Pinned(ArtifactId),
    #[error("artifact {0} is in use")]
    InUse(ArtifactId),
    #[error("{action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl StoreError {
    /// Room would help.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::OverLimit { .. })
    }

    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// How much the store may hold, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    max_bytes: Option<u64>,
    /// What stays free on the file system.
    reserve: u64,
}

/// A handle; clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    layout: Layout,
    config: Config,
    limits: Mutex<Limits>,
    /// The id of this boot.
    boot: String,
    index: Index,
    artifacts: RwLock<HashMap<ArtifactId, Arc<Artifact>>>,
    syncing: Mutex<()>,
    changing: Mutex<()>,
    changes: watch::Sender<u64>,
    /// Numbers of files in `tmp` and `trash`.
    sequence: AtomicU64,
    metrics: Metrics,
    _lock: crate::durable::Lock,
}

/// The right to change the set of artifacts.
type Change<'a> = MutexGuard<'a, ()>;

impl Store {
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Most bytes of chunks; `None`: only the disk bounds it.
    pub fn max_bytes(&self) -> Option<u64> {
        self.limits().max_bytes
    }

    /// Bytes that stay free on the file system.
    pub fn reserve(&self) -> u64 {
        self.limits().reserve
    }

    pub fn get(&self, id: &ArtifactId) -> Option<Arc<Artifact>> {
        self.artifacts().get(id).cloned()
    }

    /// [`Store::get`] for one who needs it to stay.
    pub fn hold(&self, id: &ArtifactId) -> Option<Held> {
        self.artifacts().get(id).map(Held::new)
    }

    /// In order of ids.
    pub fn list(&self) -> Vec<Arc<Artifact>> {
        let mut list: Vec<Arc<Artifact>> = self.artifacts().values().cloned().collect();
        list.sort_unstable_by_key(|artifact| artifact.id());
        list
    }

    /// Of the complete artifacts of this identity and subject the one of the highest generation that `is_ours`, which is
    /// asked of the newest first.
    pub fn latest(
        &self,
        identity: &IdentityId,
        subject: &str,
        is_ours: impl Fn(&Artifact) -> bool,
    ) -> Option<Arc<Artifact>> {
        let fits = |artifact: &&Arc<Artifact>| {
            artifact.state() == State::Complete
                && artifact.identity() == *identity
                && artifact.manifest().subject == subject
        };
        let mut found: Vec<Arc<Artifact>> = self.artifacts().values().filter(fits).cloned().collect();
        found.sort_unstable_by_key(|one| Reverse((one.manifest().generation, one.manifest().created, one.id())));
        found.into_iter().find(|artifact| is_ours(artifact))
    }

    /// Changes whenever an artifact comes, goes, becomes complete or ceases to be.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Notes that an artifact was used, for the order of eviction.
    pub fn touch(&self, artifact: &Artifact, now: UnixTime) {
        artifact.used_at(now);
        open::set_last_used(&self.manifest_path(artifact), now);
    }

    fn manifest_path(&self, artifact: &Artifact) -> PathBuf {
        match artifact.state() {
            State::Complete => self.shared.layout.manifest(&artifact.id()),
            State::Partial | State::Removed => self.shared.layout.partial(&artifact.id()),
        }
    }

    fn change(&self) -> Change<'_> {
        locked(&self.shared.changing)
    }

    fn changed(&self, _: &Change<'_>) {
        self.shared.changes.send_modify(|version| *version += 1);
        self.observe();
        let states: Vec<State> = self.artifacts().values().map(|artifact| artifact.state()).collect();
        let count = |state| states.iter().filter(|one| **one == state).count() as i64;
        self.shared.metrics.complete.set(count(State::Complete));
        self.shared.metrics.partial.set(count(State::Partial));
    }

    fn observe(&self) {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.shared.metrics.bytes.set(signed(self.shared.index.bytes()));
        self.shared.metrics.chunks.set(signed(self.shared.index.chunks()));
    }

    fn artifacts(&self) -> RwLockReadGuard<'_, HashMap<ArtifactId, Arc<Artifact>>> {
        self.shared.artifacts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn artifacts_mut(&self) -> RwLockWriteGuard<'_, HashMap<ArtifactId, Arc<Artifact>>> {
        self.shared.artifacts.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> u64 {
        self.shared.sequence.fetch_add(1, Ordering::Relaxed)
    }
}

/// A panic elsewhere must not take the store down: nothing here is left half-changed by one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
