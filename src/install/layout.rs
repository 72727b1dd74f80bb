//! Every name that warmd uses beneath a cache root. All of it is on the root's own file system: entries leave it by rename.

use crate::artifact::RelPath;
use crate::digest::IdentityId;

/// warmd's own directory, 0700. No manifest may name it.
pub(super) use crate::caches::CONTROL;

/// In [`CONTROL`]: held with `flock`, never unlinked, names the last holder's pid.
pub(super) const LOCK: &str = "lock";

/// In [`CONTROL`]: one directory per installation; its owner holds a `flock` on it.
pub(super) const STAGING: &str = "staging";

/// In [`CONTROL`]: one record per identity.
pub(super) const MARKERS: &str = "markers";

/// In [`CONTROL`]: what was moved away and is about to be removed.
pub(super) const TRASH: &str = "trash";

/// In a staging directory: the artifact's files, at their paths, until their entries are renamed away.
pub(super) const TREE: &str = "tree";

/// In a staging directory: a marker about to be renamed to its place.
pub(super) const NEW_MARKER: &str = "marker";

/// The pid and its start time are for people; the `flock` tells who is alive, in every pid namespace.
pub(super) fn staging_name(pid: u32, start: u64, attempt: u32) -> String {
    format!("{pid}-{start}-{attempt}")
}

pub(super) fn marker_name(identity: &IdentityId) -> String {
    format!("{identity}.json")
}

/// Also on file systems that do not tell case apart.
pub(super) fn is_reserved(path: &RelPath) -> bool {
    path.components().next().is_some_and(|first| first.eq_ignore_ascii_case(CONTROL))
}
