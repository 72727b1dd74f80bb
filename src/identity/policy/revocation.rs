//! What a policy says of an artifact that was admitted before, perhaps by an older policy.

use super::{Policy, Refusal};
use crate::digest::{ArtifactId, KeyId};

impl Policy {
    /// Whether it revokes anything at all.
    pub fn revokes(&self) -> bool {
        !(self.revoked.keys.is_empty() && self.revoked.artifacts.is_empty())
    }

    /// For those who only hold it: the artifact is revoked, or every key that signed it is.
    pub fn is_revoked(&self, artifact: &ArtifactId, signed_by: &[KeyId]) -> bool {
        let all_revoked = || !signed_by.is_empty() && signed_by.iter().all(|key| self.revoked.keys.contains(key));
        self.is_artifact_revoked(artifact) || all_revoked()
    }

    /// For those who have installed it: whether its signers may still sign. Scopes and times were judged when it was
    /// admitted, and are not judged again; that a policy has expired withdraws nothing.
    pub fn confirm(&self, artifact: &ArtifactId, signed_by: &[KeyId]) -> Result<(), Refusal> {
        if self.is_artifact_revoked(artifact) {
            return Err(Refusal::ArtifactRevoked(*artifact));
        }
        let known = || self.signers.iter().filter(|signer| signed_by.contains(&signer.key.id()));
        let revoked = known().find(|signer| self.revoked.keys.contains(&signer.key.id()));
        let valid = known().filter(|signer| !self.revoked.keys.contains(&signer.key.id())).count();
        if valid >= self.threshold {
            return Ok(());
        }
        Err(match revoked {
            Some(signer) => Refusal::KeyRevoked { name: signer.name.clone(), key: signer.key.id() },
            None if valid == 0 => Refusal::UnknownSigner(signed_by.to_vec()),
            None => Refusal::Threshold { valid, needed: self.threshold },
        })
    }

    /// The keys of signers by their names, as [`Policy::admit`] tells them.
    pub fn keys_of(&self, names: &[String]) -> Vec<KeyId> {
        let named = self.signers.iter().filter(|signer| names.contains(&signer.name));
        named.map(|signer| signer.key.id()).collect()
    }
}
