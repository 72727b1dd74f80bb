//! One record for each artifact, and beside it a mark once an engine may have read what came with it: none leaves because
//! there are many, and a damaged one hides no other.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Admission;
use crate::digest::ArtifactId;
use crate::serve::records::{Records, RecordsError};

/// Below the records of the root.
const DIRECTORY: &str = "admitted";
const LOCK: &str = "admitted.lock";

/// All admissions in one record, as earlier versions have it.
const TOGETHER: &str = "admitted.json";

/// Ends of names.
const RECORD: &str = ".json";
const USED: &str = ".used";
const DAMAGED: &str = ".damaged";

pub(super) struct Book {
    /// Of the root.
    top: Records,
    each: Records,
}

/// What a book holds.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    /// Oldest first.
    pub(super) known: Vec<Admission>,
    /// Records that cannot be read, moved aside: nobody knows any more what came with them.
    pub(super) damaged: Vec<PathBuf>,
}

impl Book {
    pub(super) fn make(root: &Path) -> Result<Self, RecordsError> {
        let top = Records::make(root)?;
        let each = top.make_below(DIRECTORY)?;
        let book = Self { top, each };
        book.take_over()?;
        Ok(book)
    }

    /// `None` if nothing ever came.
    pub(super) fn find(root: &Path) -> Result<Option<Self>, RecordsError> {
        let Some(top) = Records::find(root)? else { return Ok(None) };
        let is_there = |name| top.directory().join(name).symlink_metadata().is_ok();
        if is_there(DIRECTORY) || is_there(TOGETHER) { Self::make(root).map(Some) } else { Ok(None) }
    }

    /// What an earlier version has kept.
    fn take_over(&self) -> Result<(), RecordsError> {
        if !self.top.directory().join(TOGETHER).exists() {
            return Ok(());
        }
        let _lock = self.top.lock(LOCK)?;
        match self.top.read_whole::<Vec<Admission>>(TOGETHER) {
            Ok(all) => all.into_iter().flatten().try_for_each(|admission| self.merge(admission))?,
            Err(RecordsError::Damaged { .. }) => return self.set_aside(&self.top, TOGETHER),
            Err(error) => return Err(error),
        }
        self.top.remove(TOGETHER)
    }

    pub(super) fn add(&self, admission: Admission) -> Result<(), RecordsError> {
        let _lock = self.top.lock(LOCK)?;
        self.merge(admission)
    }

    /// With what is known of the artifact. The caller has the lock.
    fn merge(&self, mut admission: Admission) -> Result<(), RecordsError> {
        let name = name(&admission.release.artifact, RECORD);
        match self.each.read_whole::<Admission>(&name) {
            Ok(Some(known)) => {
                admission.entries.extend(known.entries);
                admission.keys.extend(known.keys);
                admission.keys.sort_unstable();
                admission.keys.dedup();
            }
            Ok(None) => {}
            Err(RecordsError::Damaged { .. }) => self.set_aside(&self.each, &name)?,
            Err(error) => return Err(error),
        }
        self.each.write(&name, &admission)?;
        match admission.used {
            true => self.mark_used(&admission),
            false => self.each.remove(&self::name(&admission.release.artifact, USED)),
        }
    }

    /// Not synced: no engine that has read it survives a power cut.
    pub(super) fn mark_used(&self, admission: &Admission) -> Result<(), RecordsError> {
        let path = self.each.directory().join(name(&admission.release.artifact, USED));
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        made.map(drop).map_err(|source| RecordsError::Io { verb: "make", path, source })
    }

    /// What is known of an artifact now. A damaged record is moved aside.
    fn read(&self, name: &str) -> Result<Option<Admission>, RecordsError> {
        let read = match self.each.read_whole::<Admission>(name) {
            Err(RecordsError::Damaged { .. }) => self.set_aside(&self.each, name).map(|()| None),
            read => read,
        };
        Ok(read?.map(|admission| {
            let mark = self.each.directory().join(self::name(&admission.release.artifact, USED));
            Admission { used: mark.exists(), ..admission }
        }))
    }

    pub(super) fn all(&self) -> Result<Admissions, RecordsError> {
        let mut known = Vec::new();
        for (at, name) in self.each.names()? {
            if name.ends_with(RECORD) {
                known.extend(self.read(&name)?.map(|admission| (at, admission)));
            }
        }
        known.sort_by_key(|(at, _): &(SystemTime, Admission)| *at);
        let damaged = |records: &Records| -> Result<Vec<PathBuf>, RecordsError> {
            let names = records.names()?.into_iter().map(|(_, name)| name).filter(|name| name.ends_with(DAMAGED));
            Ok(names.map(|name| records.directory().join(name)).collect())
        };
        let damaged = [damaged(&self.top)?, damaged(&self.each)?].concat();
        Ok(Admissions { known: known.into_iter().map(|(_, admission)| admission).collect(), damaged })
    }

    /// While `work` is at it, nobody adds to what is known of the artifact; where it has done anything, that is forgotten.
    pub(super) fn take<T, E: From<RecordsError>>(
        &self,
        artifact: &ArtifactId,
        work: impl FnOnce(Admission) -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let _lock = self.top.lock(LOCK)?;
        let record = name(artifact, RECORD);
        let Some(admission) = self.read(&record)? else { return Ok(None) };
        let done = work(admission)?;
        if done.is_some() {
            self.each.remove(&record)?;
            self.each.remove(&name(artifact, USED))?;
        }
        Ok(done)
    }

    fn set_aside(&self, records: &Records, name: &str) -> Result<(), RecordsError> {
        let (path, aside) = (records.directory().join(name), records.directory().join(format!("{name}{DAMAGED}")));
        tracing::warn!(path = %aside.display(), "a damaged record was moved there");
        match std::fs::rename(&path, aside) {
            // Another process has done it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => moved.map_err(|source| RecordsError::Io { verb: "move aside", path, source }),
        }
    }
}

fn name(artifact: &ArtifactId, end: &str) -> String {
    format!("{artifact}{end}")
}
