//! What the fleet has brought into a cache root, and whose signatures let it in: kept in its `.warmd`, so that a later
//! policy can be asked about it again.
//!
//! It counts as used once an engine was started after it was installed. What is revoked is taken away before the next start
//! in any case; while an engine runs, only what was not used, since the engine may still read the rest.

mod book;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use self::book::{Admissions, Book};
use super::quarantine::Release;
use super::records::RecordsError;
use super::target::Say;
use crate::artifact::RelPath;
use crate::digest::{ArtifactId, KeyId};
use crate::identity::{Policy, Refusal};
use crate::install::{CacheRoot, InstallError, LockError};
use crate::local::chain;

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

/// What came of asking again.
#[derive(Debug, Default)]
struct Withdrawal {
    withdrawn: Vec<Withdrawn>,
    /// Records that cannot be read: nobody knows what came with them.
    damaged: Vec<PathBuf>,
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
    Book::make(root)?.add(admission)
}

/// An artifact, and the keys of the signers that let it in.
pub(super) type Used = (ArtifactId, Vec<KeyId>);

/// An engine is about to be started: what it may read, oldest first; marked as far as that can be written. Blocking.
pub(super) fn mark_used(root: &Path) -> Result<Vec<Used>, RecordsError> {
    let Some(book) = Book::find(root)? else { return Ok(Vec::new()) };
    let known = book.all()?.known;
    let marked = known.iter().filter(|admission| !admission.used).try_for_each(|admission| book.mark_used(admission));
    if let Err(error) = marked {
        tracing::warn!(%error, "what is used is not recorded");
    }
    Ok(known.into_iter().map(|admission| (admission.release.artifact, admission.keys)).collect())
}

/// Asks `policy` again; what it does not confirm is taken away. Blocking.
fn withdraw_now(root: &Path, policy: &Policy, whose: Whose) -> Result<Withdrawal, WithdrawError> {
    let Some(book) = Book::find(root)? else { return Ok(Withdrawal::default()) };
    let Admissions { known, damaged } = book.all()?;
    let refusal = |admission: &Admission| {
        let asked = whose == Whose::Everybodys || !admission.used;
        asked.then(|| policy.confirm(&admission.release.artifact, &admission.keys).err()).flatten()
    };
    let refused: Vec<ArtifactId> =
        known.iter().filter(|one| refusal(one).is_some()).map(|one| one.release.artifact).collect();
    let mut withdrawal = Withdrawal { withdrawn: Vec::new(), damaged };
    if refused.is_empty() {
        return Ok(withdrawal);
    }
    // Whoever installs has this lock first and the records' after it.
    let cache = CacheRoot::open(root)?;
    let installing = cache.lock(Instant::now() + FOR_LOCK)?;
    for artifact in refused {
        let withdrawn = book.take(&artifact, |admission| {
            let Some(reason) = refusal(&admission) else { return Ok(None) };
            let mut entries = 0;
            for entry in &admission.entries {
                entries += usize::from(cache.discard(&installing, entry)?);
            }
            cache.forget(&installing, &admission.release.identity, &artifact)?;
            Ok::<_, WithdrawError>(Some(Withdrawn { release: admission.release, entries, reason }))
        })?;
        withdrawal.withdrawn.extend(withdrawn);
    }
    Ok(withdrawal)
}

/// As [`withdraw_now`], off the runtime's threads, and told to the user.
pub(super) async fn withdraw(root: PathBuf, policy: Arc<Policy>, whose: Whose, say: &Say) -> Vec<Withdrawn> {
    let place = root.display().to_string();
    let working = tokio::task::spawn_blocking(move || withdraw_now(&root, &policy, whose));
    match timeout(PATIENCE, working).await {
        Ok(Ok(Ok(Withdrawal { withdrawn, damaged }))) => {
            for path in damaged {
                say(&format!(
                    "REVOKED entries may be left in {place}: what came with {path} is not known any more, since it is damaged; \
                     empty the cache, or remove that file where nothing of it was revoked",
                    path = path.display()
                ));
            }
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
                tracing::warn!(%error, "what the engine may read is not known: nobody is told when it is revoked");
                Vec::new()
            })
        };
        roots.iter().flat_map(mark).collect()
    });
    // It goes on by itself where it takes longer.
    timeout(PATIENCE, marking).await.map_or_else(
        |_| {
            tracing::warn!("what the engine may read was not read in time: nobody is told when it is revoked");
            Vec::new()
        },
        Result::unwrap_or_default,
    )
}

#[cfg(test)]
mod tests;
