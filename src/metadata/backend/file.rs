//! Hints in one redb file. Each value carries its CRC32C: redb checks its pages only when it repairs.

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableTable, TableDefinition};

use super::{Key, Value, frame, unframe};
use crate::digest::DIGEST_LEN;
use crate::protocol::metadata::{Announcement, Held};

/// Key: node id. Value: CRC32C (big endian) of the rest, an announcement without artifacts.
const NODES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("nodes/1");

/// Key: node id, artifact id. Value: CRC32C of the rest, a held artifact.
const HOLDINGS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("holdings/1");

const FILE: &str = "metadata.redb";

/// Pages that redb keeps in memory, in bytes. Hints are read once.
const CACHE: usize = 4 * 1024 * 1024;

/// The store could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("create directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("open store {path}: another process has it open")]
    InUse { path: PathBuf },
    #[error("open store {path}")]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("move damaged store {path} aside")]
    MoveAside { path: PathBuf, source: io::Error },
    #[error("write store")]
    Write(#[source] Box<redb::Error>),
}

#[derive(Debug)]
pub(in crate::metadata) struct FileStore {
    database: Database,
}

/// Why a file gave no store.
enum Unusable {
    /// Not ours, or damaged: only hints are lost with it.
    Damaged(String),
    Failed(BackendError),
}

impl FileStore {
    /// A damaged file is moved aside, and an empty store takes its place.
    pub(super) fn open(directory: &Path) -> Result<(Self, Vec<Announcement>), BackendError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| BackendError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join(FILE);
        match try_open(&path) {
            Ok(opened) => return Ok(opened),
            Err(Unusable::Failed(error)) => return Err(error),
            Err(Unusable::Damaged(reason)) => {
                let aside = path.with_extension("damaged");
                tracing::warn!(path = %path.display(), aside = %aside.display(), reason, "store is damaged: starting empty");
                std::fs::rename(&path, &aside)
                    .map_err(|source| BackendError::MoveAside { path: path.clone(), source })?;
            }
        }
        try_open(&path).map_err(|error| match error {
            Unusable::Failed(error) => error,
            Unusable::Damaged(reason) => BackendError::Open { path, source: Box::new(redb::Error::Corrupted(reason)) },
        })
    }

    pub(super) fn write(&self, batch: &[(Key, Option<Value>)]) -> Result<(), BackendError> {
        self.try_write(batch).map_err(|error| BackendError::Write(Box::new(error)))
    }

    fn try_write(&self, batch: &[(Key, Option<Value>)]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut nodes = transaction.open_table(NODES)?;
            let mut holdings = transaction.open_table(HOLDINGS)?;
            for (key, value) in batch {
                let name = encode_key(key);
                let table = if key.artifact.is_some() { &mut holdings } else { &mut nodes };
                match value {
                    Some(Value::Node(node)) => table.insert(name.as_slice(), frame(&node.encode()).as_slice())?,
                    Some(Value::Holding(held)) => table.insert(name.as_slice(), frame(&held.encode()).as_slice())?,
                    None => table.remove(name.as_slice())?,
                };
            }
        }
        Ok(transaction.commit()?)
    }

    /// Everything in the store, which is empty afterwards: what the registry takes over is written again, and so what
    /// belongs to nobody any more does not stay for ever.
    fn take_all(&self) -> Result<Vec<Announcement>, redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut nodes = HashMap::new();
        for row in transaction.open_table(NODES)?.iter()? {
            let (key, value) = row?;
            let node = unframe(value.value()).and_then(|bytes| Announcement::decode(bytes).ok());
            if let Some(node) = node.filter(|node| node.node.as_bytes() == key.value()) {
                nodes.insert(key.value().to_vec(), node);
            }
        }
        for row in transaction.open_table(HOLDINGS)?.iter()? {
            let (key, value) = row?;
            let Some((node, artifact)) = key.value().split_at_checked(DIGEST_LEN) else { continue };
            let held = unframe(value.value()).and_then(|bytes| Held::decode(bytes).ok());
            if let Some(held) = held.filter(|held| held.artifact.artifact.as_bytes() == artifact)
                && let Some(node) = nodes.get_mut(node)
            {
                node.held.push(held);
            }
        }
        transaction.delete_table(NODES)?;
        transaction.delete_table(HOLDINGS)?;
        transaction.commit()?;
        Ok(nodes.into_values().collect())
    }
}

/// redb may panic on pages that pass for its own but are not; for hints that is one more kind of damage.
fn try_open(path: &Path) -> Result<(FileStore, Vec<Announcement>), Unusable> {
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let database = Database::builder().set_cache_size(CACHE).create(path).map_err(redb::Error::from)?;
        let store = FileStore { database };
        let nodes = store.take_all()?;
        Ok((store, nodes))
    }));
    match opened {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(classify(path, error)),
        Err(_) => Err(Unusable::Damaged("the store's code panicked".to_owned())),
    }
}

fn classify(path: &Path, error: redb::Error) -> Unusable {
    match error {
        redb::Error::DatabaseAlreadyOpen => Unusable::Failed(BackendError::InUse { path: path.to_owned() }),
        redb::Error::Io(ref io) if !matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            Unusable::Failed(BackendError::Open { path: path.to_owned(), source: Box::new(error) })
        }
        other => Unusable::Damaged(other.to_string()),
    }
}

fn encode_key(key: &Key) -> Vec<u8> {
    let mut name = key.node.as_bytes().to_vec();
    if let Some(artifact) = &key.artifact {
        name.extend_from_slice(artifact.as_bytes());
    }
    name
}

#[cfg(test)]
mod tests;
