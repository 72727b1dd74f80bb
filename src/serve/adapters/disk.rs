//! Where adapters are on this node, private to this user:
//!
//! ```text
//! <root>/lock        held by the process that owns it
//!        incoming/   files that are being fetched; empty at the start
//!        prepared/   what the engine loads: an `AdapterRoot`, with a trash of its own
//!        aliases/    one record for each alias, so that a new start knows what there was, without the network
//! ```

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::entry::Want;
use super::source::Signed;
use crate::adapters::{AdapterRoot, Alias, PreparationId};
use crate::digest::Digest;
use crate::durable;
use crate::identity::UnixTime;
use crate::proxy::auth::Tenant;

const VERSION: u32 = 1;
const PRIVATE: u32 = 0o700;
const OTHERS: u32 = 0o077;

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: is no directory that only we can enter: chmod 700 it, or name another one", path = .0.display())]
    NotPrivate(PathBuf),
    #[error("{path}: is used by another process", path = .0.display())]
    Locked(PathBuf),
}

/// The directory of adapters of one node.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// Held by whoever writes records.
    writing: Mutex<()>,
    _lock: File,
}

/// One alias, as it outlives a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    pub(super) alias: Alias,
    pub(super) want: Want,
    #[serde(default)]
    pub(super) brought_by: Option<Tenant>,
    pub(super) pin: bool,
    pub(super) used: UnixTime,
    /// Base64.
    envelope: Option<String>,
}

/// A [`Record`] whose envelope was admitted again.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) alias: Alias,
    pub(super) signed: Option<Signed>,
    /// What it becomes here.
    pub(super) prepared: Option<PreparationId>,
    pub(super) want: Want,
    pub(super) brought_by: Option<Tenant>,
    pub(super) pin: bool,
    pub(super) used_ago: Duration,
}

impl Record {
    pub(super) fn new(
        alias: Alias,
        want: Want,
        brought_by: Option<Tenant>,
        pin: bool,
        used: UnixTime,
        envelope: Option<&[u8]>,
    ) -> Self {
        let envelope = envelope.map(|bytes| BASE64.encode(bytes));
        Self { version: VERSION, alias, want, brought_by, pin, used, envelope }
    }

    pub(super) fn envelope(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.envelope.as_ref()?.as_bytes()).ok()
    }
}

impl Disk {
    /// Makes what is missing and removes what dead processes left. Blocking, as all here.
    pub fn open(root: &Path) -> Result<Self, DiskError> {
        let root = std::path::absolute(root).map_err(failed(root))?;
        make(&root)?;
        let meta = root.symlink_metadata().map_err(failed(&root))?;
        let is_ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & OTHERS == 0;
        if !is_ours {
            return Err(DiskError::NotPrivate(root));
        }
        let path = root.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(failed(&path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(DiskError::Locked(root));
        }
        let disk = Self { root, writing: Mutex::new(()), _lock: lock };
        match std::fs::remove_dir_all(disk.incoming()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&disk.incoming())(error)),
            _ => {}
        }
        [disk.incoming(), disk.aliases()].iter().try_for_each(|path| make(path))?;
        Ok(disk)
    }

    /// For an [`AdapterRoot`].
    pub fn prepared(&self) -> PathBuf {
        self.root.join("prepared")
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn aliases(&self) -> PathBuf {
        self.root.join("aliases")
    }

    /// A new private directory, which goes with the value.
    pub(super) fn receive(&self) -> Result<TempDir, DiskError> {
        let incoming = self.incoming();
        tempfile::Builder::new().prefix("adapter-").tempdir_in(&incoming).map_err(failed(&incoming))
    }

    /// Aliases never become paths.
    fn record(&self, alias: &Alias) -> PathBuf {
        self.aliases().join(format!("{}.json", Digest::of(alias.as_str().as_bytes())))
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), DiskError> {
        let path = self.record(&record.alias);
        let text = serde_json::to_string(record).map_err(|error| failed(&path)(error.into()))?;
        durable::replace_record(&path, &text, 0o600).map_err(failed(&path))
    }

    pub(super) fn forget(&self, alias: &Alias) -> Result<(), DiskError> {
        let path = self.record(alias);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    /// All that can be read. A damaged one is as good as none.
    pub(super) fn records(&self) -> Result<Vec<Record>, DiskError> {
        let directory = self.aliases();
        let mut records = Vec::new();
        for entry in directory.read_dir().map_err(failed(&directory))? {
            let path = entry.map_err(failed(&directory))?.path();
            match read(&path) {
                Ok(Some(record)) if self.record(&record.alias) == path => records.push(record),
                Ok(_) => tracing::warn!(path = %path.display(), "no record of an adapter"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a record of an adapter is damaged"),
            }
        }
        Ok(records)
    }
}

fn read(path: &Path) -> io::Result<Option<Record>> {
    let Some(text) = durable::read_record(path)? else { return Ok(None) };
    let record: Record = serde_json::from_str(&text)?;
    Ok(Some(record).filter(|record| record.version == VERSION))
}

/// Every prepared directory, with the bytes of its files.
pub(super) fn prepared(root: &AdapterRoot) -> Vec<(PreparationId, u64)> {
    let ids = root.list().unwrap_or_else(|error| {
        tracing::warn!(%error, "prepared adapters were not listed");
        Vec::new()
    });
    ids.into_iter().map(|id| (id, bytes(&root.directory(&id)).unwrap_or(0))).collect()
}

/// Of the files in a directory.
pub(super) fn bytes(directory: &Path) -> io::Result<u64> {
    directory.read_dir()?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

fn make(path: &Path) -> Result<(), DiskError> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> DiskError + '_ {
    move |source| DiskError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_dead_process_was_fetching_is_gone_and_records_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("adapters");
        let disk = Disk::open(&root).unwrap();
        let tenant = Some("team".parse().unwrap());
        let used = UnixTime::from_seconds(7);
        let record = Record::new("sql".parse().unwrap(), Want::Yes, tenant, true, used, Some(b"signed"));
        disk.write(&record).unwrap();
        let left = disk.receive().unwrap().keep();
        assert!(matches!(Disk::open(&root), Err(DiskError::Locked(_))));
        drop(disk);
        let disk = Disk::open(&root).unwrap();
        assert!(!left.exists());
        assert_eq!(disk.records().unwrap(), std::slice::from_ref(&record));
        assert_eq!(record.envelope().as_deref(), Some(&b"signed"[..]));
        disk.forget(&record.alias).unwrap();
        disk.forget(&record.alias).unwrap();
        assert_eq!(disk.records().unwrap(), []);
    }

    #[test]
    fn a_record_under_another_name_or_damaged_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("adapters")).unwrap();
        let record = Record::new("sql".parse().unwrap(), Want::Stopped, None, false, UnixTime::from_seconds(7), None);
        disk.write(&record).unwrap();
        let path = disk.record(&record.alias);
        std::fs::copy(&path, disk.record(&"other".parse().unwrap())).unwrap();
        assert_eq!(disk.records().unwrap(), [record]);
        std::fs::write(&path, "00000000 {}\n").unwrap();
        assert_eq!(disk.records().unwrap(), []);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Disk::open(dir.path()), Err(DiskError::NotPrivate(_))));
    }
}
