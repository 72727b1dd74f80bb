//! What caches are on disk: which kinds there are, what decides whether entries of one can be used elsewhere, which files
//! of a directory belong to an artifact, and which of them are installed as one.
//!
//! [`CacheFamily`] describes a kind, [`survey()`] looks what of it a root holds, [`snapshot_subject`] captures that;
//! [`snapshot`] captures a directory that the user names.
//!
//! A [`snapshot`] is consistent: every file is read once while its identity, size and times stay the same, and the tree
//! looks the same after the reading as before. A tree that keeps changing is an error, never a torn artifact.

pub mod directories;
mod environment;
mod facts;
mod family;
mod kind;
mod label;
pub mod launch;
mod pattern;
mod relocation;
mod scan;
mod survey;

pub use directories::{Directories, DirectoriesError};
pub use environment::Environment;
pub use facts::{Fact, Facts, Interpreter, InterpreterError, Known, Probe, ProbeError, Probed, name_of_gpu};
pub use family::{CacheFamily, IdentityError, Place, Unit};
pub use kind::{KindError, check_captured, check_file, check_kind};
pub use label::FamilyName;
pub use launch::Launch;
pub use relocation::{GroupError, MAX_GROUP, Relocation, expand, normalise};
pub use scan::{Found, ScanError, ScanRules, Special, scan};
pub use survey::{Entry, Selection, Subject, Survey, snapshot_subject, survey};

use std::time::Duration;

use crate::artifact::{Base, BuildError, Built, Outputs, RelPath, Tree, TreeError, build};

/// The directory that warmd keeps for itself in every cache root: in no artifact.
pub const CONTROL: &str = ".warmd";

/// Readings of a tree that keeps changing before [`snapshot`] gives up, and the pause between them, doubled each time.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// A directory could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("{directory}: still changing after {ATTEMPTS} readings ({changed}); publish when nothing writes to it", directory = .directory.display())]
    Unstable { directory: std::path::PathBuf, changed: String },
}

/// A captured directory.
#[derive(Debug)]
pub struct Snapshot {
    pub built: Built,
    /// Sorted; each is installed by one rename.
    pub entries: Vec<RelPath>,
    /// What was left out, with the reason.
    pub skipped: Vec<String>,
}

impl SnapshotError {
    /// What this process does not read, if that is the reason.
    pub fn unread(&self) -> Option<&TreeError> {
        match self {
            Self::Scan(ScanError::Tree(error)) | Self::Build(BuildError::Tree(error)) => Some(error),
            _ => None,
        }
    }
}

/// Captures all of `tree`. Blocking: for threads that may wait. Chunks may reach `outputs` that the result does not use, if
/// the tree changed in the meantime.
pub fn snapshot(
    tree: &Tree,
    rules: &ScanRules,
    base: Option<&Base<'_>>,
    outputs: &Outputs<'_>,
) -> Result<Snapshot, SnapshotError> {
    capture(tree, || scan(tree, rules), base, outputs)
}

/// Captures what `look` finds, once it finds the same twice.
fn capture(
    tree: &Tree,
    look: impl Fn() -> Result<Found, ScanError>,
    base: Option<&Base<'_>>,
    outputs: &Outputs<'_>,
) -> Result<Snapshot, SnapshotError> {
    let mut changed = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
        }
        let before = look()?;
        let built = match build(&before.files, base, outputs) {
            Ok(built) => built,
            Err(BuildError::Changed(path)) => {
                changed = format!("last: `{path}`");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let after = look()?;
        if let Some(path) = first_difference(&before, &after) {
            changed = format!("last: `{path}`");
            continue;
        }
        return Ok(Snapshot { built, entries: before.entries, skipped: before.skipped });
    }
    Err(SnapshotError::Unstable { directory: tree.path().to_owned(), changed })
}

fn first_difference<'f>(before: &'f Found, after: &'f Found) -> Option<&'f RelPath> {
    let differ = before.files.iter().zip(&after.files).find(|(a, b)| a.path != b.path || a.stamp != b.stamp);
    let longer = if before.files.len() > after.files.len() { before } else { after };
    differ
        .map(|(a, b)| if a.path <= b.path { &a.path } else { &b.path })
        .or_else(|| longer.files.get(before.files.len().min(after.files.len())).map(|file| &file.path))
}

#[cfg(test)]
mod tests;
