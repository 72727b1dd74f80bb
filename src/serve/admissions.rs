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
use super::trust::Trust;
use crate::artifact::RelPath;
use crate::digest::{ArtifactId, KeyId};
use crate::identity::{Policy, Refusal};
use crate::install::{CacheRoot, InstallError, InstallLock, LockError};
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
    /// Of artifacts that were not taken away, or not whole.
    failed: Vec<WithdrawError>,
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
    let mut withdrawal = Withdrawal { damaged, ..Withdrawal::default() };
    if refused.is_empty() {
        return Ok(withdrawal);
    }
    // Whoever installs has this lock first and the records' after it.
    let cache = CacheRoot::open(root)?;
    let installing = cache.lock(Instant::now() + FOR_LOCK)?;
    for artifact in refused {
        let withdrawn = book.take(&artifact, |admission| {
            let Some(reason) = refusal(&admission) else { return Ok(None) };
            let entries = discard(&cache, &installing, &admission.entries)?;
            cache.forget(&installing, &admission.release.identity, &artifact)?;
            Ok::<_, WithdrawError>(Some(Withdrawn { release: admission.release, entries, reason }))
        });
        // What becomes of one does not keep the others.
        match withdrawn {
            Ok(withdrawn) => withdrawal.withdrawn.extend(withdrawn),
            Err(error) => withdrawal.failed.push(error),
        }
    }
    Ok(withdrawal)
}

/// Entries below `root` that came with what `trust` does not stand for any more, or that nobody knows whether it does: they
/// are nobody's to sign anew. Blocking.
pub(super) fn disowned(root: &Path, trust: &Trust) -> Result<BTreeSet<RelPath>, String> {
    let told = |error: RecordsError| chain(&error);
    let Some(book) = Book::find(root).map_err(told)? else { return Ok(BTreeSet::new()) };
    let Admissions { known, damaged } = book.all().map_err(told)?;
    if let Some(path) = damaged.first() {
        return Err(format!("what came with {} is not known any more, since it is damaged", path.display()));
    }
    let policy = trust.known();
    let confirms =
        |one: &Admission| policy.as_ref().is_ok_and(|policy| policy.confirm(&one.release.artifact, &one.keys).is_ok());
    Ok(known.into_iter().filter(|one| !confirms(one)).flat_map(|one| one.entries).collect())
}

/// All that can be; how many were there. The error is of the first that cannot.
fn discard(cache: &CacheRoot, installing: &InstallLock, entries: &BTreeSet<RelPath>) -> Result<usize, InstallError> {
    let discarded: Vec<Result<bool, InstallError>> =
        entries.iter().map(|entry| cache.discard(installing, entry)).collect();
    discarded.into_iter().try_fold(0, |count, discarded| Ok(count + usize::from(discarded?)))
}

/// Below these roots may be what is revoked: for this `reason` nobody can tell.
pub(super) async fn not_asked(roots: &[PathBuf], reason: &str, say: &Say) {
    for root in roots {
        let place = root.clone();
        let looking = tokio::task::spawn_blocking(move || Ok::<_, RecordsError>(Book::find(&place)?.is_some()));
        if let Ok(Ok(Ok(true))) = timeout(PATIENCE, looking).await {
            say(&format!("REVOKED entries may be left in {}: {reason}", root.display()));
        }
    }
}

/// As [`withdraw_now`], off the runtime's threads, and told to the user.
pub(super) async fn withdraw(root: PathBuf, policy: Arc<Policy>, whose: Whose, say: &Say) -> Vec<Withdrawn> {
    let place = root.display().to_string();
    let working = tokio::task::spawn_blocking(move || withdraw_now(&root, &policy, whose));
    match timeout(PATIENCE, working).await {
        Ok(Ok(Ok(Withdrawal { withdrawn, failed, damaged }))) => {
            for error in failed {
                say(&format!("REVOKED entries may be left in {place}: {}", chain(&error)));
            }
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
