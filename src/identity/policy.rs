//! The trust policy: which signers may put what into a cache. Default deny; there is no unsigned mode.
//!
//! ```toml
//! version = 3                          # strictly increasing, remembered on every node
//! expires = "2027-06-01T00:00:00Z"     # afterwards installs stop and serving goes on
//! threshold = 1                        # signers in scope that a manifest needs
//!
//! [[signer]]
//! name = "fleet-builder"
//! key = "<52 characters, `warmd keys show`>"
//! families = ["vllm-*", "triton"]      # patterns; `*` matches any run of characters
//! class = "host-code"                  # the highest trust class: data < device-code < host-code
//! subjects = ["*"]                     # namespaces; absent means all
//! facts = { gpu_name = "NVIDIA H100*" } # every pattern must match a fact of the manifest; absent means no restriction
//! not_before = "2026-01-01T00:00:00Z"  # absent means unbounded
//! not_after = "2027-01-01T00:00:00Z"
//!
//! [revoked]
//! keys = []                            # key ids, public keys, or names of signers of this policy
//! artifacts = []                       # artifact ids
//! ```

mod history;
mod horizon;
mod revocation;
mod signer;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::envelope::Envelope;
use super::key::PublicKey;
use super::time::UnixTime;
use crate::digest::{ArtifactId, KeyId};

pub use history::PolicyHistory;
pub use horizon::Horizon;
use revocation::{Revoked, RevokedFields};
use signer::SignerFields;
pub use signer::{Scope, Signer};

/// DSSE payload type of a signed policy.
pub const POLICY_TYPE: &str = "application/vnd.warmd.policy.v1+toml";

/// A longer policy file is refused unread.
pub const MAX_POLICY_BYTES: u64 = 1024 * 1024;

/// What the bytes of an artifact can do once installed. Ordered: a signer trusted for one class is trusted for lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustClass {
    /// Parsed, never executed.
    Data,
    /// Executed on the accelerator.
    DeviceCode,
    /// Executed or unpickled by the host.
    HostCode,
}

impl fmt::Display for TrustClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::DeviceCode => "device-code",
            Self::HostCode => "host-code",
        })
    }
}

impl std::str::FromStr for TrustClass {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Data, Self::DeviceCode, Self::HostCode]
            .into_iter()
            .find(|class| class.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no trust class: use data, device-code or host-code"))
    }
}

/// The policy document cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("policy: {0}")]
    Syntax(#[from] toml::de::Error),
    #[error("policy: {0}")]
    Content(String),
    #[error(
        "policy version {found} is older than version {seen}, which this node has already used: raise `version` above \
         {seen}; if {seen} was a mistake, stop the agent and remove {record}", record = record.display()
    )]
    Rollback { found: u64, seen: u64, record: std::path::PathBuf },
    #[error("policy version {0} was already used with other content: raise `version` with every change")]
    SameVersion(u64),
    #[error("policy has {valid} valid root signatures of the {needed} needed: sign it with `warmd policy sign`")]
    Unsigned { valid: usize, needed: usize },
    #[error("{path}: {source}", path = path.display())]
    Io { path: std::path::PathBuf, source: std::io::Error },
}

/// Why a manifest may not be installed. `Display` is the sentence that the operator reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the trust policy expired at {0}: installs stop until a newer one is in place")]
    PolicyExpired(UnixTime),
    #[error("nobody has confirmed the trust policy since {0}: installs stop until a metadata server hands out news")]
    PolicyStale(UnixTime),
    #[error(
        "there is a newer trust policy than version {0}, or a newer root, which no metadata server hands out: installs stop"
    )]
    PolicySuperseded(u64),
    #[error(
        "nobody has confirmed that version {0} is the newest trust policy: installs wait for a freshness statement"
    )]
    PolicyUnconfirmed(u64),
    #[error("signed by {}, which the trust policy does not know", keys(.0))]
    UnknownSigner(Vec<KeyId>),
    #[error("the signature of `{0}` does not fit the manifest")]
    BadSignature(String),
    #[error("key {} of `{name}` is revoked", .key.short())]
    KeyRevoked { name: String, key: KeyId },
    #[error("artifact {0} is revoked")]
    ArtifactRevoked(ArtifactId),
    #[error("`{name}` may not sign before {from}")]
    SignerTooEarly { name: String, from: UnixTime },
    #[error("`{name}` may not sign after {until}")]
    SignerExpired { name: String, until: UnixTime },
    #[error("`{name}` may not sign family `{family}`")]
    Family { name: String, family: String },
    #[error("`{name}` may sign up to class {allowed}, the manifest is {class}")]
    Class { name: String, allowed: TrustClass, class: TrustClass },
    #[error("`{name}` may not sign subject `{subject}`")]
    Subject { name: String, subject: String },
    #[error("`{name}` may sign only where {fact} is `{pattern}`; the manifest has {found}")]
    Fact { name: String, fact: String, pattern: String, found: String },
    #[error("the manifest expired at {0}")]
    ManifestExpired(UnixTime),
    #[error("the manifest is dated {0}, which is in the future")]
    ManifestFromFuture(UnixTime),
    #[error("{valid} signers in scope, the policy asks for {needed}")]
    Threshold { valid: usize, needed: usize },
}

fn keys(ids: &[KeyId]) -> String {
    ids.iter().map(KeyId::short).collect::<Vec<_>>().join(", ")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    expires: UnixTime,
    #[serde(default = "one")]
    threshold: usize,
    #[serde(default)]
    signer: Vec<SignerFields>,
    #[serde(default)]
    revoked: RevokedFields,
}

fn one() -> usize {
    1
}

/// A checked policy document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    pub version: u64,
    pub expires: UnixTime,
    pub threshold: usize,
    #[serde(rename = "signer")]
    pub signers: Vec<Signer>,
    revoked: Revoked,
    #[serde(skip)]
    horizon: Horizon,
}

/// What a manifest says of itself, as far as the policy judges it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub artifact: ArtifactId,
    pub family: &'a str,
    pub class: TrustClass,
    pub subject: &'a str,
    pub facts: &'a BTreeMap<String, String>,
    pub created: UnixTime,
    pub expires: Option<UnixTime>,
}

/// A signer's name and what the policy says of it.
pub type Verdict = (String, Result<(), Refusal>);

/// Proof that known, unrevoked keys signed an envelope. Only then may its payload be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    keys: Vec<PublicKey>,
}

impl Verified {
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.iter().map(PublicKey::id)
    }
}

impl Policy {
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let document: Document = toml::from_str(text)?;
        let signers: Vec<Signer> = document.signer.into_iter().map(Signer::from).collect();
        let policy = Self {
            version: document.version,
            expires: document.expires,
            threshold: document.threshold,
            revoked: document.revoked.resolve(&signers).map_err(PolicyError::Content)?,
            signers,
            horizon: Horizon::Unlimited,
        };
        policy.check().map_err(PolicyError::Content)?;
        Ok(policy)
    }

    /// A policy that has been signed as a whole by at least `threshold` of `roots`.
    pub fn parse_signed(json: &str, roots: &[PublicKey], threshold: usize) -> Result<Self, PolicyError> {
        let envelope =
            Envelope::from_json(POLICY_TYPE, json).map_err(|error| PolicyError::Content(error.to_string()))?;
        let valid = envelope.verify(roots.iter()).len();
        let needed = threshold.max(1);
        if valid < needed {
            return Err(PolicyError::Unsigned { valid, needed });
        }
        let text = std::str::from_utf8(envelope.payload())
            .map_err(|_| PolicyError::Content("the signed text is not UTF-8".to_owned()))?;
        Self::parse(text)
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 {
            return Err("`version` starts at 1".to_owned());
        }
        if self.threshold == 0 || (self.threshold > self.signers.len() && !self.signers.is_empty()) {
            return Err(format!("`threshold` is {} with {} signers", self.threshold, self.signers.len()));
        }
        for (index, signer) in self.signers.iter().enumerate() {
            let name = &signer.name;
            if self.signers[..index].iter().any(|other| other.name == *name || other.key == signer.key) {
                return Err(format!("signer `{name}` repeats the name or the key of another one"));
            }
            if signer.scope.families.is_empty() {
                return Err(format!("signer `{name}` has no families: remove it, or name at least one"));
            }
            if let (Some(from), Some(until)) = (signer.scope.not_before, signer.scope.not_after)
                && from > until
            {
                return Err(format!("signer `{name}`: not_before {from} is after not_after {until}"));
            }
        }
        Ok(())
    }

    /// Whether nothing is admitted at the moment; [`Policy::lapse`] says why.
    pub fn is_expired(&self, now: UnixTime) -> bool {
        self.lapse(now).is_some()
    }

    /// First half of the decision, before the body is parsed: did anybody sign whom we know and have not revoked?
    pub fn verify(&self, envelope: &Envelope) -> Result<Verified, Refusal> {
        let verified = envelope.verify(self.signers.iter().map(|signer| &signer.key));
        let (revoked, keys): (Vec<_>, Vec<_>) = verified.into_iter().partition(|key| self.is_key_revoked(&key.id()));
        if !keys.is_empty() {
            return Ok(Verified { keys });
        }
        if let Some(key) = revoked.first() {
            return Err(Refusal::KeyRevoked { name: self.name_of(key), key: key.id() });
        }
        let claimed: Vec<KeyId> = envelope.key_ids().collect();
        match self.signers.iter().find(|signer| claimed.contains(&signer.key.id())) {
            Some(signer) => Err(Refusal::BadSignature(signer.name.clone())),
            None => Err(Refusal::UnknownSigner(claimed)),
        }
    }

    /// Second half: is what the manifest claims within the scope of enough of those who signed it? Names them.
    pub fn admit(&self, verified: &Verified, claim: &Claim<'_>, now: UnixTime) -> Result<Vec<String>, Refusal> {
        if let Some(refusal) = self.lapse(now) {
            return Err(refusal);
        }
        if self.is_artifact_revoked(&claim.artifact) {
            return Err(Refusal::ArtifactRevoked(claim.artifact));
        }
        if !claim.created.has_come(now) {
            return Err(Refusal::ManifestFromFuture(claim.created));
        }
        if let Some(expires) = claim.expires
            && expires.has_passed(now)
        {
            return Err(Refusal::ManifestExpired(expires));
        }
        let judged = self.explain(verified, claim, now);
        let accepted: Vec<String> =
            judged.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(name, _)| name.clone()).collect();
        if accepted.len() >= self.threshold {
            return Ok(accepted);
        }
        // One signer and a threshold of one is the usual case: then the signer's own reason says more than a count.
        match judged.into_iter().find_map(|(_, verdict)| verdict.err()) {
            Some(reason) if self.threshold == 1 => Err(reason),
            _ => Err(Refusal::Threshold { valid: accepted.len(), needed: self.threshold }),
        }
    }

    /// The verdict on each signer, for `warmd policy explain`.
    pub fn explain(&self, verified: &Verified, claim: &Claim<'_>, now: UnixTime) -> Vec<Verdict> {
        self.signers
            .iter()
            .filter(|signer| verified.keys.contains(&signer.key))
            .map(|signer| (signer.name.clone(), signer.judge(claim, now)))
            .collect()
    }

    fn name_of(&self, key: &PublicKey) -> String {
        self.signers.iter().find(|signer| signer.key == *key).map_or_else(|| key.to_string(), |s| s.name.clone())
    }
}

#[cfg(test)]
mod tests;
