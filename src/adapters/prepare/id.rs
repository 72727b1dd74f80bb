//! What names a prepared adapter.

use std::fmt;
use std::str::FromStr;

use crate::digest::{ContentId, Digest, InvalidDigest};

/// The same content prepared by another policy is another adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PreparationId {
    pub content: ContentId,
    /// Of the policy, the engine's limits and, for an approximation, the base weights.
    pub policy: Digest,
}

impl PreparationId {
    /// Of both.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"warmd/prepared/1").update(self.content.as_bytes()).update(self.policy.as_bytes());
        hasher.finalize().into()
    }
}

/// The name of its directory.
impl fmt::Display for PreparationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.content, self.policy)
    }
}

impl FromStr for PreparationId {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (content, policy) = text.split_once('-').ok_or(InvalidDigest)?;
        Ok(Self { content: content.parse()?, policy: policy.parse()? })
    }
}
