//! What agents say to each other without a server in between.

use std::sync::Arc;

use prost::Message;

use super::super::types::{Holdings, Question};
use super::super::{MAX_HOLDINGS, MAX_IDENTITIES, pb};
use super::{Result, copy, decode, endpoint_texts, endpoints, id, limited};
use crate::protocol::ProtocolError;

impl TryFrom<pb::HoldingsRequest> for Question {
    type Error = ProtocolError;
    fn try_from(request: pb::HoldingsRequest) -> Result<Self> {
        limited(&request.identities, "identities", MAX_IDENTITIES)?;
        let mut identities: Vec<_> =
            request.identities.iter().map(|one| id(one, "identities")).collect::<Result<_>>()?;
        identities.sort_unstable();
        identities.dedup();
        Ok(Self { identities })
    }
}

impl From<&Question> for pb::HoldingsRequest {
    fn from(question: &Question) -> Self {
        Self { identities: question.identities.iter().map(|identity| copy(identity.as_bytes())).collect() }
    }
}

impl TryFrom<pb::HoldingsReply> for Holdings {
    type Error = ProtocolError;
    fn try_from(reply: pb::HoldingsReply) -> Result<Self> {
        limited(&reply.artifacts, "artifacts", MAX_HOLDINGS)?;
        Ok(Self {
            endpoints: endpoints(&reply.endpoints)?,
            load: reply.load.unwrap_or_default().into(),
            locality: Arc::new(reply.locality.unwrap_or_default().try_into()?),
            held: reply.artifacts.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
        })
    }
}

impl From<&Holdings> for pb::HoldingsReply {
    fn from(holdings: &Holdings) -> Self {
        Self {
            endpoints: endpoint_texts(&holdings.endpoints),
            load: Some(holdings.load.into()),
            locality: Some(holdings.locality.as_ref().into()),
            artifacts: holdings.held.iter().map(Into::into).collect(),
        }
    }
}

impl Question {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pb::HoldingsRequest::from(self).encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode::<pb::HoldingsRequest>(bytes)?.try_into()
    }
}

impl Holdings {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pb::HoldingsReply::from(self).encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode::<pb::HoldingsReply>(bytes)?.try_into()
    }
}
