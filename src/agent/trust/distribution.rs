//! The documents of trust of this node: what servers hand out is taken as far as the configured root lets it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::identity::trust::{Document, Documents, Known, TrustError, TrustFile, Trusted, read_document, read_root};
use crate::identity::{Policy, UnixTime};

pub(super) struct Distribution {
    trusted: Mutex<Trusted>,
    file: TrustFile,
}

impl Distribution {
    /// Goes on where this node was. A policy of the configuration is one more that may be newer.
    pub(super) fn open(root: &Path, policy: Option<&Path>, state: &Path) -> Result<Self, TrustError> {
        let file = TrustFile::new(state);
        let distribution = Self { trusted: Mutex::new(file.load(&read_root(root)?)?), file };
        let Some(path) = policy else { return Ok(distribution) };
        let given = match read_document(path)? {
            (Document::Policy, policy) => Documents { policy: Some(policy), ..Documents::default() },
            _ => return Err(TrustError::NotSigned { path: path.to_owned() }),
        };
        if let Err(error) = distribution.take(&given) {
            tracing::warn!(path = %path.display(), %error, "the policy of the configuration is not used");
        }
        Ok(distribution)
    }

    fn lock(&self) -> MutexGuard<'_, Trusted> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembered on disk before it is in force: blocks for as long as that takes. True if anything is new.
    pub(super) fn take(&self, documents: &Documents) -> Result<bool, TrustError> {
        let mut current = self.lock();
        let mut next = current.clone();
        let taken = next.take(documents, UnixTime::now());
        let is_new = next.stamp() != current.stamp();
        if is_new {
            self.file.save(&next)?;
            *current = next;
        }
        taken.map(|()| is_new)
    }

    pub(super) fn policy(&self) -> Option<Policy> {
        self.lock().policy()
    }

    pub(super) fn known(&self) -> Known {
        self.lock().known()
    }

    pub(super) fn after(&self, known: Known) -> Documents {
        self.lock().after(known)
    }
}
