//! Artifacts by identity, and their holders. Knows nothing of leases.
//!
//! Artifacts are told apart by the whole summary, not by the artifact id alone: a node that lies about an artifact makes an
//! entry of its own instead of spoiling the one that others announced.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use super::slab::Slab;
use crate::digest::IdentityId;
use crate::protocol::metadata::Summary;

/// A node's slot and how many chunks it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holding {
    pub(super) node: u32,
    pub(super) chunks: u32,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) summary: Arc<Summary>,
    /// Sorted by node.
    pub(super) holders: Vec<Holding>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: HashMap<Arc<Summary>, u32>,
    entries: Slab<Entry>,
    /// Slots of an identity's artifacts, newest first.
    identities: HashMap<IdentityId, Vec<u32>>,
    holdings: usize,
}

/// Newest first; the rest only makes the order total.
fn order(a: &Summary, b: &Summary) -> Ordering {
    let rank = |s: &Summary| (Reverse(s.created), Reverse(s.generation), s.artifact);
    rank(a).cmp(&rank(b)).then_with(|| {
        let rest = |s: &Summary| (s.content, s.size, s.wire_size, s.files, s.chunks, s.signer, s.compile_ms);
        rest(a).cmp(&rest(b)).then_with(|| (&a.family, &a.subject).cmp(&(&b.family, &b.subject)))
    })
}

impl Table {
    pub(super) fn artifacts(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn identities(&self) -> usize {
        self.identities.len()
    }

    pub(super) fn holdings(&self) -> usize {
        self.holdings
    }

    pub(super) fn knows(&self, identity: IdentityId) -> bool {
        self.identities.contains_key(&identity)
    }

    pub(super) fn identity_ids(&self) -> impl Iterator<Item = IdentityId> {
        self.identities.keys().copied()
    }

    pub(super) fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot)
    }

    pub(super) fn entries_end(&self) -> u32 {
        self.entries.end()
    }

    /// An identity's artifacts, newest first.
    pub(super) fn of_identity(&self, identity: IdentityId) -> impl Iterator<Item = &Entry> {
        self.identities.get(&identity).into_iter().flatten().filter_map(|slot| self.entries.get(*slot))
    }

    pub(super) fn slot_of(&self, summary: &Summary) -> Option<u32> {
        self.slots.get(summary).copied()
    }

    /// Chunks that `node` has of the artifact in `slot`.
    pub(super) fn chunks_of(&self, slot: u32, node: u32) -> Option<u32> {
        let holders = &self.entries.get(slot)?.holders;
        let at = holders.binary_search_by_key(&node, |holding| holding.node).ok()?;
        Some(holders[at].chunks)
    }

    /// Notes that `node` has `chunks` of an artifact; its slot.
    pub(super) fn hold(&mut self, summary: &Arc<Summary>, node: u32, chunks: u32) -> u32 {
        let slot = self.slot_of(summary).unwrap_or_else(|| self.insert(summary));
        if let Some(entry) = self.entries.get_mut(slot) {
            match entry.holders.binary_search_by_key(&node, |holding| holding.node) {
                Ok(at) => entry.holders[at].chunks = chunks,
                Err(at) => {
                    entry.holders.insert(at, Holding { node, chunks });
                    self.holdings += 1;
                }
            }
        }
        slot
    }

    /// `node` no longer has the artifact; without holders it is forgotten.
    pub(super) fn release(&mut self, slot: u32, node: u32) {
        let Some(entry) = self.entries.get_mut(slot) else { return };
        if let Ok(at) = entry.holders.binary_search_by_key(&node, |holding| holding.node) {
            entry.holders.remove(at);
            self.holdings -= 1;
        }
        if entry.holders.is_empty() {
            self.remove(slot);
        }
    }

    fn insert(&mut self, summary: &Arc<Summary>) -> u32 {
        let Self { slots, entries, identities, .. } = self;
        let of_identity = identities.entry(summary.identity).or_default();
        let like = of_identity.first().and_then(|slot| entries.get(*slot)).map(|entry| entry.summary.clone());
        let summary = like.map_or_else(|| summary.clone(), |like| share_texts(summary, &like));
        let newer = |other: &u32| entries.get(*other).is_some_and(|entry| order(&entry.summary, &summary).is_lt());
        let at = of_identity.partition_point(newer);
        let slot = entries.insert(Entry { summary: summary.clone(), holders: Vec::new() });
        of_identity.insert(at, slot);
        slots.insert(summary, slot);
        slot
    }

    fn remove(&mut self, slot: u32) {
        let Self { slots, entries, identities, .. } = self;
        let Some(entry) = entries.remove(slot) else { return };
        slots.remove(&entry.summary);
        let identity = entry.summary.identity;
        let Some(of_identity) = identities.get_mut(&identity) else { return };
        let newer = |other: &u32| entries.get(*other).is_some_and(|one| order(&one.summary, &entry.summary).is_lt());
        let at = of_identity.partition_point(newer);
        if of_identity.get(at) == Some(&slot) {
            of_identity.remove(at);
        }
        if of_identity.is_empty() {
            identities.remove(&identity);
        }
    }
}

/// Artifacts of one identity have the family in common, and mostly the subject: one text in memory serves all.
fn share_texts(summary: &Arc<Summary>, like: &Summary) -> Arc<Summary> {
    let mut shared = Summary::clone(summary);
    if shared.family == like.family {
        shared.family = like.family.clone();
    }
    if shared.subject == like.subject {
        shared.subject = like.subject.clone();
    }
    Arc::new(shared)
}
