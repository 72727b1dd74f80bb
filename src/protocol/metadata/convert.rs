//! Generated types to domain types, checked, and back. Here are the parts that requests and replies share.

mod peers;
mod replies;
mod requests;
pub(super) mod trust;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::codec::{Shaped, check};
use super::types::{Announcement, Endpoint, Held, Load, Locality, NodeState, PageToken, Summary};
use super::{MAX_ENDPOINTS, MAX_PLACE, MAX_SUBJECT, pb};
use crate::artifact::MAX_CHUNKS;
use crate::identity::{NodeId, UnixTime};
use crate::protocol::ProtocolError;

type Result<T> = std::result::Result<T, ProtocolError>;

pub(in crate::protocol) fn id<'a, T: TryFrom<&'a [u8]>>(bytes: &'a Bytes, field: &'static str) -> Result<T> {
    if bytes.is_empty() {
        return Err(ProtocolError::Missing(field));
    }
    T::try_from(bytes.as_ref()).map_err(|_| ProtocolError::Invalid(field))
}

pub(in crate::protocol) fn node(bytes: &Bytes, field: &'static str) -> Result<NodeId> {
    if bytes.is_empty() {
        return Err(ProtocolError::Missing(field));
    }
    NodeId::from_bytes(bytes).map_err(|_| ProtocolError::Invalid(field))
}

pub(in crate::protocol) fn copy(id: &[u8; 32]) -> Bytes {
    Bytes::copy_from_slice(id)
}

fn limited<T>(items: &[T], field: &'static str, limit: usize) -> Result<()> {
    if items.len() > limit { Err(ProtocolError::TooMany { field, limit }) } else { Ok(()) }
}

fn text(text: String, field: &'static str, limit: usize) -> Result<String> {
    limited(text.as_bytes(), field, limit)?;
    if text.chars().any(char::is_control) { Err(ProtocolError::Invalid(field)) } else { Ok(text) }
}

fn endpoints(texts: &[String]) -> Result<Arc<[Endpoint]>> {
    limited(texts, "endpoints", MAX_ENDPOINTS)?;
    texts.iter().map(|text| text.parse().map_err(|_| ProtocolError::Invalid("endpoints"))).collect()
}

fn endpoint_texts(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

impl TryFrom<i32> for NodeState {
    type Error = ProtocolError;
    fn try_from(value: i32) -> Result<Self> {
        match pb::NodeState::try_from(value) {
            Ok(pb::NodeState::Initializing) => Ok(Self::Initializing),
            Ok(pb::NodeState::Ready) => Ok(Self::Ready),
            Ok(pb::NodeState::Draining) => Ok(Self::Draining),
            Ok(pb::NodeState::Stale) => Ok(Self::Stale),
            Ok(pb::NodeState::Unspecified) => Err(ProtocolError::Missing("state")),
            Err(_) => Err(ProtocolError::Invalid("state")),
        }
    }
}

impl From<NodeState> for i32 {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Initializing => pb::NodeState::Initializing,
            NodeState::Ready => pb::NodeState::Ready,
            NodeState::Draining => pb::NodeState::Draining,
            NodeState::Stale => pb::NodeState::Stale,
        }
        .into()
    }
}

impl From<pb::Load> for Load {
    fn from(load: pb::Load) -> Self {
        Self { uploads: load.uploads, upload_slots: load.upload_slots }
    }
}

impl From<Load> for pb::Load {
    fn from(load: Load) -> Self {
        Self { uploads: load.uploads, upload_slots: load.upload_slots }
    }
}

impl TryFrom<pb::Locality> for Locality {
    type Error = ProtocolError;
    fn try_from(locality: pb::Locality) -> Result<Self> {
        Ok(Self {
            region: text(locality.region, "region", MAX_PLACE)?,
            zone: text(locality.zone, "zone", MAX_PLACE)?,
            rack: text(locality.rack, "rack", MAX_PLACE)?,
        })
    }
}

impl From<&Locality> for pb::Locality {
    fn from(locality: &Locality) -> Self {
        Self { region: locality.region.clone(), zone: locality.zone.clone(), rack: locality.rack.clone() }
    }
}

impl TryFrom<pb::Summary> for Summary {
    type Error = ProtocolError;
    fn try_from(summary: pb::Summary) -> Result<Self> {
        if summary.chunks as usize > MAX_CHUNKS {
            return Err(ProtocolError::Invalid("chunks"));
        }
        Ok(Self {
            artifact: id(&summary.artifact_id, "artifact_id")?,
            identity: id(&summary.identity, "identity")?,
            content: id(&summary.content_id, "content_id")?,
            family: summary.family.parse().map_err(|_| ProtocolError::Invalid("family"))?,
            subject: text(summary.subject, "subject", MAX_SUBJECT)?.into(),
            generation: summary.generation,
            created: UnixTime::from_seconds(summary.created_s),
            size: summary.size,
            wire_size: summary.wire_size,
            files: summary.files,
            chunks: summary.chunks,
            signer: id(&summary.signer, "signer")?,
            compile_ms: summary.compile_ms,
        })
    }
}

impl From<&Summary> for pb::Summary {
    fn from(summary: &Summary) -> Self {
        Self {
            artifact_id: copy(summary.artifact.as_bytes()),
            identity: copy(summary.identity.as_bytes()),
            content_id: copy(summary.content.as_bytes()),
            family: summary.family.to_string(),
            subject: summary.subject.to_string(),
            generation: summary.generation,
            created_s: summary.created.seconds(),
            size: summary.size,
            wire_size: summary.wire_size,
            files: summary.files,
            chunks: summary.chunks,
            signer: copy(summary.signer.as_bytes()),
            compile_ms: summary.compile_ms,
        }
    }
}

impl TryFrom<pb::Held> for Held {
    type Error = ProtocolError;
    fn try_from(held: pb::Held) -> Result<Self> {
        let artifact: Summary = held.artifact.ok_or(ProtocolError::Missing("artifact"))?.try_into()?;
        if held.chunks_held > artifact.chunks {
            return Err(ProtocolError::Invalid("chunks_held"));
        }
        Ok(Self { artifact: Arc::new(artifact), chunks_held: held.chunks_held })
    }
}

impl From<&Held> for pb::Held {
    fn from(held: &Held) -> Self {
        Self { artifact: Some(held.artifact.as_ref().into()), chunks_held: held.chunks_held }
    }
}

fn page_token(bytes: &Bytes) -> Result<Option<PageToken>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let token: [u8; 4] = bytes.as_ref().try_into().map_err(|_| ProtocolError::Invalid("page_token"))?;
    Ok(Some(PageToken(u32::from_be_bytes(token))))
}

fn page_token_bytes(token: Option<PageToken>) -> Bytes {
    token.map_or_else(Bytes::new, |token| Bytes::copy_from_slice(&token.0.to_be_bytes()))
}

impl Announcement {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pb::AnnounceRequest::from(self).encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode::<pb::AnnounceRequest>(bytes)?.try_into()
    }
}

impl Held {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pb::Held::from(self).encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode::<pb::Held>(bytes)?.try_into()
    }
}

pub(in crate::protocol) fn decode<T: Shaped>(bytes: &[u8]) -> Result<T> {
    check(bytes, T::SHAPE)?;
    T::decode(bytes).map_err(|_| ProtocolError::Frame)
}
