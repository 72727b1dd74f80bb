//! What a policy says of an artifact that was admitted before, perhaps by an older policy.

use serde::{Deserialize, Serialize};

use super::{Policy, Refusal, Signer};
use crate::digest::{ArtifactId, KeyId};
use crate::identity::key::PublicKey;

/// `[revoked]`, with ids alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Revoked {
    pub(super) keys: Vec<KeyId>,
    pub(super) artifacts: Vec<ArtifactId>,
}

/// As in the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokedFields {
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    artifacts: Vec<ArtifactId>,
}

impl RevokedFields {
    /// A key is named by its id, as itself, or as that of a signer. What names none is refused: whoever has written it
    /// believes that something is revoked.
    pub(super) fn resolve(self, signers: &[Signer]) -> Result<Revoked, String> {
        let key = |text: &String| {
            let of_key = || text.parse::<PublicKey>().ok().map(|key| key.id());
            let of_signer = || signers.iter().find(|signer| signer.name == *text).map(|signer| signer.key.id());
            let id = text.parse().ok().or_else(of_key).or_else(of_signer);
            id.ok_or_else(|| {
                format!(
                    "`revoked.keys` has `{text}`, which is no key id (64 hex digits), no public key and no signer of this \
                     policy: `warmd policy check` prints all of them"
                )
            })
        };
        let keys = self.keys.iter().map(key).collect::<Result<_, _>>()?;
        Ok(Revoked { keys, artifacts: self.artifacts })
    }
}

impl Policy {
    pub fn is_artifact_revoked(&self, id: &ArtifactId) -> bool {
        self.revoked.artifacts.contains(id)
    }

    pub fn is_key_revoked(&self, key: &KeyId) -> bool {
        self.revoked.keys.contains(key)
    }

    pub fn revoked_keys(&self) -> &[KeyId] {
        &self.revoked.keys
    }

    pub fn revoked_artifacts(&self) -> &[ArtifactId] {
        &self.revoked.artifacts
    }

    /// Those whose signatures count.
    pub fn signers_in_force(&self) -> impl Iterator<Item = &Signer> {
        self.signers.iter().filter(|signer| !self.is_key_revoked(&signer.key.id()))
    }

    /// For those who only hold it: [`Policy::confirm`] refuses it, and for something that is revoked. That nobody here knows
    /// its signers says nothing: others may.
    pub fn is_revoked(&self, artifact: &ArtifactId, signed_by: &[KeyId]) -> bool {
        matches!(self.confirm(artifact, signed_by), Err(Refusal::ArtifactRevoked(_) | Refusal::KeyRevoked { .. }))
    }

    /// For those who have installed it: whether its signers may still sign. Scopes and times were judged when it was
    /// admitted, and are not judged again; that a policy has expired withdraws nothing.
    ///
    /// `signed_by` are keys whose signatures were verified: what an envelope claims saves nothing.
    pub fn confirm(&self, artifact: &ArtifactId, signed_by: &[KeyId]) -> Result<(), Refusal> {
        if self.is_artifact_revoked(artifact) {
            return Err(Refusal::ArtifactRevoked(*artifact));
        }
        let valid = self.signers_in_force().filter(|signer| signed_by.contains(&signer.key.id())).count();
        if valid >= self.threshold {
            return Ok(());
        }
        Err(match signed_by.iter().find(|key| self.is_key_revoked(key)) {
            Some(key) => Refusal::KeyRevoked { name: self.name_of_id(key), key: *key },
            None if valid == 0 => Refusal::UnknownSigner(signed_by.to_vec()),
            None => Refusal::Threshold { valid, needed: self.threshold },
        })
    }

    /// A key that was revoked may have left the signers.
    fn name_of_id(&self, key: &KeyId) -> String {
        let signer = self.signers.iter().find(|signer| signer.key.id() == *key);
        signer.map_or_else(|| "a signer of an earlier policy".to_owned(), |signer| signer.name.clone())
    }

    /// The keys of signers by their names, as [`Policy::admit`] tells them.
    pub fn keys_of(&self, names: &[String]) -> Vec<KeyId> {
        let named = self.signers.iter().filter(|signer| names.contains(&signer.name));
        named.map(|signer| signer.key.id()).collect()
    }
}
