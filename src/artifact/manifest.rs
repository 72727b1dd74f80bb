//! The signed description of an artifact.

mod check;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Codec, MAX_BODY, MAX_ENVELOPE, PathError, RelPath, SourceIdentity, SourceIdentityError, Span, wire};
use crate::digest::{ArtifactId, ContentId, Digest, InvalidDigest, KeyId};
use crate::identity::{
    Claim, Envelope, EnvelopeError, Policy, PrivateKey, PublicKey, Refusal, TrustClass, UnixTime, Verdict, Verified,
};

/// DSSE payload type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.warmd.manifest.v1";

/// A manifest was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The trust policy says no; the bytes may be fine.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("manifest of {0} bytes, allowed are {MAX_ENVELOPE}")]
    TooLarge(usize),
    #[error("manifest is malformed")]
    Malformed,
    #[error("manifest has unknown, repeated or misordered fields")]
    NotCanonical,
    #[error("manifest of schema {0}, this warmd reads schema 1")]
    Schema(u32),
    #[error("manifest names no trust class")]
    TrustClass,
    #[error(transparent)]
    Identity(#[from] SourceIdentityError),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    #[error("`{path}`: {source}")]
    Path { path: String, source: PathError },
    #[error("more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    #[error("manifest has no files")]
    Empty,
    #[error("files are not sorted, or `{0}` occurs twice")]
    FileOrder(RelPath),
    #[error("`{0}` is a file and a directory at once")]
    FileAndDirectory(RelPath),
    #[error("`{0}` and another path differ only in case")]
    CaseCollision(RelPath),
    #[error("`{0}` lies outside the content stream, across a chunk boundary, or over another file")]
    FilePlace(RelPath),
    #[error("chunk {0} has impossible lengths")]
    ChunkLength(usize),
    #[error("chunk {0} belongs to no file")]
    UnusedChunk(usize),
    #[error("entries are not sorted, or `{0}` occurs twice, holds no file, or lies in another entry")]
    Entry(RelPath),
    #[error("`{0}` belongs to no entry")]
    NoEntry(RelPath),
    #[error("subject, provenance or an attribute is longer than 4,096 bytes or has control characters")]
    Text,
}

/// A file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub path: RelPath,
    /// Mode 0755, else 0644.
    pub executable: bool,
    /// Nanoseconds since the epoch; 0 where the family does not need it.
    pub mtime_ns: u64,
    /// Bytes.
    pub size: u64,
    pub digest: Digest,
    /// Where its content begins in the content stream; 0 for an empty file.
    pub offset: u64,
}

/// A chunk of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Of the encoded bytes: what comes from outside is verified before it is decoded.
    pub digest: Digest,
    /// Bytes, at most [`MAX_CHUNK`](super::MAX_CHUNK) both.
    pub encoded_len: u32,
    pub decoded_len: u32,
    pub codec: Codec,
}

/// Where an artifact was built; for people and for policies, not for lookups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    pub image_digest: String,
    pub engine_version: String,
    pub builder: String,
}

/// The fields of a manifest, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub identity: SourceIdentity,
    pub class: TrustClass,
    pub subject: String,
    pub generation: u64,
    pub created: UnixTime,
    pub expires: Option<UnixTime>,
    pub provenance: Provenance,
    pub files: Vec<File>,
    pub chunks: Vec<Chunk>,
    pub entries: Vec<RelPath>,
    pub attributes: BTreeMap<String, String>,
}

impl Draft {
    /// The body of a manifest, as it is signed.
    pub fn encode(&self) -> Result<Bytes, ManifestError> {
        let body = Bytes::from(wire::encode(self));
        if body.len() > MAX_BODY { Err(ManifestError::TooLarge(body.len())) } else { Ok(body) }
    }

    /// Only what [`Draft::encode`] makes, byte for byte. Whether its parts fit together is for [`Manifest::new`].
    pub fn decode(body: &[u8]) -> Result<Self, ManifestError> {
        if body.len() > MAX_BODY { Err(ManifestError::TooLarge(body.len())) } else { wire::decode(body) }
    }
}

/// A manifest whose parts fit together: every file lies in the stream, every chunk is used, every path is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    draft: Draft,
    /// Where each chunk begins in the stream, and the stream's end.
    chunk_offsets: Vec<u64>,
}

impl std::ops::Deref for Manifest {
    type Target = Draft;
    fn deref(&self) -> &Draft {
        &self.draft
    }
}

impl Manifest {
    /// Checks every rule of this format.
    pub fn new(draft: Draft) -> Result<Self, ManifestError> {
        let chunk_offsets = check::check(&draft)?;
        Ok(Self { draft, chunk_offsets })
    }

    pub fn into_draft(self) -> Draft {
        self.draft
    }

    pub fn content_id(&self) -> ContentId {
        content_id(&self.draft.files)
    }

    /// Decoded bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Encoded bytes of all chunks.
    pub fn wire_size(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.encoded_len)).sum()
    }

    /// Where the content of `file` lies, in file order; empty for an empty file.
    pub fn spans(&self, file: &File) -> impl Iterator<Item = Span> + '_ {
        let (begin, end) = (file.offset, file.offset + file.size);
        let first = self.chunk_offsets.partition_point(|offset| *offset <= begin).saturating_sub(1);
        let past = if file.size == 0 { first } else { self.chunk_offsets.partition_point(|offset| *offset < end) };
        (first..past).map(move |chunk| {
            let chunk_begin = self.chunk_offsets[chunk];
            let from = begin.max(chunk_begin);
            let to = end.min(self.chunk_offsets[chunk + 1]);
            // Both differences are at most one chunk's length.
            Span { chunk, in_chunk: (from - chunk_begin) as usize..(to - chunk_begin) as usize, in_file: from - begin }
        })
    }

    /// The entry that `path` belongs to.
    pub fn entry_of(&self, path: &RelPath) -> Option<&RelPath> {
        check::entry_of(&self.entries, path)
    }

    /// How long its publisher was compiling it, if it says so and can have been.
    pub fn compile_time(&self) -> Option<Duration> {
        let seconds: f64 = self.attributes.get(COMPILE_SECONDS)?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok().filter(|spent| *spent <= MAX_COMPILE_TIME)
    }

    fn claim(&self, artifact: ArtifactId) -> Claim<'_> {
        Claim {
            artifact,
            family: self.identity.family().as_str(),
            class: self.class,
            subject: &self.subject,
            facts: self.identity.facts(),
            created: self.created,
            expires: self.expires,
        }
    }
}

/// An attribute: seconds, as its publisher measured them.
pub const COMPILE_SECONDS: &str = "compile_seconds";

const MAX_COMPILE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Over (path, mode, file digest), in path order, each path with its length in four bytes, big endian.
pub fn content_id(files: &[File]) -> ContentId {
    // Many files at a time: BLAKE3 is several times faster on long inputs.
    const PIECE: usize = 64 * 1024;
    let mut hasher = blake3::Hasher::new();
    let mut piece = b"warmd/content/1".to_vec();
    for file in files {
        let path = file.path.as_str().as_bytes();
        piece.extend_from_slice(&u32::try_from(path.len()).unwrap_or(u32::MAX).to_be_bytes());
        piece.extend_from_slice(path);
        piece.push(u8::from(file.executable));
        piece.extend_from_slice(file.digest.as_bytes());
        if piece.len() >= PIECE {
            hasher.update(&piece);
            piece.clear();
        }
    }
    hasher.update(&piece).finalize().into()
}

/// A manifest with the exact bytes that were signed. Says nothing about whether anybody trusts the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedManifest {
    id: ArtifactId,
    envelope: Bytes,
    signer: KeyId,
    /// Who else signed, by what the envelope claims.
    others: Vec<KeyId>,
    manifest: Manifest,
}

/// A manifest that the trust policy accepted. Only this can be installed. Clones share the manifest.
#[derive(Debug, Clone)]
pub struct Admitted {
    signed: Arc<SignedManifest>,
    signers: Vec<String>,
    keys: Vec<KeyId>,
}

impl SignedManifest {
    pub fn sign(draft: Draft, key: &PrivateKey) -> Result<Self, ManifestError> {
        let manifest = Manifest::new(draft)?;
        let body = manifest.draft.encode()?;
        let id = ArtifactId::of(&body);
        let envelope = Envelope::sign(MANIFEST_TYPE, body, &[key]).encode();
        Ok(Self { id, envelope, signer: key.public().id(), others: Vec::new(), manifest })
    }

    /// Verifies the signature, then parses the very bytes that were verified, then asks the policy about what they claim.
    pub fn admit(envelope: Bytes, policy: &Policy, now: UnixTime) -> Result<Admitted, ManifestError> {
        let parsed = decode_envelope(&envelope)?;
        let verified = policy.verify(&parsed)?;
        Arc::new(Self::from_envelope(envelope, &parsed)?).judged(&verified, policy, now)
    }

    /// As [`SignedManifest::admit`] of the envelope that this was parsed from, which is not parsed again.
    pub fn readmit(self: &Arc<Self>, policy: &Policy, now: UnixTime) -> Result<Admitted, ManifestError> {
        let verified = policy.verify(&decode_envelope(&self.envelope)?)?;
        self.clone().judged(&verified, policy, now)
    }

    fn judged(self: Arc<Self>, verified: &Verified, policy: &Policy, now: UnixTime) -> Result<Admitted, ManifestError> {
        let signers = policy.admit(verified, &self.manifest.claim(self.id), now)?;
        let keys = policy.keys_of(&signers);
        Ok(Admitted { signed: self, signers, keys })
    }

    /// For those who hold it: whether `policy` has revoked it, or too many of those who really signed it. Signatures are
    /// verified only where a revoked key is claimed and others might stand for it.
    pub fn is_revoked(&self, policy: &Policy) -> bool {
        let claimed = self.key_ids();
        let revoked = policy.is_revoked(&self.id, &claimed);
        if revoked || !claimed.iter().any(|key| policy.is_key_revoked(key)) {
            return revoked;
        }
        let verified = decode_envelope(&self.envelope).ok().and_then(|envelope| policy.verify(&envelope).ok());
        let verified = verified.iter().flat_map(Verified::key_ids);
        let signed_by: Vec<KeyId> =
            claimed.iter().copied().filter(|key| policy.is_key_revoked(key)).chain(verified).collect();
        policy.is_revoked(&self.id, &signed_by)
    }

    /// Whether `key` really signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let verifies = |envelope: Envelope| !envelope.verify(std::iter::once(key)).is_empty();
        self.key_ids().contains(&key.id()) && decode_envelope(&self.envelope).is_ok_and(verifies)
    }

    /// The verdict of the policy on each signer that it knows; for people.
    pub fn explain(envelope: Bytes, policy: &Policy, now: UnixTime) -> Result<Vec<Verdict>, ManifestError> {
        let parsed = decode_envelope(&envelope)?;
        let verified = policy.verify(&parsed)?;
        let signed = Self::from_envelope(envelope, &parsed)?;
        Ok(policy.explain(&verified, &signed.manifest.claim(signed.id), now))
    }

    /// Parses without asking who signed. For bytes that this node verified or signed before, and for showing to people.
    pub fn decode_unverified(envelope: Bytes) -> Result<Self, ManifestError> {
        let parsed = decode_envelope(&envelope)?;
        Self::from_envelope(envelope, &parsed)
    }

    fn from_envelope(bytes: Bytes, parsed: &Envelope) -> Result<Self, ManifestError> {
        let body = parsed.payload();
        let manifest = Manifest::new(wire::decode(body)?)?;
        let mut keys = parsed.key_ids();
        let signer = keys.next().ok_or(ManifestError::Malformed)?;
        Ok(Self { id: ArtifactId::of(body), envelope: bytes, signer, others: keys.collect(), manifest })
    }

    pub fn id(&self) -> ArtifactId {
        self.id
    }

    /// The envelope's bytes, as stored and sent.
    pub fn envelope(&self) -> &Bytes {
        &self.envelope
    }

    /// Key id of the first signature, as the envelope claims it.
    pub fn signer(&self) -> KeyId {
        self.signer
    }

    /// Key ids of all signatures, as the envelope claims them.
    pub fn key_ids(&self) -> Vec<KeyId> {
        std::iter::once(self.signer).chain(self.others.iter().copied()).collect()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Admitted {
    /// Names of the signers that the policy accepted.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// Their keys.
    pub fn keys(&self) -> &[KeyId] {
        &self.keys
    }

    pub fn into_signed(self) -> Arc<SignedManifest> {
        self.signed
    }
}

impl std::ops::Deref for Admitted {
    type Target = SignedManifest;
    fn deref(&self) -> &SignedManifest {
        &self.signed
    }
}

fn decode_envelope(bytes: &Bytes) -> Result<Envelope, ManifestError> {
    if bytes.len() > MAX_ENVELOPE {
        return Err(ManifestError::TooLarge(bytes.len()));
    }
    Ok(Envelope::decode(MANIFEST_TYPE, bytes.clone())?)
}

#[cfg(test)]
impl SignedManifest {
    /// With a signature in front that claims `key`, and that nobody has made.
    pub(crate) fn with_junk_of(&self, key: KeyId) -> Self {
        // A field of 100 bytes, with one of 32 and one of 64.
        let junk = [&[0x1a, 0x64, 0x0a, 0x20][..], key.as_bytes(), &[0x12, 0x40], &[7; 64]].concat();
        let front = self.envelope.len() - junk.len() * self.key_ids().len();
        Self::decode_unverified([&self.envelope[..front], &junk, &self.envelope[front..]].concat().into()).unwrap()
    }
}

#[cfg(test)]
mod tests;
