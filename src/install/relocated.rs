//! Files that name their own place, as they are signed and as they are written here. See [`crate::caches::Relocation`].
//!
//! A group of Triton is visible with all members or not at all, because a key's directory is renamed whole: no order
//! within it is needed.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::{CacheRoot, InstallError};
use crate::artifact::{File, Manifest, RelPath};
use crate::caches::{GroupError, MAX_GROUP, Relocation, expand, normalise};

/// What the manifest's family does with such files, and where.
#[derive(Debug)]
pub(super) struct Relocated {
    relocation: Relocation,
    root: PathBuf,
}

impl Relocated {
    /// Looks whether all of them can be handled, before anything is transferred.
    pub(super) fn new(root: &CacheRoot, manifest: &Manifest) -> Result<Self, InstallError> {
        let relocation = Relocation::of(manifest.identity.family().as_str());
        // As the engine will name it: a link on the way stays in the name.
        let root = std::path::absolute(root.path()).map_err(|source| InstallError::Io {
            verb: "look at",
            path: root.path().to_owned(),
            source,
        })?;
        let relocated = Self { relocation, root };
        for file in manifest.files.iter().filter(|file| relocated.changes(file)) {
            relocated.check(manifest, file).map_err(|source| group_error(file, source))?;
        }
        Ok(relocated)
    }

    fn check(&self, manifest: &Manifest, file: &File) -> Result<(), GroupError> {
        if file.size > MAX_GROUP {
            return Err(GroupError::TooLarge);
        }
        let parent = file.path.parent();
        let whole = parent.is_some_and(|parent| manifest.entry_of(&file.path).is_some_and(|e| parent.is_within(e)));
        if file.size == 0 || !whole {
            return Err(GroupError::Malformed("it is empty, or installed apart from its members".to_owned()));
        }
        Ok(())
    }

    pub(super) fn changes(&self, file: &File) -> bool {
        self.relocation.changes(&file.path)
    }

    /// The bytes to write: `bytes` are all of the file, verified.
    pub(super) fn expand<'b>(
        &self,
        manifest: &Manifest,
        file: &File,
        bytes: &'b [u8],
    ) -> Result<Cow<'b, [u8]>, InstallError> {
        if !self.changes(file) {
            return Ok(Cow::Borrowed(bytes));
        }
        let expanded = expand(bytes, &file.path, &self.root, |path| is_listed(manifest, path));
        expanded.map(Cow::Owned).map_err(|source| group_error(file, source))
    }

    /// The bytes that were signed, if `bytes` are what [`Relocated::expand`] made of them.
    pub(super) fn normalise(&self, manifest: &Manifest, file: &File, bytes: &[u8]) -> Option<Vec<u8>> {
        let own = self.root.join(file.path.parent()?.as_str());
        normalise(bytes, &file.path, |named: &Path| named == own, |path| is_listed(manifest, path)).ok()
    }
}

fn is_listed(manifest: &Manifest, path: &RelPath) -> bool {
    manifest.files.binary_search_by(|file| file.path.cmp(path)).is_ok()
}

fn group_error(file: &File, source: GroupError) -> InstallError {
    InstallError::Group { path: file.path.clone(), source }
}
