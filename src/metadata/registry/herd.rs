//! Many who ask for the same within a moment. Beside the few that have it, they are told of each other: whoever asked
//! before will have it before, and hands it on. So a new artifact spreads from node to node instead of queueing where it
//! is.
//!
//! Whom to ask first makes a tree: each asker is that for [`CHILDREN`] later ones at most. Bounded; names are hints.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use rand::seq::index::sample;

use super::Registry;
use super::query::{DEFAULT_HOLDERS, REPLY_BYTES, size};
use crate::digest::IdentityId;
use crate::identity::NodeId;
use crate::protocol::metadata::{Closeness, Found, HolderInfo, Lookup, MAX_HOLDERS, Offer};

/// Later askers that a holder or an asker is the first choice of. A manifest can be sent to as many at once.
const CHILDREN: usize = 4;

/// Who asks later than this after the first one is of the next herd.
const LASTS: Duration = Duration::from_secs(1);

/// Of those that still may have children the nearest of so many is chosen, the ones that asked first.
const CANDIDATES: usize = 32;

/// Of those that still may have children so many are looked at: whoever asks may not want to hear of some.
const LOOKED_AT: usize = 128;

const MAX_ASKERS: usize = 8192;
const MAX_HERDS: usize = 1024;

/// Who has lately asked for which identity.
#[derive(Debug, Default)]
pub struct Herds(Mutex<Table>);

#[derive(Debug, Default)]
struct Table(HashMap<IdentityId, Herd>);

#[derive(Debug)]
struct Herd {
    since: Duration,
    /// In the order in which they asked.
    askers: Vec<Asker>,
    places: HashMap<NodeId, usize>,
    /// All before this place have as many children as they may.
    open: usize,
}

#[derive(Debug)]
struct Asker {
    node: NodeId,
    children: usize,
}

/// Those that asked before for an identity.
#[derive(Debug)]
struct Named {
    identity: IdentityId,
    /// How many they are.
    before: usize,
    nodes: Vec<NodeId>,
}

impl Herds {
    /// Notes that `by` asks, and adds those that asked before to what was found, where holders are few.
    pub fn join<R: Rng + ?Sized>(
        &self,
        registry: &Registry,
        lookup: &Lookup,
        by: NodeId,
        found: &mut Found,
        now: Duration,
        rng: &mut R,
    ) {
        let want = lookup.want.map_or(DEFAULT_HOLDERS, |want| (want as usize).min(MAX_HOLDERS));
        let fewest = lookup.identities.iter().filter_map(|identity| {
            let offers = found.offers.iter().filter(|offer| offer.artifact.identity == *identity);
            Some((*identity, offers.map(|offer| offer.holder_count).min()? as usize))
        });
        let fewest: Vec<(IdentityId, usize)> = fewest.collect();
        let serves = registry.asker(by, now).is_some();
        let closeness = |node| {
            let is_wanted = |_: &Closeness| !lookup.exclude.contains(&node);
            registry.closeness_of_asker(node, &lookup.near, now).filter(is_wanted)
        };
        let mut named = Vec::new();
        let mut table = self.table();
        for (identity, holders) in fewest {
            let Some(herd) = table.herd(identity, now) else { continue };
            let before = herd.askers.len();
            let nodes = herd.join(by, serves, holders, want, closeness, rng);
            named.push(Named { identity, before, nodes });
        }
        // Every look-up waits for it.
        drop(table);
        let info = |node| registry.asker(node, now).filter(|_| !lookup.exclude.contains(&node));
        add(&named, want, found, info);
    }

    /// Forgets those that are over: they can be large.
    pub fn expire(&self, now: Duration) {
        self.table().expire(now);
    }

    /// Forgets all: time begins anew.
    pub fn clear(&self) {
        *self.table() = Table::default();
    }

    #[cfg(test)]
    pub(in crate::metadata) fn len(&self) -> usize {
        self.table().0.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// To each offer that has few holders for so many, as far as the reply has room.
fn add(named: &[Named], want: usize, found: &mut Found, info: impl Fn(NodeId) -> Option<HolderInfo>) {
    let mut bytes: usize = found.offers.iter().map(size).sum();
    for Named { identity, before, nodes } in named {
        let infos: Vec<HolderInfo> = nodes.iter().copied().filter_map(&info).collect();
        if infos.is_empty() {
            continue;
        }
        let is_short = |offer: &&mut Offer| {
            offer.artifact.identity == *identity && *before >= (offer.holder_count as usize).saturating_mul(CHILDREN)
        };
        for offer in found.offers.iter_mut().filter(is_short) {
            let (more, rest) = (with_first(offer, &infos, want), bytes - size(offer));
            if rest + size(&more) <= REPLY_BYTES {
                bytes = rest + size(&more);
                *offer = more;
            }
        }
    }
}

impl Table {
    fn expire(&mut self, now: Duration) {
        self.0.retain(|_, herd| !herd.is_over(now));
    }

    /// `None` if there are too many.
    fn herd(&mut self, identity: IdentityId, now: Duration) -> Option<&mut Herd> {
        if self.0.get(&identity).is_some_and(|herd| herd.is_over(now)) {
            self.0.remove(&identity);
        }
        if self.0.len() >= MAX_HERDS && !self.0.contains_key(&identity) {
            self.expire(now);
        }
        let has_room = self.0.len() < MAX_HERDS || self.0.contains_key(&identity);
        let none = || Herd { since: now, askers: Vec::new(), places: HashMap::new(), open: 0 };
        has_room.then(|| self.0.entry(identity).or_insert_with(none))
    }
}

impl Herd {
    fn is_over(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) >= LASTS
    }

    /// Up to `want` others, whom to ask first before all; nobody while there are holders enough.
    fn join<R: Rng + ?Sized>(
        &mut self,
        by: NodeId,
        serves: bool,
        holders: usize,
        want: usize,
        closeness: impl Fn(NodeId) -> Option<Closeness>,
        rng: &mut R,
    ) -> Vec<NodeId> {
        let is_new = !self.places.contains_key(&by);
        let before = self.askers.len();
        if is_new && before < MAX_ASKERS {
            self.places.insert(by, before);
            // Nobody is sent to who cannot be asked.
            self.askers.push(Asker { node: by, children: if serves { 0 } else { CHILDREN } });
        }
        if before < holders.saturating_mul(CHILDREN) {
            return Vec::new();
        }
        let mut named = Vec::new();
        if is_new {
            named.extend(self.parent(before, &closeness));
        }
        // Later ones are still to come, and will be named next time.
        let want = if is_new { want / 2 } else { want };
        // Two more, in place of the asker itself and of who is named already.
        let some = sample(rng, self.askers.len(), self.askers.len().min(want + 2));
        let others = some.iter().map(|place| self.askers[place].node);
        let others: Vec<NodeId> = others.filter(|other| *other != by && !named.contains(other)).collect();
        named.extend(others);
        named.truncate(want);
        named
    }

    /// Who is near and has few children, of those that asked before the one at `place`.
    fn parent(&mut self, place: usize, closeness: &impl Fn(NodeId) -> Option<Closeness>) -> Option<NodeId> {
        while self.open < place && self.askers[self.open].children >= CHILDREN {
            self.open += 1;
        }
        let open = (self.open..place).filter(|at| self.askers[*at].children < CHILDREN).take(LOOKED_AT);
        let named = open.filter_map(|at| Some((closeness(self.askers[at].node)?, at)));
        let nearest = named.take(CANDIDATES).min()?.1;
        self.askers[nearest].children += 1;
        Some(self.askers[nearest].node)
    }
}

/// Before the holders; no more than `want` in all, and one holder in any case, complete ones before others.
fn with_first(offer: &Offer, named: &[HolderInfo], want: usize) -> Offer {
    let mut offer = offer.clone();
    let is_held = |info: &&HolderInfo| offer.holders.iter().all(|holder| holder.node != info.node);
    let named: Vec<HolderInfo> = named.iter().filter(is_held).cloned().collect();
    let left = want.saturating_sub(named.len()).max(1);
    if left < offer.holders.len() {
        offer.holders.sort_by_key(|holder| holder.chunks_held < offer.artifact.chunks);
        offer.holders.truncate(left);
    }
    let room = want.saturating_sub(offer.holders.len());
    offer.holders.splice(0..0, named.into_iter().take(room));
    offer
}

#[cfg(test)]
mod tests;
