//! A push: chunks come first and are kept under their digests, then the manifest that names them. What it says is
//! believed no more than what a peer says, and the content of its files neither: whoever gets it from a signer would try
//! to install it.

mod brought;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::brought::Brought;
pub(super) use self::brought::Unsealed;
use super::{Grant, PublishError, Published, Publisher};
use crate::artifact::{ContentError, Draft, MAX_CHUNK, MAX_CHUNKS, Manifest, check_content};
use crate::caches::{KindError, check_captured, check_file};
use crate::digest::{IdentityId, InvalidDigest};
use crate::protocol::pb::PushBegin;
use crate::store::Held;

/// What was pushed is not published.
#[derive(Debug, thiserror::Error)]
pub(in crate::agent) enum PushError {
    #[error("a push begins with `begin` and ends with `seal`")]
    Order,
    #[error("`identity`: {0}")]
    Identity(#[from] InvalidDigest),
    #[error("a chunk has {0} bytes; allowed are 1 to {MAX_CHUNK}")]
    ChunkLength(usize),
    #[error("more than {MAX_CHUNKS} chunks")]
    TooMany,
    #[error(
        "the pushes of uid {uid} that are going on would have more than {push_bytes} bytes: push less at a time, or raise \
         `local.push_bytes` of the agent"
    )]
    Quota { uid: u32, push_bytes: u64 },
    #[error("the manifest is about another identity or subject than the push began with")]
    Other,
    #[error("the caller sent nothing for too long")]
    Stalled,
    #[error("the push took too long")]
    Deadline,
    #[error("the caller went away")]
    Gone,
    #[error("the publishing thread panicked")]
    Thread,
    #[error(transparent)]
    Kind(#[from] KindError),
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl From<ContentError> for PublishError {
    fn from(error: ContentError) -> Self {
        Self::Push(error.into())
    }
}

/// A push that has begun. Dropped before it is sealed, it leaves chunks that are the first to go.
pub(in crate::agent) struct Push {
    publisher: Arc<Publisher>,
    identity: IdentityId,
    subject: String,
    /// Held, so that the chunks which the caller does not send stay.
    base: Option<Held>,
    chunks: usize,
    grant: Grant,
    brought: Arc<Brought>,
    ends: Instant,
}

impl Publisher {
    /// How long a push may take: a clean-up takes chunks away that nothing has referred to for longer.
    pub(in crate::agent) fn push_deadline(&self) -> Duration {
        self.store.config().orphan_grace / 2
    }
}

impl Push {
    pub(in crate::agent) fn begin(
        publisher: &Arc<Publisher>,
        grant: Grant,
        begin: PushBegin,
    ) -> Result<Self, PublishError> {
        let identity = IdentityId::try_from(&begin.identity[..]).map_err(PushError::from)?;
        let base = publisher.latest(&identity, &begin.subject)?;
        let ends = Instant::now() + publisher.push_deadline();
        let brought = Arc::new(Brought::new(publisher.store.clone(), publisher.unsealed.clone(), grant));
        Ok(Self {
            publisher: publisher.clone(),
            identity,
            subject: begin.subject,
            base,
            chunks: 0,
            grant,
            brought,
            ends,
        })
    }

    /// What the caller may build on.
    pub(in crate::agent) fn base(&self) -> Bytes {
        self.base.as_ref().map(|base| base.signed().envelope().clone()).unwrap_or_default()
    }

    /// Takes a chunk; the result keeps it, and blocks.
    pub(in crate::agent) fn chunk(
        &mut self,
        encoded: Bytes,
    ) -> Result<impl FnOnce() -> Result<(), PublishError> + Send + use<>, PushError> {
        if encoded.is_empty() || encoded.len() > MAX_CHUNK {
            return Err(PushError::ChunkLength(encoded.len()));
        }
        if self.chunks == MAX_CHUNKS {
            return Err(PushError::TooMany);
        }
        self.brought.count(encoded.len())?;
        self.chunks += 1;
        let brought = self.brought.clone();
        Ok(move || brought.put(&encoded))
    }

    /// Checks and signs; all chunks are kept. Blocking.
    pub(in crate::agent) fn seal(self, body: &[u8]) -> Result<Published, PublishError> {
        let draft = Draft::decode(body)?;
        if draft.identity.id() != self.identity || draft.subject != self.subject {
            return Err(PushError::Other.into());
        }
        self.grant.check(draft.identity.family(), draft.class)?;
        let manifest = Manifest::new(draft)?;
        check_captured(&manifest).map_err(PushError::from)?;
        let store = &self.publisher.store;
        // A few bytes can decode to many, and a chunk can occur many times.
        let in_time = || if Instant::now() < self.ends { Ok(()) } else { Err(PushError::Deadline) };
        check_content::<PublishError>(
            &manifest,
            &|chunk| in_time().map_err(PublishError::from).and_then(|()| Ok(store.read_chunk(chunk)?)),
            &|file, content| Ok(check_file(&manifest, file, content).map_err(PushError::from)?),
        )?;
        self.publisher.seal(manifest.into_draft())
    }
}

#[cfg(test)]
pub(in crate::agent) mod tests;
