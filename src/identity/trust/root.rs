//! Who signs what.
//!
//! ```toml
//! version = 2                       # one more than the root before
//! expires = "2029-01-01T00:00:00Z"  # afterwards installs stop
//!
//! [root]                            # sign the next root, and this one
//! keys = ["<52 characters, `warmd keys show`>", "...", "..."]
//! threshold = 2
//!
//! [policy]                          # sign policies
//! keys = ["..."]
//! threshold = 1
//! least = 1                         # lowest version; raised, it begins the counting anew
//!
//! [freshness]                       # absent: news that are withheld are noticed when the policy expires
//! keys = ["..."]
//! threshold = 1
//! max_age = "1m"
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Document, TrustError};
use crate::identity::envelope::{Envelope, MAX_SIGNATURES};
use crate::identity::key::PublicKey;
use crate::identity::time::UnixTime;

/// A statement that lives for less would be out of date when it arrives.
const LEAST_AGE: Duration = Duration::from_secs(5);

/// A checked root document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    pub version: u64,
    pub expires: UnixTime,
    pub root: Role,
    pub policy: PolicyRole,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<FreshnessRole>,
}

/// Signatures of `threshold` different keys are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    pub keys: Vec<PublicKey>,
    #[serde(default = "one")]
    pub threshold: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRole {
    pub keys: Vec<PublicKey>,
    #[serde(default = "one")]
    pub threshold: usize,
    /// Lowest version of a policy.
    #[serde(default = "first")]
    pub least: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessRole {
    pub keys: Vec<PublicKey>,
    #[serde(default = "one")]
    pub threshold: usize,
    /// A policy is in force this long after a statement.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

fn one() -> usize {
    1
}

fn first() -> u64 {
    1
}

/// What the three roles have in common.
pub(super) trait Signing {
    fn keys(&self) -> &[PublicKey];
    fn threshold(&self) -> usize;

    fn check(&self, name: &str) -> Result<(), String> {
        let (keys, threshold) = (self.keys(), self.threshold());
        if keys.len() > MAX_SIGNATURES {
            return Err(format!("[{name}] has {} keys, allowed are {MAX_SIGNATURES}", keys.len()));
        }
        if threshold == 0 || threshold > keys.len() {
            return Err(format!("[{name}]: `threshold` is {threshold} with {} keys", keys.len()));
        }
        match keys.iter().enumerate().find(|(at, key)| keys[..*at].contains(key)) {
            Some((_, key)) => Err(format!("[{name}] has key {key} twice")),
            None => Ok(()),
        }
    }

    /// Whether enough of the keys signed, as root version `root` asks for.
    fn verify(&self, document: Document, envelope: &Envelope, root: u64) -> Result<(), TrustError> {
        let (valid, needed) = (envelope.verify(self.keys().iter()).len(), self.threshold());
        if valid >= needed { Ok(()) } else { Err(TrustError::Unsigned { document, root, valid, needed }) }
    }
}

macro_rules! signing {
    ($($role:ident)*) => {$(
        impl Signing for $role {
            fn keys(&self) -> &[PublicKey] {
                &self.keys
            }
            fn threshold(&self) -> usize {
                self.threshold
            }
        }
    )*};
}

signing!(Role PolicyRole FreshnessRole);

impl Root {
    /// Checked, whoever signed it.
    pub fn parse(text: &str) -> Result<Self, TrustError> {
        let content = |reason: String| TrustError::Content { document: Document::Root, reason };
        let root: Self = toml::from_str(text).map_err(|error| content(error.to_string()))?;
        root.check().map_err(content)?;
        Ok(root)
    }

    /// The text to be signed.
    pub fn to_toml(&self) -> Result<String, TrustError> {
        let content = |reason: String| TrustError::Content { document: Document::Root, reason };
        self.check().map_err(content)?;
        toml::to_string(self).map_err(|error| content(error.to_string()))
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 || self.policy.least == 0 {
            return Err("versions start at 1".to_owned());
        }
        self.root.check("root")?;
        self.policy.check("policy")?;
        let Some(freshness) = &self.freshness else { return Ok(()) };
        freshness.check("freshness")?;
        match freshness.max_age < LEAST_AGE {
            true => Err(format!("[freshness]: `max_age` is less than {LEAST_AGE:?}")),
            false => Ok(()),
        }
    }
}
