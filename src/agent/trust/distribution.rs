//! The documents of trust of this node: what servers hand out is taken as far as the configured root lets it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::identity::trust::{Document, Documents, Known, TrustError, TrustFile, Trusted, read_document, read_root};
use crate::identity::{Policy, UnixTime};

pub(super) struct Distribution {
    current: RwLock<Arc<Trusted>>,
    file: TrustFile,
    /// One change at a time; nobody who reads waits for the disk.
    changing: Mutex<()>,
}

impl Distribution {
    /// Goes on where this node was. A policy of the configuration is one more that may be newer.
    pub(super) fn open(root: &Path, policy: Option<&Path>, state: &Path) -> Result<Self, TrustError> {
        let file = TrustFile::new(state);
        let current = RwLock::new(Arc::new(file.load(&read_root(root)?)?));
        let distribution = Self { current, file, changing: Mutex::default() };
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

    fn current(&self) -> Arc<Trusted> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembered on disk before it is in force: blocks for as long as that takes. True if anything is new.
    pub(super) fn take(&self, documents: &Documents) -> Result<bool, TrustError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        let mut next = Trusted::clone(&current);
        let taken = next.take(documents, UnixTime::now());
        let is_new = next.stamp() != current.stamp();
        if is_new {
            self.file.save(&next)?;
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        }
        taken.map(|()| is_new)
    }

    pub(super) fn policy(&self) -> Option<Policy> {
        self.current().policy()
    }

    pub(super) fn known(&self) -> Known {
        self.current().known()
    }

    pub(super) fn after(&self, known: Known) -> Documents {
        self.current().after(known)
    }
}
