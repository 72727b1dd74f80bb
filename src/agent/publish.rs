//! Publishing: a directory becomes a signed artifact in this node's store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::trust::Trust;
use crate::artifact::{Base, Draft, ManifestError, Outputs, Provenance, SignedManifest, SourceIdentity};
use crate::caches::{CacheFamily, ScanRules, Selection, SnapshotError, snapshot, snapshot_subject};
use crate::digest::{ArtifactId, ContentId, IdentityId};
use crate::identity::{PrivateKey, TrustClass, UnixTime};
use crate::store::{Artifact, Store, StoreError};

/// What to publish, checked.
pub(super) struct Publication {
    pub(super) directory: PathBuf,
    pub(super) identity: SourceIdentity,
    pub(super) class: TrustClass,
    pub(super) subject: String,
    pub(super) attributes: std::collections::BTreeMap<String, String>,
    pub(super) provenance: Provenance,
    pub(super) content: Content,
    pub(super) expires: Option<UnixTime>,
}

/// Which files of the directory.
pub(super) enum Content {
    All(ScanRules),
    /// Those of the subject, in a family's root, but for entries with files younger than that.
    Family {
        family: &'static CacheFamily,
        settled_by: Option<SystemTime>,
    },
}

/// What came of it.
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
    pub(super) skipped: Vec<String>,
    /// Why this node's own policy would refuse it.
    pub(super) warning: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    #[error("this agent has no signer key: set `signer` in its configuration (`warmd keys signer` makes one)")]
    NoSigner,
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The publishing half of an agent.
pub(super) struct Publisher {
    store: Store,
    signer: Option<PrivateKey>,
    trust: Arc<Trust>,
}

impl Publisher {
    pub(super) fn new(store: Store, signer: Option<PrivateKey>, trust: Arc<Trust>) -> Self {
        Self { store, signer, trust }
    }

    /// Blocking. `progress` is told how many more bytes were read.
    pub(super) fn publish(
        &self,
        publication: Publication,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Published, PublishError> {
        let signer = self.signer.as_ref().ok_or(PublishError::NoSigner)?;
        let Publication { directory, identity, class, subject, attributes, provenance, content, expires } = publication;
        let before = self.store.latest(&identity.id(), &subject, &signer.public().id());
        // Held, so that its chunks are not evicted while the next generation is built on them.
        let before = before.and_then(|artifact| self.store.hold(&artifact.id()));
        let has_chunk = |digest: &_| self.store.has_chunk(digest);
        let base = before.as_ref().map(|artifact| Base { manifest: artifact.manifest(), has_chunk: &has_chunk });
        let put = |chunk: &crate::artifact::Chunk, encoded: &[u8]| {
            self.store.put_chunk(&chunk.digest, encoded).map(drop).map_err(std::io::Error::other)
        };
        let outputs = Outputs { store: &put, progress };
        let taken = match content {
            Content::All(rules) => snapshot(&directory, &rules, base.as_ref(), &outputs)?,
            Content::Family { family, settled_by } => {
                let selection = Selection { root: &directory, family, subject: &subject, settled_by };
                snapshot_subject(&selection, base.as_ref(), &outputs)?
            }
        };
        let reused = taken.built.reused_bytes;
        let draft = Draft {
            identity,
            class,
            subject,
            generation: before.as_ref().map_or(1, |artifact| artifact.manifest().generation + 1),
            created: UnixTime::now(),
            expires,
            provenance,
            files: taken.built.files,
            chunks: taken.built.chunks,
            entries: taken.entries,
            attributes,
        };
        if let Some(before) = before.filter(|artifact| says_the_same(artifact, &draft)) {
            return Ok(self.published(&before, before.manifest().wire_size(), true, taken.skipped));
        }
        let artifact = self.store.insert_published(SignedManifest::sign(draft, signer)?)?;
        Ok(self.published(&artifact, reused, false, taken.skipped))
    }

    fn published(&self, artifact: &Artifact, reused: u64, unchanged: bool, skipped: Vec<String>) -> Published {
        let manifest = artifact.manifest();
        let policy = self.trust.policy();
        let judged =
            policy.map(|policy| SignedManifest::admit(artifact.signed().envelope().clone(), &policy, UnixTime::now()));
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
            new_wire_size: manifest.wire_size().saturating_sub(reused),
            unchanged,
            skipped,
            warning,
        }
    }
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
