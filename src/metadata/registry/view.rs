//! What there is to see of nodes and identities, for people: no part in answers to nodes.

use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use super::table::Entry;
use crate::digest::IdentityId;
use crate::identity::NodeId;
use crate::protocol::fleet::{ArtifactDocument, IdentityDocument, MAX_ARTIFACTS, MAX_HOLDERS, MAX_PARTIAL, Standing};
use crate::protocol::metadata::{Endpoint, Locality, NodeState};
use crate::protocol::report::{Text, UnixMillis};

/// A node's lease as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub standing: Standing,
    /// How long ago it was renewed.
    pub renewed: Duration,
    pub endpoints: Arc<[Endpoint]>,
    pub locality: Arc<Locality>,
}

impl Registry {
    pub fn knows(&self, node: NodeId) -> bool {
        self.by_id.contains_key(&node)
    }

    pub fn has_lease(&self, node: NodeId, now: Duration) -> bool {
        self.lease(node, now).is_some_and(|lease| lease.standing != Standing::Stale)
    }

    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> {
        self.by_id.keys().copied()
    }

    pub fn identity_ids(&self) -> impl Iterator<Item = IdentityId> {
        self.table.identity_ids()
    }

    pub fn lease(&self, node: NodeId, now: Duration) -> Option<Lease> {
        let node = self.nodes.get(*self.by_id.get(&node)?)?;
        let standing = match node.state {
            NodeState::Stale => Standing::Stale,
            _ if node.lease_ends <= now => Standing::Stale,
            NodeState::Initializing => Standing::Initializing,
            NodeState::Ready => Standing::Ready,
            NodeState::Draining => Standing::Draining,
        };
        Some(Lease {
            standing,
            renewed: now.saturating_sub(node.lease_ends.saturating_sub(self.config.lease)),
            endpoints: node.endpoints.clone(),
            locality: node.locality.clone(),
        })
    }

    /// An identity's artifacts; `None` if there are none.
    pub fn identity(&self, digest: IdentityId, now: Duration) -> Option<IdentityDocument> {
        let family = self.table.of_identity(digest).next()?.summary.family.clone();
        let artifacts = self.table.of_identity(digest).take(MAX_ARTIFACTS);
        let artifacts = artifacts.map(|entry| self.artifact(entry, now)).collect();
        Some(IdentityDocument { digest, family, facts: None, artifacts })
    }

    fn artifact(&self, entry: &Entry, now: Duration) -> ArtifactDocument {
        let summary = &entry.summary;
        let (mut holders, mut partial) = (Vec::new(), Vec::new());
        for holding in &entry.holders {
            if holders.len() == MAX_HOLDERS && partial.len() == MAX_PARTIAL {
                break;
            }
            let Some(node) = self.nodes.get(holding.node).filter(|node| node.is_offered(now)) else { continue };
            let (list, limit) = match holding.chunks >= summary.chunks {
                true => (&mut holders, MAX_HOLDERS),
                false => (&mut partial, MAX_PARTIAL),
            };
            if list.len() < limit {
                list.push(node.id);
            }
        }
        ArtifactDocument {
            id: summary.artifact,
            subject: Text::cut(&summary.subject),
            bytes: summary.size,
            signer: summary.signer,
            at: UnixMillis(summary.created.seconds().saturating_mul(1000)),
            holders,
            partial,
            holder_count: u32::try_from(entry.holders.len()).unwrap_or(u32::MAX),
        }
    }
}
