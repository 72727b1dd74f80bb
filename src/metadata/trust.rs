//! The documents of trust that a server keeps and hands out.
//!
//! A server verifies before it keeps, by a root document of its own configuration: nobody can fill it with something that
//! no node would take. Nodes do not rely on that. Where servers share a store, the documents are in it, each server looks
//! there about once a second, and a change is compare and set, so that none takes back what another has taken.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

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
    current: Option<RwLock<Arc<Trusted>>>,
    file: Option<TrustFile>,
    /// One change at a time; nobody who reads waits for the disk.
    changing: Mutex<()>,
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
        Ok(Self { current: Some(RwLock::new(Arc::new(trusted))), file, changing: Mutex::default() })
    }

    fn current(&self) -> Option<Arc<Trusted>> {
        Some(self.current.as_ref()?.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Another number whenever the documents change; 0 without a root document.
    pub(super) fn stamp(&self) -> u64 {
        self.current().map_or(0, |trusted| trusted.stamp())
    }

    pub(super) fn after(&self, known: Known) -> Documents {
        self.current().map(|trusted| trusted.after(known)).unwrap_or_default()
    }

    /// Keeps what is newer, on disk first: blocks for as long as that does. Where one document is refused, those before it
    /// are kept all the same.
    pub(super) fn put(&self, documents: &Documents, now: UnixTime) -> Result<Known, PutError> {
        let place = self.current.as_ref().ok_or(PutError::NoRoot)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = place.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut next = Trusted::clone(&current);
        let taken = next.take(documents, now);
        let known = next.known();
        if next.stamp() != current.stamp() {
            if let Some(file) = &self.file {
                file.save(&next).map_err(PutError::Keep)?;
            }
            *place.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        }
        taken.map(|()| known).map_err(PutError::Refused)
    }
}

/// Where a server of its own keeps them.
pub(super) fn directory(store: &super::server::Store) -> Option<PathBuf> {
    match store {
        super::server::Store::File(directory) => Some(directory.clone()),
        super::server::Store::Memory | super::server::Store::Shared(..) => None,
    }
}
