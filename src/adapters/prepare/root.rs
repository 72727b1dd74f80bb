//! Where prepared adapters are: `<root>/<content>-<policy>/`, private to this user.
//!
//! Work is done in `<root>/.staging/<content>-<policy>/`, whose worker holds a lock on the directory itself. The lock ends
//! with the worker, however that ends, and the next one clears what it left. A finished directory is renamed into place;
//! if a damaged one is there, both are exchanged, so that a reader of the path never finds nothing.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::report::{FileReport, MAX_REPORT, REPORT, Report, SCHEMA};
use super::{CONFIG, PreparationId, PrepareError, Prepared, WEIGHTS};
use crate::digest::Digest;
use crate::durable::sync_directory;

const STAGING: &str = ".staging";
const TRASH: &str = ".trash";
const PRIVATE: u32 = 0o700;
const OTHERS: u32 = 0o077;

/// A waiter looks this often: a dead worker costs it no more.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The directory of prepared adapters, ours alone.
#[derive(Debug, Clone)]
pub struct AdapterRoot {
    path: PathBuf,
}

/// Where an adapter goes.
pub(super) enum Place<'r> {
    Taken(Box<Prepared>),
    Free(Staging<'r>),
}

/// An empty directory to work in. What is in it is removed unless it is published.
pub(super) struct Staging<'r> {
    root: &'r AdapterRoot,
    id: PreparationId,
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl AdapterRoot {
    /// Makes the directory if it is absent; its parent exists. One that others can enter is refused.
    pub fn open(path: &Path) -> Result<Self, PrepareError> {
        let path = std::path::absolute(path).map_err(failed(path))?;
        make(&path)?;
        let meta = path.symlink_metadata().map_err(failed(&path))?;
        let refuse = |what| Err(PrepareError::Root { path: path.clone(), what });
        if !meta.is_dir() {
            return refuse("is a symbolic link or no directory: name a directory");
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return refuse("belongs to another user: use a directory of our own");
        }
        if meta.mode() & OTHERS != 0 {
            return refuse("can be entered by others: chmod 700 it, or use a directory in it");
        }
        make(&path.join(STAGING))?;
        make(&path.join(TRASH))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it exists or not.
    pub fn directory(&self, id: &PreparationId) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// All that are there, whole or not, sorted.
    pub fn list(&self) -> Result<Vec<PreparationId>, PrepareError> {
        let mut ids = Vec::new();
        for entry in self.path.read_dir().map_err(failed(&self.path))? {
            let name = entry.map_err(failed(&self.path))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<PreparationId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// `None` if there is none or it is damaged.
    pub fn find(&self, id: &PreparationId) -> Result<Option<Prepared>, PrepareError> {
        let directory = self.directory(id);
        let Some(report) = read_report(&directory)? else { return Ok(None) };
        let is_of = report.schema == SCHEMA && report.content == id.content && report.policy == id.policy;
        let files = [(CONFIG, report.config), (WEIGHTS, report.weights)];
        let whole = |(name, file): (&str, FileReport)| is_whole(&directory.join(name), &file);
        if !is_of || !files.into_iter().map(whole).collect::<Result<Vec<_>, _>>()?.into_iter().all(|whole| whole) {
            tracing::warn!(directory = %directory.display(), "a prepared adapter is damaged; it is prepared again");
            return Ok(None);
        }
        Ok(Some(Prepared { id: *id, directory, report, warnings: Vec::new() }))
    }

    /// Takes an adapter out of sight in one step and removes it. No engine may have it loaded: engines read it again
    /// whenever they like. False if there was none.
    pub fn discard(&self, id: &PreparationId) -> Result<bool, PrepareError> {
        let directory = self.directory(id);
        let trash = self.path.join(TRASH);
        // A crash may have left something of that name there.
        for number in 0..10_000 {
            let to = trash.join(format!("{id}.{number}"));
            match renameat_with(CWD, &directory, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    sync_directory(&self.path).map_err(failed(&self.path))?;
                    std::fs::remove_dir_all(&to).map_err(failed(&to))?;
                    return Ok(true);
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => return Err(failed(&directory)(errno.into())),
            }
        }
        Err(failed(&trash)(Errno::EXIST.into()))
    }

    /// Removes what dead workers left. How many things that were.
    pub fn clean(&self) -> Result<usize, PrepareError> {
        let mut removed = 0;
        for parent in [STAGING, TRASH].map(|name| self.path.join(name)) {
            for entry in parent.read_dir().map_err(failed(&parent))? {
                let path = entry.map_err(failed(&parent))?.path();
                let Ok(handle) = File::open(&path) else { continue };
                if flock(&handle, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    std::fs::remove_dir_all(&path).map_err(failed(&path))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// The finished adapter, or the right to make it. Waits until `deadline` at most.
    pub(super) fn place(&self, id: &PreparationId, deadline: Instant) -> Result<Place<'_>, PrepareError> {
        if let Some(prepared) = self.find(id)? {
            return Ok(Place::Taken(Box::new(prepared)));
        }
        let path = self.path.join(STAGING).join(id.to_string());
        let lock = loop {
            if let Some(lock) = try_own(&path)? {
                break lock;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PrepareError::Deadline(*id));
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        };
        let staging = Staging { root: self, id: *id, path, _lock: lock };
        // Another worker may have finished in the meantime.
        if let Some(prepared) = self.find(id)? {
            return Ok(Place::Taken(Box::new(prepared)));
        }
        staging.clear()?;
        Ok(Place::Free(staging))
    }
}

impl Staging<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an interrupted worker left.
    fn clear(&self) -> Result<(), PrepareError> {
        for entry in self.path.read_dir().map_err(failed(&self.path))? {
            let path = entry.map_err(failed(&self.path))?.path();
            std::fs::remove_file(&path).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Where it is then.
    pub(super) fn publish(self) -> Result<PathBuf, PrepareError> {
        let directory = self.root.directory(&self.id);
        sync_directory(&self.path).map_err(failed(&self.path))?;
        let renamed = match renameat_with(CWD, &self.path, CWD, &directory, RenameFlags::NOREPLACE) {
            // Damaged, or we would not be here. Dropping removes it.
            Err(Errno::EXIST) => renameat_with(CWD, &self.path, CWD, &directory, RenameFlags::EXCHANGE),
            renamed => renamed,
        };
        renamed.map_err(|errno| failed(&directory)(errno.into()))?;
        sync_directory(self.root.path()).map_err(failed(self.root.path()))?;
        Ok(directory)
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, staging = %self.path.display(), "staging was not removed; the next start removes it");
            }
            _ => {}
        }
    }
}

/// The directory and its lock; `None` if somebody else has it.
fn try_own(path: &Path) -> Result<Option<File>, PrepareError> {
    make(path)?;
    let handle = match File::open(path) {
        // Its worker has just finished.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed(path))?,
    };
    match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
        Err(errno) => return Err(failed(path)(errno.into())),
    }
    // Between opening and locking, it may have been published or removed, and the name may be another directory's.
    let key = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let ours = handle.metadata().map_err(failed(path))?;
    let named = path.symlink_metadata();
    Ok(named.is_ok_and(|named| key(named) == key(ours)).then_some(handle))
}

fn make(path: &Path) -> Result<(), PrepareError> {
    match DirBuilder::new().mode(PRIVATE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

/// `None` if there is none, or it cannot be understood.
fn read_report(directory: &Path) -> Result<Option<Report>, PrepareError> {
    let path = directory.join(REPORT);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed(&path))?,
    };
    let mut text = Vec::new();
    file.take(MAX_REPORT).read_to_end(&mut text).map_err(failed(&path))?;
    Ok(serde_json::from_slice(&text).ok())
}

fn is_whole(path: &Path, expected: &FileReport) -> Result<bool, PrepareError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(failed(path))?,
    };
    if file.metadata().map_err(failed(path))?.len() != expected.bytes {
        return Ok(false);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file).map_err(failed(path))?;
    Ok(Digest::from(hasher.finalize()) == expected.digest)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> PrepareError + '_ {
    move |source| PrepareError::Io { path: path.to_owned(), source }
}
