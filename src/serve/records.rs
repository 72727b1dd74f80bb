//! Small records that outlive a start: in `.warmd` below the caches' root, for as long as that is kept.
//!
//! A record is JSON with its version, in a durable record.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::caches::CONTROL;
use crate::durable;

const VERSION: u32 = 1;

/// Bytes: room for the paths of 100,000 entries.
const MAX_RECORD: usize = 16 * 1024 * 1024;

/// Bytes.
const MAX_LOG: u64 = 1024 * 1024;

const OTHERS_WRITE: u32 = 0o022;

/// For a lock that is held while one file is rewritten.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Nothing can be remembered here.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// Whoever can write records can have our files removed.
    #[error("`{}` is no directory that only we can write to: remove it, or use another cache root", .0.display())]
    NotOurs(PathBuf),
    #[error("{verb} `{}`: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` would have {len} bytes, allowed are {MAX_RECORD}", path.display())]
    TooLarge { path: PathBuf, len: usize },
    #[error("`{}` is locked by another process", .0.display())]
    Locked(PathBuf),
    #[error("`{}` cannot be read: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
}

/// The records of one cache root.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

impl Records {
    /// Makes what is missing, for those who write.
    pub(super) fn make(root: &Path) -> Result<Self, RecordsError> {
        Self::make_directory(root.join(CONTROL))
    }

    /// A directory for many of a kind.
    pub(super) fn make_below(&self, name: &str) -> Result<Self, RecordsError> {
        Self::make_directory(self.directory.join(name))
    }

    fn make_directory(directory: PathBuf) -> Result<Self, RecordsError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|source| RecordsError::Io { verb: "make", path: directory.clone(), source })?;
        Self::find_directory(directory.clone())?.ok_or(RecordsError::NotOurs(directory))
    }

    /// `None` if nothing was ever remembered.
    pub(super) fn find(root: &Path) -> Result<Option<Self>, RecordsError> {
        Self::find_directory(root.join(CONTROL))
    }

    fn find_directory(directory: PathBuf) -> Result<Option<Self>, RecordsError> {
        match std::fs::symlink_metadata(&directory) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(RecordsError::Io { verb: "look at", path: directory, source }),
            Ok(found) => {
                let ours = found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & OTHERS_WRITE == 0;
                if ours { Ok(Some(Self { directory })) } else { Err(RecordsError::NotOurs(directory)) }
            }
        }
    }

    /// For records that others read and write.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// When each file was written, and its name.
    pub(super) fn names(&self) -> Result<Vec<(SystemTime, String)>, RecordsError> {
        let failed = |source| RecordsError::Io { verb: "list", path: self.directory.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // What goes meanwhile was not there.
            if let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata()) {
                names.push((meta.modified().map_err(failed)?, name));
            }
        }
        Ok(names)
    }

    /// A damaged record, or one of another version, is as good as none.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RecordsError> {
        match self.read_whole(name) {
            Err(error @ RecordsError::Damaged { .. }) => {
                tracing::warn!(%error, "a record is ignored");
                Ok(None)
            }
            read => read,
        }
    }

    /// As [`Records::read`], for one who must know of what cannot be read.
    pub(super) fn read_whole<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RecordsError> {
        let path = self.directory.join(name);
        let text = match durable::read_record(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(RecordsError::Damaged { path, problem: error.to_string() });
            }
            Err(source) => return Err(RecordsError::Io { verb: "read", path, source }),
        };
        let Some(text) = text else { return Ok(None) };
        let problem = match serde_json::from_str::<Versioned<T>>(&text) {
            Ok(read) if read.version == VERSION => return Ok(Some(read.record)),
            Ok(read) => format!("it is of version {}", read.version),
            Err(error) => error.to_string(),
        };
        Err(RecordsError::Damaged { path, problem })
    }

    pub(super) fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<(), RecordsError> {
        let path = self.directory.join(name);
        let failed = |source| RecordsError::Io { verb: "write", path: path.clone(), source };
        let text = serde_json::to_string(&Versioned { version: VERSION, record });
        let text = text.map_err(|error| failed(error.into()))?;
        if text.len() > MAX_RECORD {
            return Err(RecordsError::TooLarge { path, len: text.len() });
        }
        durable::replace_record(&path, &text, 0o600).map_err(failed)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), RecordsError> {
        let path = self.directory.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(RecordsError::Io { verb: "remove", path, source }),
            Ok(()) => durable::sync_directory(&self.directory).map_err(|source| RecordsError::Io {
                verb: "sync",
                path: self.directory.clone(),
                source,
            }),
        }
    }

    /// A file to append lines to. One that has grown long begins anew.
    pub(super) fn log(&self, name: &str) -> Result<(PathBuf, File), RecordsError> {
        let path = self.directory.join(name);
        let failed = |source| RecordsError::Io { verb: "open", path: path.clone(), source };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > MAX_LOG {
            file.set_len(0).map_err(failed)?;
        }
        Ok((path, file))
    }

    /// `None` while another process has it; it is free when that ends, however it ends.
    pub(super) fn try_lock(&self, name: &str) -> Result<Option<File>, RecordsError> {
        let path = self.directory.join(name);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|source| RecordsError::Io { verb: "open", path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(RecordsError::Io { verb: "lock", path, source }),
        }
    }

    /// Waits a little.
    pub(super) fn lock(&self, name: &str) -> Result<File, RecordsError> {
        let ends = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if Instant::now() >= ends {
                return Err(RecordsError::Locked(self.directory.join(name)));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_is_read_back_and_a_damaged_or_unknown_one_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert!(Records::find(root.path()).unwrap().is_none());
        let records = Records::make(&root.path().join("new/root")).unwrap();
        assert_eq!(records.read::<u32>("n").unwrap(), None);
        records.write("n", &7u32).unwrap();
        assert_eq!(records.read::<u32>("n").unwrap(), Some(7));
        let path = records.directory.join("n");
        for content in [
            durable::frame_record(r#"{"version":2,"record":7}"#),
            durable::frame_record(r#"{"version":1,"record":"seven"}"#),
            durable::frame_record(r#"{"version":1,"record":7}"#).replace('7', "8"),
            String::new(),
        ] {
            std::fs::write(&path, &content).unwrap();
            assert_eq!(records.read::<u32>("n").unwrap(), None, "{content}");
        }
        records.remove("n").unwrap();
        records.remove("n").unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_record_over_the_limit_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::make(root.path()).unwrap();
        let error = records.write("big", &"x".repeat(MAX_RECORD)).unwrap_err();
        assert!(matches!(error, RecordsError::TooLarge { .. }));
        assert_eq!(records.read::<String>("big").unwrap(), None);
    }

    #[test]
    fn records_that_others_can_write_are_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let control = root.path().join(CONTROL);
        std::fs::create_dir(&control).unwrap();
        std::fs::set_permissions(&control, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(Records::make(root.path()), Err(RecordsError::NotOurs(_))));
        std::fs::remove_dir(&control).unwrap();
        std::os::unix::fs::symlink("/tmp", &control).unwrap();
        assert!(matches!(Records::find(root.path()), Err(RecordsError::NotOurs(_))));
    }

    #[test]
    fn a_lock_has_one_holder_and_is_free_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::make(root.path()).unwrap();
        let held = records.try_lock("lock").unwrap();
        assert!(held.is_some());
        assert!(records.try_lock("lock").unwrap().is_none());
        drop(held);
        assert!(records.try_lock("lock").unwrap().is_some());
    }
}
