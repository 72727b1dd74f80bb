//! What the server answers.

use std::sync::Arc;
use std::time::Duration;

use super::{Result, copy, endpoint_texts, endpoints, id, limited, node, page_token, page_token_bytes};
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::NodeId;
use crate::protocol::ProtocolError;
use crate::protocol::metadata::{
    AnnounceReply, Found, HolderInfo, MAX_HOLDERS, MAX_OFFERS, Offer, Page, ServerEpoch, Summary, WatchEvent,
    WatchKind, pb,
};

/// Longest lease or heartbeat that a server may ask for.
const LONGEST: Duration = Duration::from_secs(3600);

impl TryFrom<pb::AnnounceReply> for AnnounceReply {
    type Error = ProtocolError;
    fn try_from(reply: pb::AnnounceReply) -> Result<Self> {
        Ok(Self {
            server_epoch: server_epoch(reply.server_epoch)?,
            lease: interval(reply.lease_ms, "lease_ms")?,
            heartbeat: interval(reply.heartbeat_ms, "heartbeat_ms")?,
            announce_in_full: reply.announce_in_full,
            trust: reply.trust,
        })
    }
}

impl From<AnnounceReply> for pb::AnnounceReply {
    fn from(reply: AnnounceReply) -> Self {
        Self {
            server_epoch: reply.server_epoch.0,
            lease_ms: millis(reply.lease),
            heartbeat_ms: millis(reply.heartbeat),
            announce_in_full: reply.announce_in_full,
            trust: reply.trust,
        }
    }
}

impl TryFrom<pb::WithdrawReply> for ServerEpoch {
    type Error = ProtocolError;
    fn try_from(reply: pb::WithdrawReply) -> Result<Self> {
        server_epoch(reply.server_epoch)
    }
}

impl TryFrom<pb::Holder> for HolderInfo {
    type Error = ProtocolError;
    fn try_from(holder: pb::Holder) -> Result<Self> {
        Ok(Self {
            node: node(&holder.node, "node")?,
            endpoints: endpoints(&holder.endpoints)?,
            load: holder.load.unwrap_or_default().into(),
            locality: Arc::new(holder.locality.unwrap_or_default().try_into()?),
            chunks_held: holder.chunks_held,
        })
    }
}

impl From<&HolderInfo> for pb::Holder {
    fn from(holder: &HolderInfo) -> Self {
        Self {
            node: copy(holder.node.as_bytes()),
            endpoints: endpoint_texts(&holder.endpoints),
            load: Some(holder.load.into()),
            locality: Some(holder.locality.as_ref().into()),
            chunks_held: holder.chunks_held,
        }
    }
}

impl TryFrom<pb::Offer> for Offer {
    type Error = ProtocolError;
    fn try_from(offer: pb::Offer) -> Result<Self> {
        limited(&offer.holders, "holders", MAX_HOLDERS)?;
        let artifact: Summary = offer.artifact.ok_or(ProtocolError::Missing("artifact"))?.try_into()?;
        let holders = offer.holders.into_iter().map(HolderInfo::try_from).collect::<Result<Vec<_>>>()?;
        if holders.iter().any(|holder| holder.chunks_held > artifact.chunks) {
            return Err(ProtocolError::Invalid("chunks_held"));
        }
        Ok(Self { artifact: Arc::new(artifact), holders, holder_count: offer.holder_count })
    }
}

impl From<&Offer> for pb::Offer {
    fn from(offer: &Offer) -> Self {
        Self {
            artifact: Some(offer.artifact.as_ref().into()),
            holders: offer.holders.iter().map(Into::into).collect(),
            holder_count: offer.holder_count,
        }
    }
}

fn offers(offers: Vec<pb::Offer>) -> Result<Vec<Offer>> {
    limited(&offers, "offers", MAX_OFFERS)?;
    offers.into_iter().map(Offer::try_from).collect()
}

impl TryFrom<pb::LookupReply> for Found {
    type Error = ProtocolError;
    fn try_from(reply: pb::LookupReply) -> Result<Self> {
        Ok(Self {
            server_epoch: server_epoch(reply.server_epoch)?,
            offers: offers(reply.offers)?,
            truncated: reply.truncated,
        })
    }
}

impl From<Found> for pb::LookupReply {
    fn from(found: Found) -> Self {
        Self {
            server_epoch: found.server_epoch.0,
            offers: found.offers.iter().map(Into::into).collect(),
            truncated: found.truncated,
        }
    }
}

impl TryFrom<pb::WatchEvent> for WatchEvent {
    type Error = ProtocolError;
    fn try_from(event: pb::WatchEvent) -> Result<Self> {
        let holder = || -> Result<(IdentityId, ArtifactId, NodeId)> {
            Ok((id(&event.identity, "identity")?, id(&event.artifact_id, "artifact_id")?, node(&event.node, "node")?))
        };
        let kind = match pb::watch_event::Kind::try_from(event.kind) {
            Ok(pb::watch_event::Kind::HolderAdded) => {
                let (identity, artifact, node) = holder()?;
                WatchKind::HolderAdded { identity, artifact, node }
            }
            Ok(pb::watch_event::Kind::HolderGone) => {
                let (identity, artifact, node) = holder()?;
                WatchKind::HolderGone { identity, artifact, node }
            }
            Ok(pb::watch_event::Kind::Lagged) => WatchKind::Lagged,
            Ok(pb::watch_event::Kind::Unspecified) => return Err(ProtocolError::Missing("kind")),
            Err(_) => return Err(ProtocolError::Invalid("kind")),
        };
        Ok(Self { server_epoch: server_epoch(event.server_epoch)?, kind })
    }
}

impl From<WatchEvent> for pb::WatchEvent {
    fn from(event: WatchEvent) -> Self {
        let (kind, holder) = match event.kind {
            WatchKind::HolderAdded { identity, artifact, node } => {
                (pb::watch_event::Kind::HolderAdded, Some((identity, artifact, node)))
            }
            WatchKind::HolderGone { identity, artifact, node } => {
                (pb::watch_event::Kind::HolderGone, Some((identity, artifact, node)))
            }
            WatchKind::Lagged => (pb::watch_event::Kind::Lagged, None),
        };
        let mut message = Self { server_epoch: event.server_epoch.0, kind: kind.into(), ..Self::default() };
        if let Some((identity, artifact, node)) = holder {
            message.identity = copy(identity.as_bytes());
            message.artifact_id = copy(artifact.as_bytes());
            message.node = copy(node.as_bytes());
        }
        message
    }
}

impl TryFrom<pb::ListReply> for Page {
    type Error = ProtocolError;
    fn try_from(reply: pb::ListReply) -> Result<Self> {
        Ok(Self {
            server_epoch: server_epoch(reply.server_epoch)?,
            offers: offers(reply.offers)?,
            next: page_token(&reply.next_page_token)?,
            nodes: reply.nodes,
        })
    }
}

impl From<Page> for pb::ListReply {
    fn from(page: Page) -> Self {
        Self {
            server_epoch: page.server_epoch.0,
            offers: page.offers.iter().map(Into::into).collect(),
            next_page_token: page_token_bytes(page.next),
            nodes: page.nodes,
        }
    }
}

fn server_epoch(value: u64) -> Result<ServerEpoch> {
    if value == 0 { Err(ProtocolError::Missing("server_epoch")) } else { Ok(ServerEpoch(value)) }
}

fn interval(ms: u64, field: &'static str) -> Result<Duration> {
    let interval = Duration::from_millis(ms);
    if interval.is_zero() || interval > LONGEST { Err(ProtocolError::Invalid(field)) } else { Ok(interval) }
}

fn millis(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}
