//! Documents as they are read: the bytes that were signed, and what they say.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::root::Root;
use super::{Document, TrustError};
use crate::digest::Digest;
use crate::identity::envelope::Envelope;
use crate::identity::key::PrivateKey;
use crate::identity::policy::{MAX_POLICY_BYTES, Policy};
use crate::identity::time::UnixTime;

/// DSSE payload types.
pub const ROOT_TYPE: &str = "application/vnd.warmd.root.v1+toml";
pub const FRESHNESS_TYPE: &str = "application/vnd.warmd.freshness.v1+toml";

/// Longer payloads are refused.
pub const MAX_ROOT_BYTES: usize = 16 * 1024;
pub const MAX_FRESHNESS_BYTES: usize = 1024;

/// At `issued`, no root and no policy was newer than these versions.
///
/// ```toml
/// issued = "2027-01-31T12:00:00Z"
/// root = 2
/// policy = 41
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    pub issued: UnixTime,
    pub root: u64,
    pub policy: u64,
}

impl Freshness {
    pub fn sign(&self, keys: &[&PrivateKey]) -> Envelope {
        let text = format!("issued = \"{}\"\nroot = {}\npolicy = {}\n", self.issued, self.root, self.policy);
        Envelope::sign(FRESHNESS_TYPE, Bytes::from(text), keys)
    }
}

/// A document with the bytes that were signed.
#[derive(Debug, Clone)]
pub(super) struct Signed<T> {
    pub(super) envelope: Envelope,
    /// Of the payload: signatures may be added to the same document.
    pub(super) digest: Digest,
    pub(super) content: T,
}

/// What can be in an envelope.
pub(super) trait Body: Sized {
    const DOCUMENT: Document;
    const LIMIT: usize;

    fn parse(text: &str) -> Result<Self, TrustError>;
}

impl<T: Body> Signed<T> {
    /// The caller has verified the envelope, or is about to.
    pub(super) fn read(envelope: &Envelope) -> Result<Self, TrustError> {
        let refused = |reason: String| TrustError::Content { document: T::DOCUMENT, reason };
        let payload = envelope.payload();
        if payload.len() > T::LIMIT {
            return Err(refused(format!("{} bytes, allowed are {}", payload.len(), T::LIMIT)));
        }
        let text = std::str::from_utf8(payload).map_err(|_| refused("the signed text is not UTF-8".to_owned()))?;
        Ok(Self { envelope: envelope.clone(), digest: Digest::of(payload), content: T::parse(text)? })
    }
}

impl Body for Root {
    const DOCUMENT: Document = Document::Root;
    const LIMIT: usize = MAX_ROOT_BYTES;

    fn parse(text: &str) -> Result<Self, TrustError> {
        Self::parse(text)
    }
}

impl Body for Policy {
    const DOCUMENT: Document = Document::Policy;
    const LIMIT: usize = MAX_POLICY_BYTES as usize;

    fn parse(text: &str) -> Result<Self, TrustError> {
        Self::parse(text).map_err(|error| TrustError::Content { document: Self::DOCUMENT, reason: error.to_string() })
    }
}

impl Body for Freshness {
    const DOCUMENT: Document = Document::Freshness;
    const LIMIT: usize = MAX_FRESHNESS_BYTES;

    fn parse(text: &str) -> Result<Self, TrustError> {
        let refused = |error: toml::de::Error| {
            let reason = error.to_string();
            TrustError::Content { document: Self::DOCUMENT, reason }
        };
        toml::from_str(text).map_err(refused)
    }
}
