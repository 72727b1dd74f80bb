//! A directory that is read, held by its handle. Paths are resolved beneath it and through no link, so that whoever may
//! rename things in it leads nobody elsewhere; and what it holds is read for one user only, if so told.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Mounts below a directory belong to it: an engine's caches may be several volumes.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Neither a FIFO that would block nor a terminal that would become ours.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Why something of a tree is not read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("{path} belongs to uid {found}, and is not read for uid {owner}", path = path.display())]
    Foreign { path: PathBuf, owner: u32, found: u32 },
    #[error("{path} is the agent's own: nothing of it is published", path = .0.display())]
    Private(PathBuf),
}

impl TreeError {
    /// It is not there, or not any more what it was.
    pub fn is_gone(&self) -> bool {
        let Self::Read { source, .. } = self else { return false };
        matches!(Errno::from_io_error(source), Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR))
    }

    fn read(path: PathBuf, errno: Errno) -> Self {
        Self::Read { path, source: errno.into() }
    }
}

/// A file or directory, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    pub device: u64,
    pub inode: u64,
}

impl Inode {
    /// What `path` leads to; `None` if nothing.
    pub fn of(path: &Path) -> Option<Self> {
        fs::stat(path).ok().map(|stat| Self::from(&stat))
    }
}

impl From<&Stat> for Inode {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// What of a tree is read.
#[derive(Debug, Default)]
pub struct Bounds {
    /// Everything that is read belongs to this user. `None`: whatever this process may read.
    pub owner: Option<u32>,
    /// Neither these nor anything below them.
    pub private: Vec<Inode>,
}

/// Clones are the same.
#[derive(Debug, Clone)]
pub struct Tree(Arc<Root>);

#[derive(Debug)]
struct Root {
    directory: OwnedFd,
    path: PathBuf,
    bounds: Bounds,
}

impl Tree {
    /// Links on the way to `path` are followed, and never again.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        Self::open_within(path, Bounds::default())
    }

    pub fn open_within(path: &Path, bounds: Bounds) -> Result<Self, TreeError> {
        let path = std::path::absolute(path).map_err(|source| TreeError::Read { path: path.to_owned(), source })?;
        let directory = fs::openat(CWD, &path, DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR if path.metadata().is_ok() => TreeError::NotADirectory(path.clone()),
            errno => TreeError::read(path.clone(), errno),
        })?;
        let root = Root { directory, path, bounds };
        root.check_above().map_err(|errno| TreeError::read(root.path.clone(), errno))?.map_or(Ok(()), Err)?;
        let stat = root.stat()?;
        root.admit(&stat, || root.path.clone())?;
        Ok(Self(Arc::new(root)))
    }

    /// Absolute; for messages, and for what files of the tree say of their place.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    pub fn inode(&self) -> Result<Inode, TreeError> {
        Ok(Inode::from(&self.0.stat()?))
    }

    /// A directory of the tree; `""` is its top.
    pub fn list(&self, below: &str) -> Result<Listing<'_>, TreeError> {
        let path = || self.0.path.join(below);
        let failed = |errno| TreeError::read(path(), errno);
        let name = if below.is_empty() { "." } else { below };
        let directory = fs::openat2(&self.0.directory, name, DIRECTORY, Mode::empty(), BENEATH).map_err(failed)?;
        self.0.admit(&fs::fstat(&directory).map_err(failed)?, path)?;
        Ok(Listing { root: &self.0, path: path(), names: Dir::new(directory).map_err(failed)? })
    }

    /// A regular file of the tree.
    pub fn open_file(&self, below: &str) -> Result<File, TreeError> {
        let path = || self.0.path.join(below);
        let failed = |errno| TreeError::read(path(), errno);
        let file = fs::openat2(&self.0.directory, below, FILE, Mode::empty(), BENEATH).map_err(failed)?;
        let stat = fs::fstat(&file).map_err(failed)?;
        self.0.admit(&stat, path)?;
        // What took its place.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(failed(Errno::LOOP));
        }
        Ok(file.into())
    }
}

impl Root {
    fn stat(&self) -> Result<Stat, TreeError> {
        fs::fstat(&self.directory).map_err(|errno| TreeError::read(self.path.clone(), errno))
    }

    fn admit(&self, stat: &Stat, path: impl FnOnce() -> PathBuf) -> Result<(), TreeError> {
        if self.bounds.private.contains(&Inode::from(stat)) {
            return Err(TreeError::Private(path()));
        }
        match self.bounds.owner {
            Some(owner) if owner != stat.st_uid => Err(TreeError::Foreign { path: path(), owner, found: stat.st_uid }),
            _ => Ok(()),
        }
    }

    /// Whether the whole tree lies below something private.
    fn check_above(&self) -> rustix::io::Result<Option<TreeError>> {
        if self.bounds.private.is_empty() {
            return Ok(None);
        }
        let above =
            |of: &OwnedFd| fs::openat(of, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let mut below = Inode::from(&fs::fstat(&self.directory)?);
        let mut directory = above(&self.directory)?;
        loop {
            let inode = Inode::from(&fs::fstat(&directory)?);
            if self.bounds.private.contains(&inode) {
                return Ok(Some(TreeError::Private(self.path.clone())));
            }
            // The root of all is its own parent.
            if inode == below {
                return Ok(None);
            }
            (below, directory) = (inode, above(&directory)?);
        }
    }
}

/// What a directory holds, name by name.
#[derive(Debug)]
pub struct Listing<'t> {
    root: &'t Root,
    path: PathBuf,
    names: Dir,
}

impl Listing<'_> {
    /// The next name, and whether it is a directory; `None` at the end.
    pub fn name(&mut self) -> Result<Option<(std::ffi::CString, bool)>, TreeError> {
        loop {
            let entry = match self.names.read() {
                None => return Ok(None),
                Some(entry) => entry.map_err(|errno| TreeError::read(self.path.clone(), errno))?,
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                // Not every file system tells.
                FileType::Unknown => self.kind(name),
                kind => kind,
            };
            return Ok(Some((name.to_owned(), kind == FileType::Directory)));
        }
    }

    /// Looks at a file of it, which is refused if it may not be read; a link is not followed, and nobody's.
    pub fn look(&self, name: &str) -> Result<Stat, TreeError> {
        let path = || self.path.join(name);
        let failed = |errno| TreeError::read(path(), errno);
        let directory = self.names.fd().map_err(failed)?;
        let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            self.root.admit(&stat, path)?;
        }
        Ok(stat)
    }

    fn kind(&self, name: &CStr) -> FileType {
        let stat = self.names.fd().and_then(|directory| fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW));
        stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A tree with `a/file`, and a secret beside it.
    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("tree/a")).unwrap();
        std::fs::write(directory.path().join("tree/a/file"), "mine").unwrap();
        std::fs::create_dir(directory.path().join("secret")).unwrap();
        std::fs::write(directory.path().join("secret/file"), "secret").unwrap();
        directory
    }

    fn read(tree: &Tree, file: &str) -> Result<String, TreeError> {
        tree.open_file(file).map(|file| std::io::read_to_string(file).unwrap())
    }

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_directory_that_was_swapped_for_a_link_is_still_the_one_that_was_opened() {
        let directory = directory();
        let (top, secret) = (directory.path().join("tree"), directory.path().join("secret"));
        let tree = Tree::open(&top).unwrap();
        std::fs::rename(&top, directory.path().join("away")).unwrap();
        symlink(&secret, &top).unwrap();
        assert_eq!(read(&tree, "a/file").unwrap(), "mine");
        assert!(read(&tree, "file").unwrap_err().is_gone());

        // One further down is not there any more.
        std::fs::remove_dir_all(directory.path().join("away/a")).unwrap();
        symlink(&secret, directory.path().join("away/a")).unwrap();
        assert!(read(&tree, "a/file").unwrap_err().is_gone());
        assert!(tree.list("a").unwrap_err().is_gone());
        assert!(!read(&tree, "../secret/file").unwrap_err().to_string().is_empty());
    }

    #[test]
    fn what_belongs_to_another_user_is_not_read() {
        let directory = directory();
        let of = |owner| Tree::open_within(&directory.path().join("tree"), Bounds { owner, ..Bounds::default() });
        assert!(matches!(of(Some(own() + 1)), Err(TreeError::Foreign { found, .. }) if found == own()));
        let tree = of(Some(own())).unwrap();
        assert_eq!(read(&tree, "a/file").unwrap(), "mine");
        // A file of somebody else under a name of one's own.
        let foreign = Path::new("/etc/passwd");
        let linked = std::fs::hard_link(foreign, directory.path().join("tree/linked"));
        if linked.is_ok() && foreign.metadata().unwrap().uid() != own() {
            assert!(matches!(tree.open_file("linked"), Err(TreeError::Foreign { .. })));
        }
        if own() == 0 {
            let file = directory.path().join("tree/a/file");
            std::os::unix::fs::chown(&file, Some(4711), None).unwrap();
            assert!(matches!(tree.open_file("a/file"), Err(TreeError::Foreign { found: 4711, .. })));
            assert!(matches!(tree.list("a").unwrap().look("file"), Err(TreeError::Foreign { .. })));
            std::os::unix::fs::chown(file.parent().unwrap(), Some(4711), None).unwrap();
            assert!(matches!(tree.list("a"), Err(TreeError::Foreign { .. })));
        }
    }

    #[test]
    fn what_is_private_is_read_under_no_name_and_neither_is_anything_below_it() {
        let directory = directory();
        let (all, secret) = (directory.path(), directory.path().join("secret"));
        let within = |path: &Path, private: &Path| {
            let private = vec![Inode::of(private).unwrap()];
            Tree::open_within(path, Bounds { private, ..Bounds::default() })
        };
        assert!(matches!(within(&secret, &secret), Err(TreeError::Private(_))));
        assert!(matches!(within(&all.join("tree/a"), &all.join("tree")), Err(TreeError::Private(_))));
        let tree = within(all, &secret).unwrap();
        assert!(matches!(tree.list("secret"), Err(TreeError::Private(_))));
        assert_eq!(read(&tree, "tree/a/file").unwrap(), "mine");
        std::fs::hard_link(secret.join("file"), all.join("tree/key")).unwrap();
        let tree = within(all, &secret.join("file")).unwrap();
        assert!(matches!(tree.open_file("tree/key"), Err(TreeError::Private(_))));
    }
}
