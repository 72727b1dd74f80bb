//! The documents of trust that a server keeps and hands out.
//!
//! A server verifies before it keeps, by a root document of its own configuration: nobody can fill it with something that
//! no node would take. Nodes do not rely on that. Where servers share a store, the documents are in it, each server looks
//! there about once a second, and a change is compare and set, so that none takes back what another has taken.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::backend::shared::StoreError;
use crate::identity::trust::{Documents, Known, TrustError, TrustFile, Trusted};
use crate::identity::{Envelope, UnixTime};

/// Why a document was not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    #[error("this metadata server has no root document (`trust.root`): it keeps no policy")]
    NoRoot,
    #[error(transparent)]
    Refused(TrustError),
    #[error("keep documents of trust: {0}")]
    Keep(TrustError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What this server has.
#[derive(Debug, Default)]
pub(super) struct TrustStore {
    /// Absent without a root document.
    trusted: Option<Mutex<Trusted>>,
    file: Option<TrustFile>,
}

impl TrustStore {
    /// Kept in a file of `directory`, if there is one.
    pub(super) fn open(root: Option<&Envelope>, directory: Option<&Path>) -> Result<Self, TrustError> {
        let Some(root) = root else { return Ok(Self::default()) };
        let file = directory.map(TrustFile::new);
        let trusted = match &file {
            Some(file) => file.load(root)?,
            None => Trusted::new(root)?,
        };
        Ok(Self { trusted: Some(Mutex::new(trusted)), file })
    }

    fn lock(&self) -> Option<MutexGuard<'_, Trusted>> {
        Some(self.trusted.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another number whenever the documents change; 0 without a root document.
    pub(super) fn stamp(&self) -> u64 {
        self.lock().map_or(0, |trusted| trusted.stamp())
    }

    pub(super) fn after(&self, known: Known) -> Documents {
        self.lock().map(|trusted| trusted.after(known)).unwrap_or_default()
    }

    /// Keeps what is newer, on disk first: blocks for as long as that does. Where one document is refused, those before it
    /// are kept all the same.
    pub(super) fn put(&self, documents: &Documents, now: UnixTime) -> Result<Known, PutError> {
        let mut current = self.lock().ok_or(PutError::NoRoot)?;
        let mut next = current.clone();
        let taken = next.take(documents, now);
        if next.stamp() != current.stamp() {
            if let Some(file) = &self.file {
                file.save(&next).map_err(PutError::Keep)?;
            }
            *current = next;
        }
        taken.map(|()| current.known()).map_err(PutError::Refused)
    }
}

/// Where a server of its own keeps them.
pub(super) fn directory(store: &super::server::Store) -> Option<PathBuf> {
    match store {
        super::server::Store::File(directory) => Some(directory.clone()),
        super::server::Store::Memory | super::server::Store::Shared(..) => None,
    }
}
