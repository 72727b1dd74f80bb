//! What nodes say of themselves: leases, epochs, states, and what they hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Event, Registry, RegistryError, Version};
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::protocol::metadata::{
    AnnounceReply, Announcement, Endpoint, Epoch, Held, Load, Locality, NodeState, Withdrawal,
};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) epoch: Epoch,
    sequence: u64,
    pub(super) state: NodeState,
    pub(super) lease_ends: Duration,
    /// Its key in `deadlines`.
    deadline: Duration,
    /// The end of its lease was noticed.
    lapsed: bool,
    /// What it holds was told to watchers.
    shown: bool,
    /// It has announced in full, to this life of the server.
    pub(super) complete: bool,
    /// Where servers share a store: of the last change that was applied.
    pub(super) version: Version,
    pub(super) endpoints: Arc<[Endpoint]>,
    pub(super) load: Load,
    pub(super) locality: Arc<Locality>,
    /// Slots of the artifacts that it holds.
    holds: HashMap<ArtifactId, u32>,
}

impl Node {
    pub(super) fn is_offered(&self, now: Duration) -> bool {
        self.state == NodeState::Ready && now < self.lease_ends
    }

    pub(super) fn check(&self, epoch: Epoch, sequence: u64, state: NodeState) -> Result<(), RegistryError> {
        if epoch < self.epoch {
            return Err(RegistryError::OldEpoch { told: epoch, known: self.epoch });
        }
        if epoch > self.epoch {
            return Ok(());
        }
        if sequence <= self.sequence {
            return Err(RegistryError::Overtaken { told: sequence, known: self.sequence });
        }
        match self.state {
            NodeState::Stale if state != NodeState::Stale => Err(RegistryError::Ended),
            from if !from.may_become(state) => Err(RegistryError::Transition { from, to: state }),
            _ => Ok(()),
        }
    }
}

impl Registry {
    /// Renews the node's lease and takes over what it says. All or nothing.
    pub fn announce(&mut self, told: &Announcement, now: Duration) -> Result<AnnounceReply, RegistryError> {
        // A lapse that nobody has noticed yet comes first, or watchers would miss that the node was gone.
        self.expire(now);
        self.check_announcement(told)?;
        self.take(told, now);
        Ok(self.reply(told.node, told.state))
    }

    pub(super) fn check_announcement(&self, told: &Announcement) -> Result<(), RegistryError> {
        let known = self.by_id.get(&told.node).copied();
        if let Some(node) = known.and_then(|slot| self.nodes.get(slot)) {
            node.check(told.epoch, told.sequence, told.state)?;
        }
        self.check_room(told, known)
    }

    /// Takes over what was checked; its slot.
    pub(super) fn take(&mut self, told: &Announcement, now: Duration) -> u32 {
        let known = self.by_id.get(&told.node).copied();
        let slot = known.unwrap_or_else(|| self.add_node(told));
        let replaced = self.nodes.get(slot).is_some_and(|node| node.epoch < told.epoch);
        if told.state != NodeState::Ready {
            self.hide(slot);
        }
        if replaced || told.full || told.state == NodeState::Stale {
            let keep = if replaced || told.state == NodeState::Stale { &[] } else { told.held.as_slice() };
            self.release_all_but(slot, keep);
        }
        self.renew(slot, told, replaced, now);
        if told.state != NodeState::Stale {
            told.held.iter().for_each(|held| self.hold(slot, held));
        }
        if told.state == NodeState::Ready {
            self.show(slot);
        }
        slot
    }

    /// To a node whose message was taken.
    pub fn reply(&self, node: NodeId, state: NodeState) -> AnnounceReply {
        let node = self.by_id.get(&node).and_then(|slot| self.nodes.get(*slot));
        AnnounceReply {
            server_epoch: self.server_epoch,
            lease: self.config.lease,
            heartbeat: self.config.heartbeat,
            announce_in_full: state != NodeState::Stale && !node.is_some_and(|node| node.complete),
            trust: 0,
        }
    }

    /// Removes exactly one artifact of one node and epoch. That there is none is no error.
    pub fn withdraw(&mut self, told: &Withdrawal, now: Duration) -> Result<(), RegistryError> {
        self.expire(now);
        let Some(slot) = self.by_id.get(&told.node).copied() else { return Ok(()) };
        let Some(node) = self.nodes.get_mut(slot) else { return Ok(()) };
        node.check(told.epoch, told.sequence, NodeState::Stale)?;
        if node.epoch == told.epoch {
            self.take_withdrawal(slot, told);
        }
        Ok(())
    }

    pub(super) fn take_withdrawal(&mut self, slot: u32, told: &Withdrawal) {
        if let Some(node) = self.nodes.get_mut(slot) {
            node.sequence = told.sequence;
        }
        self.release(slot, told.artifact);
    }

    /// Hides nodes whose lease ran out and removes those that are to be forgotten.
    pub fn expire(&mut self, now: Duration) {
        while let Some((deadline, slot)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            self.deadlines.remove(&(deadline, slot));
            let Some(node) = self.nodes.get_mut(slot) else { continue };
            if node.state != NodeState::Stale && !node.lapsed {
                node.lapsed = true;
                self.changes.lapsed.push(node.id);
                self.hide(slot);
                self.set_deadline(slot, deadline.saturating_add(self.config.forget));
            } else if !self.shared {
                self.forget(slot);
            }
        }
    }

    /// When [`Registry::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// What is remembered of a node, without what it holds.
    pub fn node(&self, id: NodeId) -> Option<Announcement> {
        let node = self.nodes.get(*self.by_id.get(&id)?)?;
        Some(Announcement {
            node: id,
            epoch: node.epoch,
            sequence: node.sequence,
            state: node.state,
            endpoints: node.endpoints.clone(),
            load: node.load,
            locality: node.locality.clone(),
            held: Vec::new(),
            full: false,
            server_epoch: None,
        })
    }

    pub fn holding(&self, node: NodeId, artifact: ArtifactId) -> Option<Held> {
        let at = *self.by_id.get(&node)?;
        let slot = *self.nodes.get(at)?.holds.get(&artifact)?;
        let summary = self.table.entry(slot)?.summary.clone();
        Some(Held { artifact: summary, chunks_held: self.table.chunks_of(slot, at)? })
    }

    /// Takes a node from a store as if it had just announced. It has one lease to renew and is asked for everything then.
    pub fn restore(&mut self, remembered: &Announcement, now: Duration) -> Result<(), RegistryError> {
        self.announce(remembered, now)?;
        if let Some(node) = self.by_id.get(&remembered.node).and_then(|slot| self.nodes.get_mut(*slot)) {
            node.complete = false;
        }
        Ok(())
    }

    fn check_room(&self, told: &Announcement, known: Option<u32>) -> Result<(), RegistryError> {
        let full = |what, limit| Err(RegistryError::Full { what, limit });
        if known.is_none() && self.nodes.len() >= self.config.max_nodes {
            return full("nodes", self.config.max_nodes);
        }
        let node = known.and_then(|slot| self.nodes.get(slot));
        let before = node.map_or(0, |node| node.holds.len());
        let after = match node {
            Some(node) if !told.full && node.epoch == told.epoch => {
                let new = told.held.iter().filter(|held| !node.holds.contains_key(&held.artifact.artifact));
                before + new.count()
            }
            _ => told.held.len(),
        };
        if after > self.config.max_artifacts_per_node {
            return full("artifacts of one node", self.config.max_artifacts_per_node);
        }
        if after > before && self.table.holdings() - before + after > self.config.max_holdings {
            return full("holdings", self.config.max_holdings);
        }
        let unknown = told.held.iter().map(|held| held.artifact.identity).filter(|id| !self.table.knows(*id));
        let new = unknown.collect::<HashSet<_>>().len();
        if new > 0 && self.table.identities() + new > self.config.max_identities {
            return full("identities", self.config.max_identities);
        }
        Ok(())
    }

    fn add_node(&mut self, told: &Announcement) -> u32 {
        let node = Node {
            id: told.node,
            epoch: told.epoch,
            sequence: 0,
            state: NodeState::Initializing,
            lease_ends: Duration::ZERO,
            deadline: Duration::ZERO,
            lapsed: false,
            shown: false,
            complete: false,
            version: Version::default(),
            endpoints: Arc::from([]),
            load: Load::default(),
            locality: Arc::default(),
            holds: HashMap::new(),
        };
        let slot = self.nodes.insert(node);
        self.by_id.insert(told.node, slot);
        self.changes.nodes.push(told.node);
        slot
    }

    fn renew(&mut self, slot: u32, told: &Announcement, replaced: bool, now: Duration) {
        let Some(node) = self.nodes.get_mut(slot) else { return };
        if replaced || node.state != told.state || node.endpoints != told.endpoints || node.locality != told.locality {
            self.changes.nodes.push(told.node);
        }
        node.epoch = told.epoch;
        node.sequence = told.sequence;
        node.state = told.state;
        node.endpoints = told.endpoints.clone();
        node.load = told.load;
        node.locality = told.locality.clone();
        let believes_us = told.server_epoch == Some(self.server_epoch);
        node.complete = told.full || (node.complete && believes_us && !replaced);
        if std::mem::take(&mut node.lapsed) {
            self.changes.returned.push(told.node);
        }
        node.lease_ends = now + self.config.lease;
        let deadline = if told.state == NodeState::Stale { now + self.config.forget } else { node.lease_ends };
        self.set_deadline(slot, deadline);
    }

    fn set_deadline(&mut self, slot: u32, deadline: Duration) {
        let Some(node) = self.nodes.get_mut(slot) else { return };
        self.deadlines.remove(&(node.deadline, slot));
        node.deadline = deadline;
        self.deadlines.insert((deadline, slot));
    }

    fn hold(&mut self, slot: u32, held: &Held) {
        let Some(node) = self.nodes.get_mut(slot) else { return };
        let id = held.artifact.artifact;
        let before = node.holds.get(&id).copied();
        let was_full = before.is_some_and(|entry| {
            self.table.chunks_of(entry, slot).is_some_and(|chunks| chunks >= held.artifact.chunks)
        });
        // The new one first: an artifact whose only holder amends it keeps its place.
        let entry = self.table.hold(&held.artifact, slot, held.chunks_held);
        node.holds.insert(id, entry);
        let same = before == Some(entry);
        if let Some(before) = before.filter(|_| !same) {
            self.table.release(before, slot);
        }
        if !same || was_full != held.is_full() {
            self.changes.holdings.push((node.id, id));
            self.changes.identities.push(held.artifact.identity);
        }
        if !same && node.shown {
            let event = Event { identity: held.artifact.identity, artifact: id, node: node.id, added: true };
            self.changes.events.push(event);
        }
    }

    fn release(&mut self, slot: u32, artifact: ArtifactId) {
        let Some(node) = self.nodes.get_mut(slot) else { return };
        let Some(entry) = node.holds.remove(&artifact) else { return };
        if let Some(identity) = self.table.entry(entry).map(|entry| entry.summary.identity) {
            self.changes.identities.push(identity);
            if node.shown {
                self.changes.events.push(Event { identity, artifact, node: node.id, added: false });
            }
        }
        self.changes.holdings.push((node.id, artifact));
        self.table.release(entry, slot);
    }

    fn release_all_but(&mut self, slot: u32, keep: &[Held]) {
        let Some(node) = self.nodes.get(slot) else { return };
        let keep: HashSet<_> = keep.iter().map(|held| held.artifact.artifact).collect();
        let gone: Vec<_> = node.holds.keys().filter(|artifact| !keep.contains(artifact)).copied().collect();
        gone.into_iter().for_each(|artifact| self.release(slot, artifact));
    }

    fn show(&mut self, slot: u32) {
        self.tell(slot, true);
    }

    fn hide(&mut self, slot: u32) {
        self.tell(slot, false);
    }

    fn tell(&mut self, slot: u32, added: bool) {
        let Some(node) = self.nodes.get_mut(slot).filter(|node| node.shown != added) else { return };
        node.shown = added;
        for (artifact, entry) in &node.holds {
            if let Some(entry) = self.table.entry(*entry) {
                let identity = entry.summary.identity;
                self.changes.identities.push(identity);
                self.changes.events.push(Event { identity, artifact: *artifact, node: node.id, added });
            }
        }
    }

    pub(super) fn forget(&mut self, slot: u32) {
        self.hide(slot);
        self.release_all_but(slot, &[]);
        if let Some(node) = self.nodes.remove(slot) {
            self.by_id.remove(&node.id);
            self.changes.nodes.push(node.id);
        }
    }
}
