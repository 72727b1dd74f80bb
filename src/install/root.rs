//! The directory that entries are installed into, opened once and held.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::dir::Dir;
use super::layout::{CONTROL, MARKERS, STAGING, TRASH};
use super::lock::{self, InstallLock, LockError};
use super::{At, InstallError};
use crate::artifact::RelPath;

/// Ours alone until somebody opens it up.
const PRIVATE: Mode = Mode::RWXU;

const OTHERS_WRITE: u32 = 0o022;

/// Why a directory is no cache root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootProblem {
    Symlink,
    NotADirectory,
    ParentMissing,
    ReadOnly,
    OtherOwner {
        owner: u32,
        us: u32,
    },
    WritableByOthers {
        mode: u32,
    },
    /// The file system lacks `RENAME_NOREPLACE`, as NFS does.
    NoExclusiveRename,
}

impl fmt::Display for RootProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symlink => f.write_str("is a symbolic link: name the directory that it points to"),
            Self::NotADirectory => f.write_str("is not a directory"),
            Self::ParentMissing => f.write_str("cannot be made, its parent directory does not exist: make that first"),
            Self::ReadOnly => {
                f.write_str("is on a read-only file system: mount it writable, or use another cache root")
            }
            Self::OtherOwner { owner, us } => {
                write!(f, "belongs to user {owner}, we are user {us}: use a directory of our own (chown {us})")
            }
            Self::WritableByOthers { mode } => {
                write!(f, "is writable by others (mode {mode:04o}): chmod go-w it, or use a directory in it")
            }
            Self::NoExclusiveRename => {
                f.write_str("is on a file system that cannot rename without replacing (NFS?): use a local disk")
            }
        }
    }
}

/// An opened, checked cache root: ours, no link, not writable by others.
#[derive(Debug)]
pub struct CacheRoot {
    path: PathBuf,
    scope: String,
    pub(super) dir: Dir,
    pub(super) control: Dir,
    pub(super) staging: Dir,
    pub(super) markers: Dir,
    trash: Dir,
}

/// What [`CacheRoot::clean`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Staging directories, by name: `<pid>-<start time>-<number>`.
    pub staging: Vec<String>,
    /// Things in the trash.
    pub trash: usize,
}

impl CacheRoot {
    /// Makes the directory with mode 0700 if it is absent; its parent exists.
    pub fn open(path: &Path) -> Result<Self, InstallError> {
        // A trailing slash would make the kernel follow a link.
        let path = path.components().as_path();
        let refuse = |problem| InstallError::Root { path: path.to_owned(), problem };
        match mkdirat(CWD, path, PRIVATE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Err(refuse(RootProblem::ParentMissing)),
            // A read-only parent is no reason to refuse a root that is there.
            Err(_) if path.exists() => {}
            Err(errno) => return Err(InstallError::io("make", path, errno)),
        }
        let dir = match Dir::open_root(path) {
            Err(Errno::LOOP) => return Err(refuse(RootProblem::Symlink)),
            Err(Errno::NOTDIR) if path.is_symlink() => return Err(refuse(RootProblem::Symlink)),
            Err(Errno::NOTDIR) => return Err(refuse(RootProblem::NotADirectory)),
            opened => opened.at("open", path, "")?,
        };
        check(&dir, path)?;
        let control = open_private(&dir, CONTROL, path)?;
        let inner = path.join(CONTROL);
        Ok(Self {
            staging: open_private(&control, STAGING, &inner)?,
            markers: open_private(&control, MARKERS, &inner)?,
            trash: open_private(&control, TRASH, &inner)?,
            path: path.to_owned(),
            scope: String::new(),
            control,
            dir,
        })
    }

    /// Markers name `scope`: the pod or container start that this root belongs to. Without it, the node.
    pub fn with_scope(self, scope: impl Into<String>) -> Self {
        Self { scope: scope.into(), ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Where messages say that something in [`CONTROL`] is.
    pub(super) fn control_path(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// Removes staging whose owner is dead, and the trash. Staging in use is left alone, in whatever pid namespace its
    /// owner lives.
    pub fn clean(&self) -> Result<Cleaned, InstallError> {
        let control = self.control_path();
        let mut cleaned = Cleaned::default();
        for name in self.staging.names().at("list", &control, STAGING)? {
            let text = name.to_string_lossy().into_owned();
            let staging = match self.staging.open(&text) {
                Err(Errno::NOENT) => continue,
                // Not a directory, so nobody's staging.
                Err(Errno::NOTDIR | Errno::LOOP) => None,
                opened => Some(opened.at("open", &control, STAGING)?),
            };
            if let Some(staging) = &staging
                && !staging.try_own().at("lock", &control, STAGING)?
            {
                continue;
            }
            self.staging.remove_tree(&name).at("remove", &control, STAGING)?;
            cleaned.staging.push(text);
        }
        for name in self.trash.names().at("list", &control, TRASH)? {
            cleaned.trash += usize::from(self.throw_away(&name));
        }
        Ok(cleaned)
    }

    /// Takes an entry out of sight in one step and removes it; for entries that are damaged or quarantined. Whoever has
    /// its files open keeps them. False if there was none.
    pub fn discard(&self, _lock: &InstallLock, entry: &RelPath) -> Result<bool, InstallError> {
        let (parent, name) = entry.as_str().rsplit_once('/').unwrap_or(("", entry.as_str()));
        if super::layout::is_reserved(entry) {
            return Err(InstallError::Reserved(entry.clone()));
        }
        let parent = match self.dir.open(parent) {
            Err(Errno::NOENT) => return Ok(false),
            opened => opened.at("open", &self.path, parent)?,
        };
        // A crash may have left something of that name there.
        let free = (0u32..).map(|n| format!("{n}")).take(10_000);
        for trash_name in free {
            match parent.rename_new(name, &self.trash, &trash_name) {
                Err(Errno::EXIST) => continue,
                Err(Errno::NOENT) => return Ok(false),
                renamed => renamed.at("discard", &self.path, entry.as_str())?,
            }
            parent.sync().at("sync", &self.path, entry.as_str())?;
            let c_name = std::ffi::CString::new(trash_name).unwrap_or_default();
            self.throw_away(&c_name);
            return Ok(true);
        }
        Err(InstallError::io("discard", self.path.join(entry.as_str()), Errno::EXIST))
    }

    /// False if it is not all gone: it costs room, and is tried again by the next [`CacheRoot::clean`].
    fn throw_away(&self, name: &std::ffi::CStr) -> bool {
        let removed = self.trash.remove_tree(name);
        if let Err(error) = &removed {
            tracing::warn!(trash = %self.control_path().join(TRASH).display(), %error, "not removed");
        }
        removed.is_ok()
    }

    /// Waits until `deadline` at most; after a holder died, however it died, the next one has the lock within 100 ms.
    pub fn lock(&self, deadline: std::time::Instant) -> Result<InstallLock, LockError> {
        lock::acquire(self, deadline)
    }
}

fn check(dir: &Dir, path: &Path) -> Result<(), InstallError> {
    let stat = dir.stat().at("stat", path, "")?;
    let us = geteuid().as_raw();
    let problem = if stat.st_uid != us {
        RootProblem::OtherOwner { owner: stat.st_uid, us }
    } else if stat.st_mode & OTHERS_WRITE != 0 {
        RootProblem::WritableByOthers { mode: stat.st_mode & 0o7777 }
    } else {
        return Ok(());
    };
    Err(InstallError::Root { path: path.to_owned(), problem })
}

fn open_private(parent: &Dir, name: &str, parent_path: &Path) -> Result<Dir, InstallError> {
    let dir = match parent.open_or_make(name, PRIVATE) {
        Err(Errno::NOTDIR) => {
            return Err(InstallError::Root { path: parent_path.join(name), problem: RootProblem::NotADirectory });
        }
        opened => opened.at("open", parent_path, name)?,
    };
    check(&dir, &parent_path.join(name))?;
    Ok(dir)
}
