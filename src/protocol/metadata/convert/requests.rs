//! What nodes send.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{Result, copy, endpoint_texts, endpoints, id, limited, node, page_token, page_token_bytes};
use crate::digest::IdentityId;
use crate::protocol::ProtocolError;
use crate::protocol::metadata::{
    Announcement, Epoch, Held, Lookup, MAX_EXCLUDE, MAX_HELD, MAX_HOLDERS, MAX_IDENTITIES, MAX_PAGE, PageRequest,
    ServerEpoch, Withdrawal, pb,
};

impl TryFrom<pb::AnnounceRequest> for Announcement {
    type Error = ProtocolError;
    fn try_from(request: pb::AnnounceRequest) -> Result<Self> {
        limited(&request.artifacts, "artifacts", MAX_HELD)?;
        let held = request.artifacts.into_iter().map(Held::try_from).collect::<Result<Vec<_>>>()?;
        let mut seen = HashSet::with_capacity(held.len());
        if !held.iter().all(|held| seen.insert(held.artifact.artifact)) {
            return Err(ProtocolError::Invalid("artifacts"));
        }
        Ok(Self {
            node: node(&request.node, "node")?,
            epoch: Epoch(request.epoch),
            sequence: request.sequence,
            state: request.state.try_into()?,
            endpoints: endpoints(&request.endpoints)?,
            load: request.load.unwrap_or_default().into(),
            locality: Arc::new(request.locality.unwrap_or_default().try_into()?),
            held,
            full: request.full,
            server_epoch: (request.server_epoch != 0).then_some(ServerEpoch(request.server_epoch)),
        })
    }
}

impl From<&Announcement> for pb::AnnounceRequest {
    fn from(announcement: &Announcement) -> Self {
        Self {
            node: copy(announcement.node.as_bytes()),
            epoch: announcement.epoch.0,
            sequence: announcement.sequence,
            state: announcement.state.into(),
            endpoints: endpoint_texts(&announcement.endpoints),
            load: Some(announcement.load.into()),
            locality: Some(announcement.locality.as_ref().into()),
            artifacts: announcement.held.iter().map(Into::into).collect(),
            full: announcement.full,
            server_epoch: announcement.server_epoch.map_or(0, |epoch| epoch.0),
        }
    }
}

impl TryFrom<pb::WithdrawRequest> for Withdrawal {
    type Error = ProtocolError;
    fn try_from(request: pb::WithdrawRequest) -> Result<Self> {
        Ok(Self {
            node: node(&request.node, "node")?,
            epoch: Epoch(request.epoch),
            sequence: request.sequence,
            artifact: id(&request.artifact_id, "artifact_id")?,
        })
    }
}

impl From<Withdrawal> for pb::WithdrawRequest {
    fn from(withdrawal: Withdrawal) -> Self {
        Self {
            node: copy(withdrawal.node.as_bytes()),
            epoch: withdrawal.epoch.0,
            sequence: withdrawal.sequence,
            artifact_id: copy(withdrawal.artifact.as_bytes()),
        }
    }
}

impl TryFrom<pb::LookupRequest> for Lookup {
    type Error = ProtocolError;
    fn try_from(request: pb::LookupRequest) -> Result<Self> {
        limited(&request.exclude, "exclude", MAX_EXCLUDE)?;
        if request.want as usize > MAX_HOLDERS {
            return Err(ProtocolError::TooMany { field: "want", limit: MAX_HOLDERS });
        }
        Ok(Self {
            identities: identities(&request.identities)?,
            want: (request.want != 0).then_some(request.want),
            near: request.locality.unwrap_or_default().try_into()?,
            exclude: request.exclude.iter().map(|bytes| node(bytes, "exclude")).collect::<Result<_>>()?,
        })
    }
}

impl From<&Lookup> for pb::LookupRequest {
    fn from(lookup: &Lookup) -> Self {
        Self {
            identities: lookup.identities.iter().map(|id| copy(id.as_bytes())).collect(),
            want: lookup.want.unwrap_or(0),
            locality: Some((&lookup.near).into()),
            exclude: lookup.exclude.iter().map(|id| copy(id.as_bytes())).collect(),
        }
    }
}

/// The identities of a watch.
impl TryFrom<pb::WatchRequest> for Vec<IdentityId> {
    type Error = ProtocolError;
    fn try_from(request: pb::WatchRequest) -> Result<Self> {
        identities(&request.identities)
    }
}

impl From<&[IdentityId]> for pb::WatchRequest {
    fn from(identities: &[IdentityId]) -> Self {
        Self { identities: identities.iter().map(|id| copy(id.as_bytes())).collect() }
    }
}

impl TryFrom<pb::ListRequest> for PageRequest {
    type Error = ProtocolError;
    fn try_from(request: pb::ListRequest) -> Result<Self> {
        if request.page_size as usize > MAX_PAGE {
            return Err(ProtocolError::TooMany { field: "page_size", limit: MAX_PAGE });
        }
        let family = match request.family.as_str() {
            "" => None,
            family => Some(family.parse().map_err(|_| ProtocolError::Invalid("family"))?),
        };
        Ok(Self {
            after: page_token(&request.page_token)?,
            size: (request.page_size != 0).then_some(request.page_size),
            family,
            subject: (!request.subject.is_empty()).then_some(request.subject),
        })
    }
}

impl From<&PageRequest> for pb::ListRequest {
    fn from(request: &PageRequest) -> Self {
        Self {
            page_token: page_token_bytes(request.after),
            page_size: request.size.unwrap_or(0),
            family: request.family.as_ref().map(ToString::to_string).unwrap_or_default(),
            subject: request.subject.clone().unwrap_or_default(),
        }
    }
}

fn identities(ids: &[Bytes]) -> Result<Vec<IdentityId>> {
    if ids.is_empty() {
        return Err(ProtocolError::Missing("identities"));
    }
    limited(ids, "identities", MAX_IDENTITIES)?;
    let mut seen = HashSet::new();
    let ids = ids.iter().map(|bytes| id(bytes, "identities")).collect::<Result<Vec<_>>>()?;
    if ids.iter().all(|id| seen.insert(*id)) { Ok(ids) } else { Err(ProtocolError::Invalid("identities")) }
}
