//! The peer protocol's frames; `proto/peer.proto` describes the whole exchange.
//!
//! A frame is 4 bytes length, 4 bytes CRC32C of the body (both big endian), body. A chunk is preceded by a head of 12 bytes:
//! index, encoded length, CRC32C of those eight bytes. The checksums tell a desynchronised or damaged stream at once;
//! chunk digests and signatures decide trust.

use std::num::NonZeroU16;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::metadata::Endpoint;
use super::{ProtocolError, pb};
use crate::artifact::{Bitmap, MAX_CHUNK, MAX_CHUNKS, MAX_ENVELOPE};
use crate::digest::ArtifactId;
use crate::identity::NodeId;

#[cfg(test)]
mod tests;

/// Bytes before the body of a frame.
pub const FRAME_HEAD: usize = 8;

/// Largest frame body: a bitmap of the largest artifact, and room to spare.
pub const MAX_FRAME: usize = 32 * 1024;

/// Bytes before each chunk.
pub const CHUNK_HEAD: usize = 12;

/// Most chunks in one request.
pub const MAX_INDICES: usize = 64;

/// Most neighbours that one answer names.
pub const MAX_OTHERS: usize = 16;

/// What a puller asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Manifest(ArtifactId),
    /// The answer may wait a little until the holder has more chunks than this.
    Have(ArtifactId, Option<u32>),
    /// Not empty, no index twice.
    Chunks(ArtifactId, Vec<u32>),
    /// The same, unless one of them was sent to another node lately.
    FreshChunks(ArtifactId, Vec<u32>),
}

/// A request and the W3C trace context that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    pub request: Request,
    /// UDP port at which the asker serves, at the address that it is seen at; `None` if it does not.
    pub port: Option<NonZeroU16>,
    pub traceparent: String,
}

/// What a holder answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The envelope of this many bytes follows.
    Manifest {
        len: usize,
    },
    Have(HaveAnswer),
    /// The chunks asked for follow, each after its head; the length is the sum of their encoded bytes.
    Chunks {
        len: u64,
    },
    Busy(Busy),
    /// Of fresh chunks not all are: which ones were sent to other nodes lately.
    Given(Bitmap),
    Refused(Reason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveAnswer {
    pub have: Bitmap,
    pub uploads: u32,
    pub upload_slots: u32,
}

/// All upload slots are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    pub retry_after: Duration,
    /// Others that fetch the same artifact and may have chunks of it; at most [`MAX_OTHERS`].
    pub others: Vec<Neighbour>,
}

/// A node that may be asked, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub node: NodeId,
    pub endpoint: Endpoint,
}

/// Why a holder does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the holder does not have it")]
    NotFound,
    #[error("the holder is draining")]
    Draining,
    #[error("the holder may not serve it")]
    Forbidden,
    #[error("the holder did not understand the request")]
    BadRequest,
}

/// A framed message.
pub fn frame(body: &impl Message) -> Bytes {
    let len = body.encoded_len();
    let mut out = BytesMut::with_capacity(FRAME_HEAD + len);
    out.put_bytes(0, FRAME_HEAD);
    // A BytesMut grows as needed, so encoding cannot run out of room.
    let _ = body.encode(&mut out);
    let crc = crc32c::crc32c(&out[FRAME_HEAD..]);
    out[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    out[4..FRAME_HEAD].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

/// The length of the body that follows a frame head, within bounds.
pub fn body_len(head: [u8; FRAME_HEAD]) -> Result<usize, ProtocolError> {
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if len > MAX_FRAME { Err(ProtocolError::TooMany { field: "frame", limit: MAX_FRAME }) } else { Ok(len) }
}

fn checked(head: [u8; FRAME_HEAD], body: &[u8]) -> Result<&[u8], ProtocolError> {
    let crc = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if crc32c::crc32c(body) == crc { Ok(body) } else { Err(ProtocolError::Frame) }
}

/// The head of chunk `index`.
pub fn chunk_head(index: u32, len: u32) -> [u8; CHUNK_HEAD] {
    let mut out = [0; CHUNK_HEAD];
    out[..4].copy_from_slice(&index.to_be_bytes());
    out[4..8].copy_from_slice(&len.to_be_bytes());
    let crc = crc32c::crc32c(&out[..8]);
    out[8..].copy_from_slice(&crc.to_be_bytes());
    out
}

impl Traced {
    pub fn encode(&self) -> Bytes {
        let id = |artifact: &ArtifactId| Bytes::copy_from_slice(artifact.as_bytes());
        let request = match &self.request {
            Request::Manifest(artifact) => {
                pb::peer_request::Request::Manifest(pb::ManifestRequest { artifact_id: id(artifact) })
            }
            Request::Have(artifact, known) => {
                pb::peer_request::Request::Have(pb::HaveRequest { artifact_id: id(artifact), known: *known })
            }
            Request::Chunks(artifact, indices) | Request::FreshChunks(artifact, indices) => {
                let fresh = matches!(self.request, Request::FreshChunks(..));
                let (artifact_id, indices) = (id(artifact), indices.clone());
                pb::peer_request::Request::Chunks(pb::ChunksRequest { artifact_id, indices, fresh })
            }
        };
        let port = self.port.map_or(0, |port| port.get().into());
        frame(&pb::PeerRequest { request: Some(request), port, traceparent: self.traceparent.clone() })
    }

    pub fn decode(head: [u8; FRAME_HEAD], body: &[u8]) -> Result<Self, ProtocolError> {
        let message = pb::PeerRequest::decode(checked(head, body)?).map_err(|_| ProtocolError::Frame)?;
        let id = |bytes: &[u8]| ArtifactId::try_from(bytes).map_err(|_| ProtocolError::Invalid("artifact_id"));
        let request = match message.request.ok_or(ProtocolError::Missing("request"))? {
            pb::peer_request::Request::Manifest(r) => Request::Manifest(id(&r.artifact_id)?),
            pb::peer_request::Request::Have(r) => Request::Have(id(&r.artifact_id)?, r.known),
            pb::peer_request::Request::Chunks(r) => {
                let (artifact, indices) = (id(&r.artifact_id)?, check_indices(r.indices)?);
                if r.fresh { Request::FreshChunks(artifact, indices) } else { Request::Chunks(artifact, indices) }
            }
        };
        let traceparent = message.traceparent;
        if traceparent.len() > 64 || !traceparent.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return Err(ProtocolError::Invalid("traceparent"));
        }
        let port = u16::try_from(message.port).map_err(|_| ProtocolError::Invalid("port"))?;
        Ok(Self { request, port: NonZeroU16::new(port), traceparent })
    }
}

fn check_indices(indices: Vec<u32>) -> Result<Vec<u32>, ProtocolError> {
    if indices.len() > MAX_INDICES {
        return Err(ProtocolError::TooMany { field: "indices", limit: MAX_INDICES });
    }
    let mut sorted = indices.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if indices.is_empty() || sorted.len() < indices.len() {
        return Err(ProtocolError::Invalid("indices"));
    }
    Ok(indices)
}

impl Answer {
    pub fn encode(&self) -> Bytes {
        use pb::peer_answer::Answer as Pb;
        let answer = match self {
            Self::Manifest { len } => Pb::Manifest(pb::ManifestAnswer { len: u32::try_from(*len).unwrap_or(u32::MAX) }),
            Self::Have(have) => Pb::Have(pb::HaveAnswer {
                chunk_count: u32::try_from(have.have.len()).unwrap_or(u32::MAX),
                bitmap: if have.have.is_full() { Bytes::new() } else { have.have.to_bytes().into() },
                uploads: have.uploads,
                upload_slots: have.upload_slots,
            }),
            Self::Chunks { len } => Pb::Chunks(pb::ChunksAnswer { len: *len }),
            Self::Busy(busy) => Pb::Busy(pb::Busy {
                retry_after_ms: u32::try_from(busy.retry_after.as_millis()).unwrap_or(u32::MAX),
                others: busy.others.iter().take(MAX_OTHERS).map(encode_neighbour).collect(),
            }),
            Self::Given(given) => Pb::Given(pb::Given {
                chunk_count: u32::try_from(given.len()).unwrap_or(u32::MAX),
                bitmap: given.to_bytes().into(),
            }),
            Self::Refused(reason) => Pb::Refusal(pb::Refusal { reason: pb::refusal::Reason::from(*reason).into() }),
        };
        frame(&pb::PeerAnswer { answer: Some(answer) })
    }

    pub fn decode(head: [u8; FRAME_HEAD], body: &[u8]) -> Result<Self, ProtocolError> {
        use pb::peer_answer::Answer as Pb;
        let message = pb::PeerAnswer::decode(checked(head, body)?).map_err(|_| ProtocolError::Frame)?;
        Ok(match message.answer.ok_or(ProtocolError::Missing("answer"))? {
            Pb::Manifest(answer) => {
                let len = answer.len as usize;
                if len > MAX_ENVELOPE {
                    return Err(ProtocolError::TooMany { field: "len", limit: MAX_ENVELOPE });
                }
                Self::Manifest { len }
            }
            Pb::Have(answer) => Self::Have(decode_have(&answer)?),
            Pb::Chunks(answer) => {
                if answer.len > (MAX_INDICES * MAX_CHUNK) as u64 {
                    return Err(ProtocolError::TooMany { field: "len", limit: MAX_INDICES * MAX_CHUNK });
                }
                Self::Chunks { len: answer.len }
            }
            Pb::Busy(busy) => Self::Busy(decode_busy(&busy)?),
            Pb::Given(given) => Self::Given(decode_bitmap(given.chunk_count, &given.bitmap)?),
            Pb::Refusal(refusal) => Self::Refused(decode_reason(refusal.reason)?),
        })
    }
}

fn check_count(count: u32) -> Result<usize, ProtocolError> {
    let count = count as usize;
    let too_many = ProtocolError::TooMany { field: "chunk_count", limit: MAX_CHUNKS };
    if count > MAX_CHUNKS { Err(too_many) } else { Ok(count) }
}

fn decode_bitmap(count: u32, bytes: &[u8]) -> Result<Bitmap, ProtocolError> {
    Bitmap::from_bytes(bytes, check_count(count)?).ok_or(ProtocolError::Invalid("bitmap"))
}

fn decode_have(answer: &pb::HaveAnswer) -> Result<HaveAnswer, ProtocolError> {
    let have = match answer.bitmap.is_empty() {
        true => Bitmap::full(check_count(answer.chunk_count)?),
        false => decode_bitmap(answer.chunk_count, &answer.bitmap)?,
    };
    Ok(HaveAnswer { have, uploads: answer.uploads, upload_slots: answer.upload_slots })
}

fn encode_neighbour(other: &Neighbour) -> pb::Neighbour {
    pb::Neighbour { node_id: Bytes::copy_from_slice(other.node.as_bytes()), endpoint: other.endpoint.to_string() }
}

fn decode_busy(busy: &pb::Busy) -> Result<Busy, ProtocolError> {
    if busy.others.len() > MAX_OTHERS {
        return Err(ProtocolError::TooMany { field: "others", limit: MAX_OTHERS });
    }
    let others = busy.others.iter().map(|other| {
        let node = NodeId::from_bytes(&other.node_id).map_err(|_| ProtocolError::Invalid("others"))?;
        let endpoint = other.endpoint.parse().map_err(|_| ProtocolError::Invalid("others"))?;
        Ok(Neighbour { node, endpoint })
    });
    let retry_after = Duration::from_millis(u64::from(busy.retry_after_ms));
    Ok(Busy { retry_after, others: others.collect::<Result<_, _>>()? })
}

fn decode_reason(reason: i32) -> Result<Reason, ProtocolError> {
    match pb::refusal::Reason::try_from(reason) {
        Ok(pb::refusal::Reason::NotFound) => Ok(Reason::NotFound),
        Ok(pb::refusal::Reason::Draining) => Ok(Reason::Draining),
        Ok(pb::refusal::Reason::Forbidden) => Ok(Reason::Forbidden),
        Ok(pb::refusal::Reason::BadRequest) => Ok(Reason::BadRequest),
        Ok(pb::refusal::Reason::Unspecified) | Err(_) => Err(ProtocolError::Invalid("reason")),
    }
}

impl From<Reason> for pb::refusal::Reason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::NotFound => Self::NotFound,
            Reason::Draining => Self::Draining,
            Reason::Forbidden => Self::Forbidden,
            Reason::BadRequest => Self::BadRequest,
        }
    }
}
