//! Families: the kinds of caches, each described in one file below `family/` and named in [`ALL`].
//!
//! A family's root is a directory of its own: warmd keeps its locks, markers and staging in it (`.warmd`). A file that no
//! [`Unit`] names stays where it is, so that what a new version of a library adds is not published unseen. Entries are
//! renamed into place whole, and before the engine starts, so none of the families needs an order within its root.

mod cute_dsl;
mod deep_gemm;
mod directory;
mod flash_attention;
mod flashinfer_autotune;
mod flashinfer_jit;
mod humming;
mod inductor;
mod inductor_headers;
mod lora;
mod modelinfos;
mod quack;
mod sglang_compile;
mod sglang_deep_gemm;
mod tilelang;
mod triton;
mod tvm_ffi;
mod vllm_aot;
mod vllm_autotune;
mod vllm_piecewise;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::pattern::{matches, matches_any};
use super::{CONTROL, Environment, Fact, Facts, Known, Relocation};
use crate::artifact::{Family, SourceIdentity, SourceIdentityError};
use crate::identity::TrustClass;

static ALL: &[&CacheFamily] = &[
    &cute_dsl::FAMILY,
    &deep_gemm::FAMILY,
    &directory::FAMILY,
    &flash_attention::FAMILY,
    &flashinfer_autotune::FAMILY,
    &flashinfer_jit::FAMILY,
    &humming::FAMILY,
    &inductor::FAMILY,
    &inductor_headers::FAMILY,
    &lora::FAMILY,
    &modelinfos::FAMILY,
    &quack::FAMILY,
    &sglang_compile::FAMILY,
    &sglang_deep_gemm::FAMILY,
    &tilelang::FAMILY,
    &triton::FAMILY,
    &tvm_ffi::FAMILY,
    &vllm_aot::FAMILY,
    &vllm_autotune::FAMILY,
    &vllm_piecewise::FAMILY,
];

/// Names of files and directories that never leave the node: locks, logs, what is not finished, and what tells of the
/// node or its environment.
const NEVER: &[&str] = &[
    "lock",
    "locks",
    "*.lock",
    "*.log",
    "tmp",
    "tmp.*",
    "*.tmp",
    "*.tmp.*",
    ".staging",
    ".nfs*",
    "gpu_p2p_access_cache*",
    "cache_key_factors.json",
    "computation_graph.py",
];

/// [`CacheFamily::worth`] where nobody has published a figure.
const UNMEASURED: f64 = 5.0;

/// One kind of cache.
#[derive(Debug)]
pub struct CacheFamily {
    /// As in manifests and on the command line.
    pub name: &'static str,
    /// What it holds, in one line, for people.
    pub about: &'static str,
    /// Of the worst that its files can do.
    pub class: TrustClass,
    /// The directory, by the precedence that the library itself uses; `None` where nothing can be told (no HOME).
    pub root: fn(&Environment) -> Option<PathBuf>,
    /// What is installed by one rename. The first that names a path counts.
    pub units: &'static [Unit],
    /// Names that stay behind beside those that always do.
    pub left: &'static [&'static str],
    /// First components of a path that are the artifact's subject; 0 where a root is one artifact.
    pub subject_depth: usize,
    pub relocation: Relocation,
    /// Whether modification times are part of what makes an entry valid.
    pub keep_mtime: bool,
    /// What must be equal where an entry is used. Those that are [`Known::Absent`] on a node are left out of its identity.
    pub facts: &'static [Fact],
    /// Without these the family does not exist on a node. Only those that are among `facts`, too, are in the identity.
    pub essential: &'static [Fact],
    /// Seconds of compilation that a mebibyte typically saves, from published figures: the order of installation until a
    /// publisher has measured it.
    pub worth: f64,
}

/// What is installed by one rename, and published only if it is complete.
#[derive(Debug)]
pub struct Unit {
    /// From the root on; each component is a pattern: `*` stands for any text, `?` for one byte, `<64 hex>` for digits.
    /// A directory ends with `/`.
    pub path: &'static str,
    /// Names that it must hold, `|` between alternatives: without them loading would crash the engine or do nothing.
    pub holds: &'static [&'static str],
}

/// Where a file of a family's root belongs.
#[derive(Debug, Clone, Copy)]
pub enum Place<'p> {
    /// It stays on the node, for this reason.
    Left(&'static str),
    Entry {
        entry: &'p str,
        subject: &'p str,
        unit: &'static Unit,
    },
}

/// A family cannot be offered or looked up on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Nothing is wrong: there is nothing of this kind here.
    #[error("{family} does not exist here: {fact} is absent ({why})")]
    NotHere { family: &'static str, fact: Fact, why: String },
    #[error("{family}: {fact} could not be read: {why}")]
    Failed { family: &'static str, fact: Fact, why: String },
    #[error("{family}: {fact} was not looked for")]
    Unknown { family: &'static str, fact: Fact },
    #[error("{family}: {source}")]
    Source { family: &'static str, source: SourceIdentityError },
}

impl CacheFamily {
    /// By name.
    pub fn all() -> &'static [&'static Self] {
        ALL
    }

    pub fn by_name(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|family| family.name == name).copied()
    }

    /// The family, if its name decides what its artifacts hold: not of a directory that a user names.
    pub fn known(family: &Family) -> Option<&'static Self> {
        Self::by_name(family.as_str()).filter(|_| *family != Family::directory())
    }

    /// Of a file, by its path below the root, `/` between components.
    pub fn place<'p>(&self, path: &'p str) -> Place<'p> {
        if path.split('/').any(|name| self.stays(name)) {
            return Place::Left("stays on its node");
        }
        let found = self.units.iter().find_map(|unit| Some((unit, unit.entry(path)?)));
        match found {
            Some((unit, entry)) => Place::Entry { entry, subject: self.subject(path), unit },
            None => Place::Left("is no part of this kind of cache"),
        }
    }

    /// Whether a directory, in one that is entered, can hold anything that leaves the node.
    pub fn enters(&self, directory: &str) -> bool {
        let name = directory.rsplit('/').next().unwrap_or(directory);
        !self.stays(name) && self.units.iter().any(|unit| unit.meets(directory))
    }

    fn stays(&self, name: &str) -> bool {
        NEVER.iter().chain(self.left).any(|pattern| matches(pattern, name)) || name.eq_ignore_ascii_case(CONTROL)
    }

    fn subject<'p>(&self, path: &'p str) -> &'p str {
        match self.subject_depth {
            0 => "",
            depth => path.match_indices('/').nth(depth - 1).map_or(path, |(at, _)| &path[..at]),
        }
    }

    /// Which entries can be used on a node of these facts.
    pub fn identity(&self, facts: &Facts) -> Result<SourceIdentity, IdentityError> {
        let family = self.name;
        let named: BTreeSet<Fact> = self.facts.iter().chain(self.essential).copied().collect();
        let mut values = BTreeMap::new();
        for fact in named {
            match facts.get(fact) {
                Some(Known::Value(value)) if self.facts.contains(&fact) => {
                    values.insert(fact.name().to_owned(), value.clone());
                }
                Some(Known::Absent(why)) if self.essential.contains(&fact) => {
                    return Err(IdentityError::NotHere { family, fact, why: why.clone() });
                }
                Some(Known::Value(_) | Known::Absent(_)) => {}
                Some(Known::Failed(why)) => return Err(IdentityError::Failed { family, fact, why: why.clone() }),
                None => return Err(IdentityError::Unknown { family, fact }),
            }
        }
        let source = |source| IdentityError::Source { family, source };
        SourceIdentity::new(family.parse().map_err(source)?, values).map_err(source)
    }
}

impl Unit {
    /// Patterns of the components, and whether it is a directory.
    fn parts(&self) -> (std::str::Split<'static, char>, bool) {
        let directory = self.path.strip_suffix('/');
        (directory.unwrap_or(self.path).split('/'), directory.is_some())
    }

    /// The entry of this kind that a file is or lies in.
    fn entry<'p>(&self, file: &'p str) -> Option<&'p str> {
        let (patterns, is_directory) = self.parts();
        let mut names = file.split('/');
        let mut end = 0;
        for pattern in patterns {
            let name = names.next().filter(|name| matches(pattern, name))?;
            end += name.len() + 1;
        }
        (names.next().is_some() == is_directory).then(|| &file[..end - 1])
    }

    /// Whether entries of this kind may lie in a directory, or it is one or lies in one.
    fn meets(&self, directory: &str) -> bool {
        let (mut patterns, is_directory) = self.parts();
        let mut names = directory.split('/');
        let fits = names.by_ref().zip(patterns.by_ref()).all(|(name, pattern)| matches(pattern, name));
        fits && (is_directory || patterns.next().is_some())
    }

    /// The first of the names that an entry lacks. `names` are relative to it.
    pub fn lacks<'n>(&self, names: impl Iterator<Item = &'n str> + Clone) -> Option<&'static str> {
        self.holds.iter().copied().find(|wanted| !names.clone().any(|name| matches_any(wanted, name)))
    }
}

/// `$VLLM_CACHE_ROOT`, which vLLM takes from `$XDG_CACHE_HOME` if it is not set.
fn vllm_cache_root(environment: &Environment) -> Option<PathBuf> {
    environment.directory("VLLM_CACHE_ROOT").or_else(|| {
        let caches = environment.directory("XDG_CACHE_HOME").or_else(|| Some(environment.home()?.join(".cache")));
        Some(caches?.join("vllm"))
    })
}

/// Where the CuTe libraries keep things: `$TMPDIR/<user>/<name>`.
fn personal_temporary(environment: &Environment, name: &str) -> Option<PathBuf> {
    Some(environment.temporary().join(environment.user()?).join(name))
}

#[cfg(test)]
mod tests;
