//! Families: the kinds of caches, each described in one file below `family/`.

use std::path::PathBuf;

use super::{Environment, Fact};
use crate::identity::TrustClass;

/// Where a file of a family's root belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Never leaves the node: locks, logs, temporary files, what names the node or its secrets.
    Left,
    /// In the entry that its first `depth` components name, of the artifact about `subject`.
    Entry { depth: usize, subject: String },
}

/// How files are made independent of where they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relocation {
    None,
    /// Triton's `__grp__*.json`: the absolute directory in `child_paths` is a token in the artifact.
    TritonGroups,
}

/// One kind of cache.
#[derive(Debug)]
pub struct CacheFamily {
    /// As in manifests and on the command line.
    pub name: &'static str,
    /// What it holds, in one line, for people.
    pub about: &'static str,
    pub class: TrustClass,
    /// The directory, by the precedence that the library itself uses; `None` where nothing can be told (no HOME).
    pub root: fn(&Environment) -> Option<PathBuf>,
    /// Where a file belongs, by its path below the root (components joined by `/`).
    pub place: fn(&str) -> Place,
    /// An entry that lacks one of these is not published: loading it would crash the engine. Relative to the entry; `*` stands for any text.
    pub required: &'static [&'static str],
    pub relocation: Relocation,
    /// Whether modification times are part of what makes an entry valid.
    pub keep_mtime: bool,
    /// What must be equal where an entry is used. Facts that are absent on this node (see [`super::Known::Absent`]) are left out of the identity,
    /// except `essential` ones, without which the family does not exist here.
    pub facts: &'static [Fact],
    pub essential: &'static [Fact],
    /// Seconds of compilation that a mebibyte typically saves, from published figures: the order of installation until a publisher
    /// has measured it.
    pub worth: f64,
}
