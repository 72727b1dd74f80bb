//! Summaries on their own: made from a manifest, and as bytes.

use prost::Message;

use super::{Summary, pb};
use crate::artifact::SignedManifest;
use crate::digest::ContentId;
use crate::protocol::ProtocolError;

impl Summary {
    /// What the manifest says. `content` is its content id, which takes long to make for many files.
    pub fn of(signed: &SignedManifest, content: ContentId) -> Self {
        let manifest = signed.manifest();
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Self {
            artifact: signed.id(),
            identity: manifest.identity.id(),
            content,
            family: manifest.identity.family().clone(),
            subject: manifest.subject.as_str().into(),
            generation: manifest.generation,
            created: manifest.created,
            size: manifest.size(),
            wire_size: manifest.wire_size(),
            files: count(manifest.files.len()),
            chunks: count(manifest.chunks.len()),
            signer: signed.signer(),
            compile_ms: manifest.compile_time().map_or(0, |spent| u32::try_from(spent.as_millis()).unwrap_or(u32::MAX)),
        }
    }

    /// The message `Summary` of `proto/metadata.proto`.
    pub fn encode(&self) -> Vec<u8> {
        pb::Summary::from(self).encode_to_vec()
    }

    /// Anybody can have written them: checked as if they came from a peer.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        pb::Summary::decode(bytes).map_err(|_| ProtocolError::Frame)?.try_into()
    }
}
