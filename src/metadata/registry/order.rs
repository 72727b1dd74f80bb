//! What several servers over one store do alike.
//!
//! A change is decided by a registry that has applied the node's last one, put into the store if that still is its last one,
//! and then applied by every registry in the store's order. So the rules are here alone, and the store only compares.

use std::time::Duration;

use super::{Registry, RegistryError};
use crate::identity::NodeId;
use crate::protocol::metadata::{Announcement, NodeState, Withdrawal};

/// A place in the store's order of changes, from 1. The default is before all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// What happens to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Announce(Announcement),
    Withdraw(Withdrawal),
    /// The node is gone for long enough.
    Forget(NodeId),
}

impl Change {
    pub fn node(&self) -> NodeId {
        match self {
            Self::Announce(told) => told.node,
            Self::Withdraw(told) => told.node,
            Self::Forget(node) => *node,
        }
    }
}

/// A change is allowed to a node whose last change is `known`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub known: Version,
    /// The node afterwards, without what it holds; `None` if it is forgotten.
    pub node: Option<Announcement>,
    /// It has announced in full to this server epoch.
    pub complete: bool,
    /// What it held before is gone.
    pub replaces: bool,
}

impl Registry {
    /// Whether a change is allowed; `None` if there is nothing to do.
    pub fn decide(&self, change: &Change) -> Result<Option<Decision>, RegistryError> {
        let node = self.by_id.get(&change.node()).and_then(|slot| self.nodes.get(*slot));
        let known = node.map_or_else(Version::default, |node| node.version);
        match change {
            Change::Announce(told) => {
                self.check_announcement(told)?;
                let replaced = node.is_some_and(|node| node.epoch < told.epoch);
                let believes_us = told.server_epoch == Some(self.server_epoch);
                let kept = node.is_some_and(|node| node.complete) && believes_us && !replaced;
                Ok(Some(Decision {
                    known,
                    node: Some(Announcement { held: Vec::new(), ..told.clone() }),
                    complete: told.full || kept,
                    replaces: replaced || told.full || told.state == NodeState::Stale,
                }))
            }
            Change::Withdraw(told) => {
                let Some(node) = node else { return Ok(None) };
                node.check(told.epoch, told.sequence, NodeState::Stale)?;
                if node.epoch != told.epoch {
                    return Ok(None);
                }
                let after = self.node(told.node).map(|node| Announcement { sequence: told.sequence, ..node });
                Ok(Some(Decision { known, node: after, complete: node.complete, replaces: false }))
            }
            Change::Forget(_) if node.is_none() => Ok(None),
            Change::Forget(_) => Ok(Some(Decision { known, node: None, complete: false, replaces: true })),
        }
    }

    /// Does what the store has taken, at the store's time `now`. What this registry did before is not done again.
    /// Limits are not looked at: whoever decided has, and all servers must do the same.
    pub fn apply(&mut self, change: &Change, version: Version, now: Duration) {
        self.expire(now);
        let known = self.by_id.get(&change.node()).copied();
        if known.and_then(|slot| self.nodes.get(slot)).is_some_and(|node| node.version >= version) {
            return;
        }
        match (change, known) {
            (Change::Announce(told), _) => {
                let slot = self.take(told, now);
                self.stamp(slot, version);
            }
            (Change::Withdraw(told), Some(slot)) => {
                self.take_withdrawal(slot, told);
                self.stamp(slot, version);
            }
            (Change::Forget(_), Some(slot)) => self.forget(slot),
            (Change::Withdraw(_) | Change::Forget(_), None) => {}
        }
    }

    /// Takes a node as the store has it, with all that it holds, renewed at `renewed`.
    pub fn adopt(&mut self, node: &Announcement, complete: bool, version: Version, renewed: Duration) {
        let slot = self.take(&Announcement { full: true, ..node.clone() }, renewed);
        self.stamp(slot, version);
        if let Some(node) = self.nodes.get_mut(slot) {
            node.complete = complete;
        }
    }

    /// The last change of a node that was applied; the default if the node is not known.
    pub fn version_of(&self, node: NodeId) -> Version {
        let node = self.by_id.get(&node).and_then(|slot| self.nodes.get(*slot));
        node.map_or_else(Version::default, |node| node.version)
    }

    /// Nodes that lapsed or ended more than `forget` ago; walks all nodes.
    pub fn to_forget(&self, now: Duration) -> Vec<NodeId> {
        let gone = |end: Duration| end.saturating_add(self.config.forget) <= now;
        self.nodes.iter().filter(|(_, node)| gone(node.lease_ends)).map(|(_, node)| node.id).collect()
    }

    fn stamp(&mut self, slot: u32, version: Version) {
        if let Some(node) = self.nodes.get_mut(slot) {
            node.version = version;
        }
    }
}
