//! Who hears of what is about to become visible.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::artifact::RelPath;
use crate::serve::quarantine::Release;

/// Writes down what is about to be installed, so that it is known even if nothing more is heard of the process.
pub trait Witness: fmt::Debug + Send + Sync {
    /// Blocking. Nothing is committed unless it agrees.
    fn before_commit(&self, release: Release, root: &Path, entries: BTreeSet<RelPath>) -> Result<(), TooLate>;
}

/// Nobody needs to know.
impl Witness for () {
    fn before_commit(&self, _: Release, _: &Path, _: BTreeSet<RelPath>) -> Result<(), TooLate> {
        Ok(())
    }
}

/// What becomes visible now would be taken for the engine's own.
#[derive(Debug, thiserror::Error)]
#[error("the engine was started before it was installed")]
pub struct TooLate;
