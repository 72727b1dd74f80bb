//! An artifact of the store, as the rest of the process sees it: what is had of it, who uses it, when it was last used.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::locked;
use crate::artifact::{Bitmap, Manifest, SignedManifest};
use crate::digest::{ArtifactId, ContentId, IdentityId};
use crate::identity::{Policy, UnixTime};

/// How an artifact came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Built on this node.
    Published,
    /// From a peer or an archive.
    Fetched,
}

/// How far along an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Lacks chunks, or nobody has sealed it yet.
    Partial,
    Complete,
    /// No longer in the store; what is left of it here only serves those who still hold it.
    Removed,
}

/// What is there of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub state: State,
    /// Chunks, and their encoded bytes.
    pub chunks: usize,
    pub bytes: u64,
}

/// An artifact in the store. Reading what is had takes no lock.
#[derive(Debug)]
pub struct Artifact {
    signed: Arc<SignedManifest>,
    identity: IdentityId,
    content: OnceLock<ContentId>,
    role: Role,
    wire_size: u64,
    /// One bit per chunk, as in [`Bitmap`].
    have: Box<[AtomicU64]>,
    progress: watch::Sender<Progress>,
    pub(super) pinned: AtomicBool,
    judged: Mutex<Judged>,
    last_used_s: AtomicU64,
    holds: AtomicUsize,
}

/// By one trust policy.
#[derive(Debug, Default)]
struct Judged {
    edition: Option<u64>,
    revoked: bool,
}

impl Artifact {
    pub(super) fn new(signed: Arc<SignedManifest>, role: Role, last_used: UnixTime) -> Self {
        let manifest = signed.manifest();
        let words = manifest.chunks.len().div_ceil(64);
        Self {
            identity: manifest.identity.id(),
            content: OnceLock::new(),
            role,
            wire_size: manifest.wire_size(),
            have: (0..words).map(|_| AtomicU64::new(0)).collect(),
            progress: watch::Sender::new(Progress { state: State::Partial, chunks: 0, bytes: 0 }),
            pinned: AtomicBool::new(false),
            judged: Mutex::default(),
            last_used_s: AtomicU64::new(last_used.seconds()),
            holds: AtomicUsize::new(0),
            signed,
        }
    }

    pub fn id(&self) -> ArtifactId {
        self.signed.id()
    }

    pub fn signed(&self) -> &Arc<SignedManifest> {
        &self.signed
    }

    pub fn manifest(&self) -> &Manifest {
        self.signed.manifest()
    }

    pub fn identity(&self) -> IdentityId {
        self.identity
    }

    /// As [`Manifest::content_id`], hashed once.
    pub fn content_id(&self) -> ContentId {
        *self.content.get_or_init(|| self.manifest().content_id())
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn state(&self) -> State {
        self.progress.borrow().state
    }

    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Whether every chunk is there; [`State::Complete`] says that it was also sealed.
    pub fn has_all(&self) -> bool {
        self.progress().chunks == self.manifest().chunks.len()
    }

    /// Encoded bytes that are not there.
    pub fn missing_bytes(&self) -> u64 {
        self.wire_size.saturating_sub(self.progress().bytes)
    }

    pub fn has(&self, index: usize) -> bool {
        self.have.get(index / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (index % 64) & 1 == 1)
    }

    /// A snapshot.
    pub fn have(&self) -> Bitmap {
        let len = self.manifest().chunks.len();
        let mut bytes: Vec<u8> = self.have.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect();
        bytes.truncate(len.div_ceil(8));
        Bitmap::from_bytes(&bytes, len).unwrap_or_else(|| Bitmap::empty(len))
    }

    /// Changes when a chunk comes or goes and when the state changes.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Waits until chunk `index` is there; false if the artifact was removed before. The caller brings the deadline.
    pub async fn wait_for(&self, index: usize) -> bool {
        let mut progress = self.subscribe();
        // The receiver watches before the first look, so nothing is missed in between.
        let arrived = progress.wait_for(|now| self.has(index) || now.state == State::Removed).await;
        arrived.is_ok() && self.has(index)
    }

    pub fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Acquire)
    }

    /// As [`Artifact::judge`] found last.
    pub fn is_revoked(&self) -> bool {
        locked(&self.judged).revoked
    }

    /// Whether the trust policy revokes it: then it is the first to go. Looked at once for each `edition`, which is another
    /// number for each policy: a version may come again with another content.
    pub fn judge(&self, policy: &Policy, edition: u64) -> bool {
        let mut judged = locked(&self.judged);
        if judged.edition != Some(edition) {
            *judged = Judged { edition: Some(edition), revoked: self.signed.is_revoked(policy) };
        }
        judged.revoked
    }

    pub fn last_used(&self) -> UnixTime {
        UnixTime::from_seconds(self.last_used_s.load(Ordering::Acquire))
    }

    pub fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    pub(super) fn used_at(&self, now: UnixTime) {
        self.last_used_s.fetch_max(now.seconds(), Ordering::AcqRel);
    }

    pub(super) fn set_state(&self, state: State) {
        self.progress.send_modify(|progress| progress.state = state);
    }

    pub(super) fn set_have(&self, index: usize, value: bool) {
        let mask = 1 << (index % 64);
        let word = &self.have[index / 64];
        let before = match value {
            true => word.fetch_or(mask, Ordering::AcqRel),
            false => word.fetch_and(!mask, Ordering::AcqRel),
        };
        if (before & mask != 0) == value {
            return;
        }
        let bytes = u64::from(self.manifest().chunks[index].encoded_len);
        self.progress.send_modify(|progress| match value {
            true => {
                progress.chunks += 1;
                progress.bytes += bytes;
            }
            false => {
                progress.chunks -= 1;
                progress.bytes -= bytes;
            }
        });
    }
}

/// An artifact in use: it is not evicted or removed while one of these lives, and the space that it still needs is
/// reserved. Reading its chunks needs none of this: what was read stays readable.
#[derive(Debug)]
pub struct Held(Arc<Artifact>);

impl Held {
    pub(super) fn new(artifact: &Arc<Artifact>) -> Self {
        artifact.holds.fetch_add(1, Ordering::AcqRel);
        Self(artifact.clone())
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Deref for Held {
    type Target = Arc<Artifact>;
    fn deref(&self) -> &Arc<Artifact> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::AcqRel);
    }
}
