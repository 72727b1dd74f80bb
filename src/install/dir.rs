//! A directory held by its handle. Paths are resolved beneath it, through no link and into no other mount.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, CWD, Dir as Listing, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps,
};
use rustix::io::{Errno, Result};

use super::fault;

/// Directories inside of an entry; the umask applies.
pub(super) const DIR_MODE: Mode = Mode::from_raw_mode(0o755);

/// Deepest tree that is removed: paths of manifests have at most 32 components.
const MAX_DEPTH: usize = 64;

#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

/// Another mount is refused too: a rename out of it would fail, after all the work.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Dir {
    /// The one place that takes a path of the machine; its last component is no link.
    pub(super) fn open_root(path: &Path) -> Result<Self> {
        fs::openat(CWD, path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map(Self)
    }

    /// `""` is the directory itself.
    pub(super) fn open(&self, path: &str) -> Result<Self> {
        let path = if path.is_empty() { "." } else { path };
        fs::openat2(&self.0, path, DIRECTORY, Mode::empty(), BENEATH).map(Self)
    }

    /// [`Dir::open`], making what is missing on the way. Others may make the same at the same time.
    pub(super) fn open_or_make(&self, path: &str, mode: Mode) -> Result<Self> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let made = if parent.is_empty() { None } else { Some(self.open_or_make(parent, mode)?) };
        made.as_ref().unwrap_or(self).make_or_keep(name, mode)?;
        self.open(path)
    }

    /// A directory in this one that is new most likely, else the one that is there.
    pub(super) fn make_or_open(&self, name: &str, mode: Mode) -> Result<Self> {
        self.make_or_keep(name, mode)?;
        self.open(name)
    }

    fn make_or_keep(&self, name: &str, mode: Mode) -> Result<()> {
        match self.make(name, mode) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        }
    }

    /// `EXIST` if there is something of that name.
    pub(super) fn make(&self, name: &str, mode: Mode) -> Result<()> {
        fault::point()?;
        fs::mkdirat(&self.0, name, mode)
    }

    pub(super) fn open_read(&self, path: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        fs::openat2(&self.0, path, flags, Mode::empty(), BENEATH).map(File::from)
    }

    /// A new file of exactly `mode`, whatever the umask or a default ACL says.
    pub(super) fn create(&self, name: &str, mode: Mode) -> Result<File> {
        self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)
    }

    /// As [`Dir::create`], or the file that is there.
    pub(super) fn open_or_create(&self, name: &str, mode: Mode) -> Result<File> {
        self.open_file(name, OFlags::RDWR | OFlags::CREATE, mode)
    }

    fn open_file(&self, name: &str, flags: OFlags, mode: Mode) -> Result<File> {
        fault::point()?;
        let file = fs::openat2(&self.0, name, flags | OFlags::CLOEXEC, mode, BENEATH)?;
        if Mode::from_raw_mode(fs::fstat(&file)?.st_mode) != mode {
            fs::fchmod(&file, mode)?;
        }
        Ok(file.into())
    }

    pub(super) fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.0)
    }

    /// Of a link itself; `None` if there is nothing.
    pub(super) fn kind(&self, name: &str) -> Result<Option<FileType>> {
        match fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// `EXIST` if `target` has something of that name, which stays as it is.
    pub(super) fn rename_new(&self, name: &str, target: &Self, new_name: &str) -> Result<()> {
        fault::point()?;
        fs::renameat_with(&self.0, name, &target.0, new_name, RenameFlags::NOREPLACE)
    }

    pub(super) fn rename_over(&self, name: &str, target: &Self, new_name: &str) -> Result<()> {
        fault::point()?;
        fs::renameat(&self.0, name, &target.0, new_name)
    }

    /// Names in it survive a power cut.
    pub(super) fn sync(&self) -> Result<()> {
        fault::point()?;
        fs::fsync(&self.0)
    }

    /// Everything written to its file system survives a power cut.
    pub(super) fn sync_file_system(&self) -> Result<()> {
        fault::point()?;
        fs::syncfs(&self.0)
    }

    /// Bytes that we may still write, and whether there are inodes for `files` more.
    pub(super) fn room(&self, files: u64) -> Result<(u64, bool)> {
        let stat = fs::fstatvfs(&self.0)?;
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_files == 0 || stat.f_favail >= files))
    }

    /// False if another handle, of any process, has it.
    pub(super) fn try_own(&self) -> Result<bool> {
        match fs::flock(&self.0, fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn names(&self) -> Result<Vec<CString>> {
        let mut names = Vec::new();
        for item in Listing::read_from(&self.0)? {
            let item = item?;
            if !matches!(item.file_name().to_bytes(), b"." | b"..") {
                names.push(item.file_name().to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn remove_file(&self, name: &str) -> Result<()> {
        fault::removal_point()?;
        fs::unlinkat(&self.0, name, AtFlags::empty())
    }

    /// Removes `name` and what is in it; links are removed, not followed. Others may remove the same at the same time.
    pub(super) fn remove_tree(&self, name: &std::ffi::CStr) -> Result<()> {
        self.remove_at(name, 0)
    }

    fn remove_at(&self, name: &std::ffi::CStr, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        fault::removal_point()?;
        match fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        let inner = match fs::openat2(&self.0, name, DIRECTORY, Mode::empty(), BENEATH) {
            Err(Errno::NOENT) => return Ok(()),
            opened => Self(opened?),
        };
        for item in inner.names()? {
            inner.remove_at(&item, depth + 1)?;
        }
        match fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }
}

/// Nanoseconds since the epoch; the access time is set alike.
pub(super) fn set_mtime(file: &File, mtime_ns: u64) -> Result<()> {
    fault::point()?;
    // Both fit: 2^64 ns are 2^34 s.
    let time = Timespec { tv_sec: (mtime_ns / 1_000_000_000) as i64, tv_nsec: (mtime_ns % 1_000_000_000) as i64 };
    fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
