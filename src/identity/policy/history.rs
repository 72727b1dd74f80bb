//! The newest policy version that this node has used, so that an old policy cannot come back.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Policy, PolicyError};
use crate::digest::Digest;
use crate::durable;

#[derive(Serialize, Deserialize)]
struct Seen {
    version: u64,
    digest: Digest,
}

/// One small record in the node's state directory.
#[derive(Debug, Clone)]
pub struct PolicyHistory {
    path: PathBuf,
}

impl PolicyHistory {
    pub fn new(state_directory: &Path) -> Self {
        Self { path: state_directory.join("policy.seen") }
    }

    /// Accepts `policy` (read from `bytes`) if it is not older than what was used before, and remembers it.
    pub fn accept(&self, policy: &Policy, bytes: &[u8]) -> Result<(), PolicyError> {
        let io = |source| PolicyError::Io { path: self.path.clone(), source };
        let digest = Digest::of(bytes);
        if let Some(text) = durable::read_record(&self.path).map_err(io)? {
            let seen: Seen = serde_json::from_str(&text).map_err(|error| io(error.into()))?;
            if policy.version < seen.version {
                let (found, seen, record) = (policy.version, seen.version, self.path.clone());
                return Err(PolicyError::Rollback { found, seen, record });
            }
            if policy.version == seen.version {
                return if digest == seen.digest { Ok(()) } else { Err(PolicyError::SameVersion(seen.version)) };
            }
        }
        let text =
            serde_json::to_string(&Seen { version: policy.version, digest }).map_err(|error| io(error.into()))?;
        durable::replace_record(&self.path, &text, 0o600).map_err(io)
    }
}
