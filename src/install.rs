//! Puts the verified bytes of an admitted manifest into a cache root.
//!
//! ```text
//! begin: which entries are missing, is there room -> staging directory, 0700, on the same file system
//! chunk: verify, decode, hash from memory, write beneath the staging directory   (any thread, any order)
//!        (groups of Triton: verified as signed, written for this root)
//! commit: syncfs -> rename-no-replace of each entry -> fsync of their directories -> marker
//! ```
//!
//! Everything below the root goes through directory handles and `openat2` (beneath, no links, no other mount): a directory
//! that somebody swaps for a link is an error, never a way out (T9, T10, T13). What exists is never touched (I2). A crash
//! at any point leaves only whole entries visible, and staging that [`CacheRoot::clean`] removes (I1, I4).

mod dir;
mod fault;
mod installation;
mod layout;
mod lock;
mod marker;
mod place;
mod plan;
mod relocated;
mod root;
mod staging;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::artifact::RelPath;
use crate::caches::{GroupError, KindError};

pub use installation::{Installation, Installed, Limits};
pub use lock::{InstallLock, LockError};
pub use marker::{BootId, InstalledMarker, Marker, NegativeClass, NegativeMarker, negative_ttl};
pub use root::{CacheRoot, Cleaned, RootProblem};
pub use verify::{Report, verify_installed};

/// Something was not installed. Whatever is visible under the cache root is whole all the same.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cache root: `{path}` {problem}", path = path.display())]
    Root { path: PathBuf, problem: RootProblem },
    /// `wanted` is 0 where the disk itself said that it is full.
    #[error("no room in `{path}` for {wanted} more bytes beside the reserve: make some, or lower --reserve-bytes", path = path.display())]
    NoSpace { path: PathBuf, wanted: u64 },
    #[error("`{path}` is on another file system than the cache root: entries cannot be moved there in one step", path = path.display())]
    OtherFileSystem { path: PathBuf },
    /// The bytes of a chunk are not those of the manifest. Nothing of it was written; another holder may have the right ones.
    #[error("chunk {index} is corrupt")]
    Corrupt { index: usize },
    /// The pieces of this file do not make the file of the manifest. The installation can only be dropped.
    #[error("`{path}` is corrupt")]
    CorruptFile { path: RelPath },
    #[error("{wanted} bytes to install, allowed are {limit}")]
    TooLarge { wanted: u64, limit: u64 },
    #[error("`{0}` lies in the directory that warmd keeps for itself")]
    Reserved(RelPath),
    /// In the place of every entry.
    #[error("`{path}` is in the way and is no {wanted}: move it away", path = path.display())]
    InTheWay { path: PathBuf, wanted: &'static str },
    #[error(transparent)]
    Kind(#[from] KindError),
    /// Whatever the signer meant by it, the engine would be led to other files.
    #[error("`{path}` {source}")]
    Group { path: RelPath, source: GroupError },
    #[error("{missing} chunks are missing or failed")]
    Incomplete { missing: usize },
    #[error("{verb} `{path}`: {source}", path = path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
}

impl InstallError {
    /// `path` is for people: it was reached through handles.
    fn io(verb: &'static str, path: impl Into<PathBuf>, errno: Errno) -> Self {
        let path = path.into();
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path, wanted: 0 },
            Errno::XDEV => Self::OtherFileSystem { path },
            Errno::LOOP => Self::Root { path, problem: RootProblem::Symlink },
            Errno::ROFS => Self::Root { path, problem: RootProblem::ReadOnly },
            _ => Self::Io { verb, path, source: errno.into() },
        }
    }

    /// How the failure is remembered, so that the next rank does not run into it at once.
    pub fn class(&self) -> NegativeClass {
        match self {
            Self::NoSpace { .. } | Self::TooLarge { .. } => NegativeClass::NoSpace,
            Self::Root { .. }
            | Self::OtherFileSystem { .. }
            | Self::Reserved(_)
            | Self::InTheWay { .. }
            | Self::Kind(_)
            | Self::Group { .. } => NegativeClass::Incompatible,
            Self::Corrupt { .. } | Self::CorruptFile { .. } | Self::Incomplete { .. } | Self::Io { .. } => {
                NegativeClass::Transient
            }
        }
    }
}

/// Gives an errno its place: the cache root's path and what lies beneath it.
trait At<T> {
    fn at(self, verb: &'static str, root: &Path, below: &str) -> Result<T, InstallError>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, verb: &'static str, root: &Path, below: &str) -> Result<T, InstallError> {
        self.map_err(|errno| InstallError::io(verb, root.join(below), errno))
    }
}

#[cfg(test)]
mod tests;
