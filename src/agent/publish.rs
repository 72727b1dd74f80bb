//! Publishing: a directory, or what a caller has captured of one, becomes a signed artifact in this node's store.

mod grant;
mod push;

use std::collections::HashSet;
use std::sync::Arc;

pub(super) use self::grant::Grant;
use self::push::Unsealed;
pub(super) use self::push::{Push, PushError};
use super::trust::Trust;
use crate::artifact::{Base, BuildError, Draft, Family, Manifest, ManifestError, Outputs, SignedManifest, Tree};
use crate::caches::SnapshotError;
use crate::digest::{ArtifactId, ContentId, Digest, IdentityId};
use crate::identity::{PrivateKey, TrustClass, UnixTime};
use crate::local::{Publication, builder};
use crate::store::{Artifact, Held, Store, StoreError};

/// What came of it.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) artifact: ArtifactId,
    pub(super) content: ContentId,
    pub(super) identity: IdentityId,
    pub(super) generation: u64,
    pub(super) files: usize,
    pub(super) size: u64,
    pub(super) wire_size: u64,
    pub(super) new_wire_size: u64,
    pub(super) unchanged: bool,
    /// Why this node's own policy would refuse it.
    pub(super) warning: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    #[error("this agent has no signer key: set `signer` in its configuration (`warmd keys signer` makes one)")]
    NoSigner,
    #[error("the newest artifact of this signer has the highest generation that there is: evict it")]
    LastGeneration,
    #[error(
        "uid {uid} may have {family} signed as {highest}, not as {class}: publish it with `--class {highest}`, or set \
         `local.publish_class` or `local.operator_uids` of the agent"
    )]
    Class { uid: u32, family: Family, class: TrustClass, highest: TrustClass },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Push(#[from] PushError),
}

/// The publishing half of an agent.
pub(super) struct Publisher {
    store: Store,
    signer: Option<PrivateKey>,
    trust: Arc<Trust>,
    unsealed: Unsealed,
}

impl Publisher {
    pub(super) fn new(store: Store, signer: Option<PrivateKey>, trust: Arc<Trust>) -> Arc<Self> {
        Arc::new(Self { store, signer, trust, unsealed: Unsealed::default() })
    }

    /// Of what `tree` holds. Blocking; also tells what was left out. `progress` is told how many more bytes were read.
    pub(super) fn publish(
        &self,
        publication: Publication,
        tree: &Tree,
        grant: Grant,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(Published, Vec<String>), PublishError> {
        grant.check(publication.identity.family(), publication.class)?;
        let before = self.latest(&publication.identity.id(), &publication.subject)?;
        let has_chunk = |digest: &_| self.store.has_chunk(digest);
        let base = before.as_ref().map(|artifact| Base { manifest: artifact.manifest(), has_chunk: &has_chunk });
        let put = |chunk: &crate::artifact::Chunk, encoded: &[u8]| {
            self.store.put_new_chunk(&chunk.digest, encoded).map(drop).map_err(std::io::Error::other)
        };
        let taken = publication.capture(tree, base.as_ref(), &Outputs { store: &put, progress }).map_err(of_store)?;
        let (draft, skipped) = publication.draft(taken);
        Ok((self.seal(draft)?, skipped))
    }

    /// Our newest generation; held, so that its chunks are not evicted while the next one is built on them.
    fn latest(&self, identity: &IdentityId, subject: &str) -> Result<Option<Held>, PublishError> {
        let signer = self.signer.as_ref().ok_or(PublishError::NoSigner)?;
        let key = signer.public();
        let latest = self.store.latest(identity, subject, |artifact| artifact.signed().is_signed_by(&key));
        Ok(latest.and_then(|artifact| self.store.hold(&artifact.id())))
    }

    /// Signs what is new as the next generation. Its chunks are in the store.
    fn seal(&self, mut draft: Draft) -> Result<Published, PublishError> {
        let signer = self.signer.as_ref().ok_or(PublishError::NoSigner)?;
        let before = self.latest(&draft.identity.id(), &draft.subject)?;
        if let Some(before) = before.as_ref().filter(|artifact| says_the_same(artifact, &draft)) {
            return Ok(self.published(before, Some(before.manifest()), true));
        }
        let generation = before.as_ref().map_or(0, |artifact| artifact.manifest().generation);
        draft.generation = generation.checked_add(1).ok_or(PublishError::LastGeneration)?;
        draft.created = UnixTime::now();
        draft.provenance.builder = builder();
        let artifact = self.store.insert_published(SignedManifest::sign(draft, signer)?)?;
        Ok(self.published(&artifact, before.as_ref().map(|artifact| artifact.manifest()), false))
    }

    fn published(&self, artifact: &Artifact, before: Option<&Manifest>, unchanged: bool) -> Published {
        let manifest = artifact.manifest();
        let had: HashSet<Digest> = before.iter().flat_map(|before| &before.chunks).map(|chunk| chunk.digest).collect();
        let new = manifest.chunks.iter().filter(|chunk| !had.contains(&chunk.digest));
        let policy = self.trust.policy();
        let judged = policy.map(|policy| artifact.signed().readmit(&policy, UnixTime::now()));
        let warning = match judged {
            None => Some("this node has no trust policy: it would install nothing itself".to_owned()),
            Some(Err(error)) => Some(format!("this node's own trust policy would refuse it: {error}")),
            Some(Ok(_)) => None,
        };
        Published {
            artifact: artifact.id(),
            content: artifact.content_id(),
            identity: artifact.identity(),
            generation: manifest.generation,
            files: manifest.files.len(),
            size: manifest.size(),
            wire_size: manifest.wire_size(),
            new_wire_size: new.map(|chunk| u64::from(chunk.encoded_len)).sum(),
            unchanged,
            warning,
        }
    }
}

/// The store's own error, if that is the reason.
fn of_store(error: SnapshotError) -> PublishError {
    let SnapshotError::Build(BuildError::Sink(error)) = error else { return error.into() };
    error.downcast::<StoreError>().map_or_else(|error| SnapshotError::from(BuildError::Sink(error)).into(), Into::into)
}

/// Nothing that a reader could tell apart, except when and by which build it was signed.
fn says_the_same(artifact: &Artifact, draft: &Draft) -> bool {
    let before = artifact.manifest();
    artifact.content_id() == crate::artifact::content_id(&draft.files)
        && before.class == draft.class
        && before.attributes == draft.attributes
        && before.entries == draft.entries
        && before.expires == draft.expires
        && before.files.iter().map(|file| file.mtime_ns).eq(draft.files.iter().map(|file| file.mtime_ns))
}

#[cfg(test)]
pub(super) use self::push::tests;
