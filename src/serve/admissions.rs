//! What the fleet has brought into a cache root, and whose signatures let it in: kept in its `.warmd`, so that a later
//! policy can be asked about it again.
//!
//! It counts as used once an engine was started after it was installed. What is revoked is taken away before the next start
//! in any case; while an engine runs, only what was not used, since the engine may still read the rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::quarantine::Release;
use super::records::{Records, RecordsError};
use super::target::Say;
use crate::artifact::RelPath;
use crate::digest::{ArtifactId, KeyId};
use crate::identity::{Policy, Refusal};
use crate::install::{CacheRoot, InstallError, LockError};
use crate::local::chain;

const FILE: &str = "admitted.json";
const LOCK: &str = "admitted.lock";

/// The newest stay.
const MAX_ADMISSIONS: usize = 4096;

/// For whoever installs into the root meanwhile.
const FOR_LOCK: Duration = Duration::from_secs(3);

/// For a file system that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// An artifact of which something was installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admission {
    pub(super) release: Release,
    /// Of the signers that the policy accepted.
    pub(super) keys: Vec<KeyId>,
    /// Entries that came with it; not those that were there before.
    pub(super) entries: BTreeSet<RelPath>,
    /// An engine was started since.
    #[serde(default)]
    used: bool,
}

impl Admission {
    pub(super) fn new(release: Release, keys: Vec<KeyId>, entries: BTreeSet<RelPath>) -> Self {
        Self { release, keys, entries, used: false }
    }

    fn is_of(&self, other: &Self) -> bool {
        self.release.artifact == other.release.artifact
    }
}

/// Of which admissions the policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// No engine is running that could have used them.
    Everybodys,
    NobodyUsed,
}

/// An artifact that was taken away again.
#[derive(Debug)]
pub(super) struct Withdrawn {
    pub(super) release: Release,
    pub(super) entries: usize,
    pub(super) reason: Refusal,
}

/// Nothing was taken away, or not all.
#[derive(Debug, thiserror::Error)]
pub(super) enum WithdrawError {
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Before it becomes visible: from now on it is known, whatever becomes of this process. Blocking.
pub(super) fn add(root: &Path, admission: Admission) -> Result<(), RecordsError> {
    let records = Records::make(root)?;
    let _lock = records.lock(LOCK)?;
    let mut all: Vec<Admission> = records.read(FILE)?.unwrap_or_default();
    let newest = match all.iter().position(|known| known.is_of(&admission)) {
        Some(at) => {
            let mut known = all.remove(at);
            known.entries.extend(admission.entries);
            Admission { used: false, ..known }
        }
        None => admission,
    };
    all.push(newest);
    let surplus = all.len().saturating_sub(MAX_ADMISSIONS);
    all.drain(..surplus);
    loop {
        match records.write(FILE, &all) {
            // Else nothing could be installed here any more.
            Err(RecordsError::TooLarge { .. }) if all.len() > 1 => drop(all.drain(..all.len() / 2)),
            written => return written,
        }
    }
}

/// An artifact, and the keys of the signers that let it in.
pub(super) type Used = (ArtifactId, Vec<KeyId>);

/// An engine is about to be started: what it may read, oldest first. Blocking.
pub(super) fn mark_used(root: &Path) -> Result<Vec<Used>, RecordsError> {
    let Some(records) = Records::find(root)? else { return Ok(Vec::new()) };
    let _lock = records.lock(LOCK)?;
    let mut all: Vec<Admission> = records.read(FILE)?.unwrap_or_default();
    if !all.iter().all(|admission| admission.used) {
        all.iter_mut().for_each(|admission| admission.used = true);
        records.write(FILE, &all)?;
    }
    Ok(all.into_iter().map(|admission| (admission.release.artifact, admission.keys)).collect())
}

/// Asks `policy` again; what it does not confirm is taken away. Blocking.
fn withdraw_now(root: &Path, policy: &Policy, whose: Whose) -> Result<Vec<Withdrawn>, WithdrawError> {
    let Some(records) = Records::find(root)? else { return Ok(Vec::new()) };
    let all: Vec<Admission> = records.read(FILE)?.unwrap_or_default();
    let refusal = |admission: &Admission| {
        let asked = whose == Whose::Everybodys || !admission.used;
        asked.then(|| policy.confirm(&admission.release.artifact, &admission.keys).err()).flatten()
    };
    if !all.iter().any(|admission| refusal(admission).is_some()) {
        return Ok(Vec::new());
    }
    // Whoever installs has this lock first and the record's after it.
    let cache = CacheRoot::open(root)?;
    let installing = cache.lock(Instant::now() + FOR_LOCK)?;
    let _lock = records.lock(LOCK)?;
    let all: Vec<Admission> = records.read(FILE)?.unwrap_or_default();
    let (mut kept, mut withdrawn) = (Vec::new(), Vec::new());
    for admission in all {
        let Some(reason) = refusal(&admission) else {
            kept.push(admission);
            continue;
        };
        let mut entries = 0;
        for entry in &admission.entries {
            entries += usize::from(cache.discard(&installing, entry)?);
        }
        cache.forget(&installing, &admission.release.identity, &admission.release.artifact)?;
        withdrawn.push(Withdrawn { release: admission.release, entries, reason });
    }
    records.write(FILE, &kept)?;
    Ok(withdrawn)
}

/// As [`withdraw_now`], off the runtime's threads, and told to the user.
pub(super) async fn withdraw(root: PathBuf, policy: Arc<Policy>, whose: Whose, say: &Say) -> Vec<Withdrawn> {
    let place = root.display().to_string();
    let working = tokio::task::spawn_blocking(move || withdraw_now(&root, &policy, whose));
    match timeout(PATIENCE, working).await {
        Ok(Ok(Ok(withdrawn))) => {
            for Withdrawn { release, entries, reason } in &withdrawn {
                let (id, family) = (release.artifact.short(), &release.family);
                say(&format!("{family}: {entries} entries of {id} taken away from {place}: {reason}"));
            }
            return withdrawn;
        }
        Ok(Ok(Err(error))) => say(&format!("REVOKED entries may be left in {place}: {}", chain(&error))),
        Ok(Err(_)) | Err(_) => say(&format!("REVOKED entries may be left in {place}: not done within {PATIENCE:?}")),
    }
    Vec::new()
}

/// Marks what is below `roots` as used, and tells it; a record that cannot be written costs a later removal while an engine
/// runs.
pub(super) async fn use_all(roots: Vec<PathBuf>) -> Vec<Used> {
    let marking = tokio::task::spawn_blocking(move || {
        let mark = |root: &PathBuf| {
            mark_used(root).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is used is not recorded");
                Vec::new()
            })
        };
        roots.iter().flat_map(mark).collect()
    });
    // It goes on by itself where it takes longer.
    timeout(PATIENCE, marking).await.map_or_else(|_| Vec::new(), Result::unwrap_or_default)
}

#[cfg(test)]
mod tests;
