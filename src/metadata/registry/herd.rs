//! Many who ask for the same within a moment. Beside the few that have it, they are told of each other: whoever asked
//! before will have it before, and hands it on. So a new artifact spreads from node to node instead of queueing where it
//! is.
//!
//! Whom to ask first makes a tree: each asker is that for [`CHILDREN`] later ones at most. Bounded; names are hints.

use std::collections::HashMap;
use std::time::Duration;

use rand::Rng;
use rand::seq::index::sample;

use super::Registry;
use super::query::DEFAULT_HOLDERS;
use crate::digest::IdentityId;
use crate::identity::NodeId;
use crate::protocol::metadata::{Closeness, Found, HolderInfo, Lookup, MAX_HOLDERS, Offer};

/// Later askers that a holder or an asker is the first choice of. A manifest can be sent to as many at once.
const CHILDREN: usize = 4;

/// Who asks later than this after the first one is of the next herd.
const LASTS: Duration = Duration::from_secs(1);

/// Of those that still may have children the nearest of so many is chosen, the ones that asked first.
const CANDIDATES: usize = 32;

const MAX_ASKERS: usize = 8192;
const MAX_HERDS: usize = 1024;

/// Who has lately asked for which identity.
#[derive(Debug, Default)]
pub struct Herds(HashMap<IdentityId, Herd>);

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

impl Herds {
    /// Notes that `by` asks, and adds those that asked before to what was found, where holders are few.
    pub fn join<R: Rng + ?Sized>(
        &mut self,
        registry: &Registry,
        lookup: &Lookup,
        by: NodeId,
        found: &mut Found,
        now: Duration,
        rng: &mut R,
    ) {
        let want = lookup.want.map_or(DEFAULT_HOLDERS, |want| (want as usize).min(MAX_HOLDERS));
        for identity in &lookup.identities {
            let mut offers = found.offers.iter_mut().filter(|offer| offer.artifact.identity == *identity).peekable();
            let Some(first) = offers.peek() else { continue };
            let holders = first.holder_count as usize;
            let Some(herd) = self.herd(*identity, now) else { return };
            let info = |node| registry.asker(node, now).filter(|_| !lookup.exclude.contains(&node));
            let closeness = |node| info(node).map(|info| info.locality.closeness(&lookup.near));
            let named = herd.join(by, holders, want, closeness, rng);
            let named: Vec<HolderInfo> = named.into_iter().filter_map(info).collect();
            if !named.is_empty() {
                offers.for_each(|offer| put_first(offer, &named, want));
            }
        }
    }

    /// `None` if there are too many.
    fn herd(&mut self, identity: IdentityId, now: Duration) -> Option<&mut Herd> {
        let is_over = |herd: &Herd| now.saturating_sub(herd.since) >= LASTS;
        if self.0.get(&identity).is_some_and(is_over) {
            self.0.remove(&identity);
        }
        if self.0.len() >= MAX_HERDS && !self.0.contains_key(&identity) {
            self.0.retain(|_, herd| !is_over(herd));
        }
        let has_room = self.0.len() < MAX_HERDS || self.0.contains_key(&identity);
        let none = || Herd { since: now, askers: Vec::new(), places: HashMap::new(), open: 0 };
        has_room.then(|| self.0.entry(identity).or_insert_with(none))
    }
}

impl Herd {
    /// Up to `want` others, whom to ask first before all; nobody while there are holders enough.
    fn join<R: Rng + ?Sized>(
        &mut self,
        by: NodeId,
        holders: usize,
        want: usize,
        closeness: impl Fn(NodeId) -> Option<Closeness>,
        rng: &mut R,
    ) -> Vec<NodeId> {
        let is_new = !self.places.contains_key(&by);
        let before = self.askers.len();
        if is_new && before < MAX_ASKERS {
            self.places.insert(by, before);
            self.askers.push(Asker { node: by, children: 0 });
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
        let open = (self.open..place).filter(|at| self.askers[*at].children < CHILDREN).take(CANDIDATES);
        let nearest = open.filter_map(|at| Some((closeness(self.askers[at].node)?, at))).min()?.1;
        self.askers[nearest].children += 1;
        Some(self.askers[nearest].node)
    }
}

/// Before the holders; no more than `want` in all, and one holder in any case.
fn put_first(offer: &mut Offer, named: &[HolderInfo], want: usize) {
    let is_held = |info: &&HolderInfo| offer.holders.iter().all(|holder| holder.node != info.node);
    let named: Vec<HolderInfo> = named.iter().filter(is_held).cloned().collect();
    offer.holders.truncate(want.saturating_sub(named.len()).max(1));
    let room = want.saturating_sub(offer.holders.len());
    offer.holders.splice(0..0, named.into_iter().take(room));
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::metadata::registry::Config;
    use crate::metadata::registry::tests::{announcement, held, identity, node};
    use crate::protocol::metadata::{NodeState, ServerEpoch};

    const NOW: Duration = Duration::from_secs(100);

    /// Nodes 1 to `count`, of which the first `holders` have artifact 1.
    fn registry(count: u8, holders: u8) -> Registry {
        let mut registry = Registry::new(Config::default(), ServerEpoch(77));
        for seed in 1..=count {
            let mut told = announcement(seed, 1, 1, NodeState::Ready);
            told.held = if seed <= holders { vec![held(1, 1, 4, 4)] } else { Vec::new() };
            registry.announce(&told, NOW).unwrap();
        }
        registry
    }

    fn ask(herds: &mut Herds, registry: &Registry, by: u8, now: Duration) -> Vec<NodeId> {
        let mut rng = StdRng::seed_from_u64(by.into());
        let lookup =
            Lookup { identities: vec![identity(1)], want: Some(16), exclude: vec![node(by)], ..Lookup::default() };
        let mut found = registry.lookup(&lookup, now, &mut rng);
        herds.join(registry, &lookup, node(by), &mut found, now, &mut rng);
        found.offers.into_iter().flat_map(|offer| offer.holders).map(|holder| holder.node).collect()
    }

    #[test]
    fn many_who_ask_together_are_a_flat_tree_below_the_holder_and_all_hear_of_it() {
        let (mut herds, registry) = (Herds::default(), registry(201, 1));
        let mut depth = HashMap::from([(node(1), 0)]);
        let mut children: HashMap<NodeId, usize> = HashMap::new();
        for by in 2..=201 {
            let named = ask(&mut herds, &registry, by, NOW);
            assert!(named.len() <= 16 && named.contains(&node(1)) && !named.contains(&node(by)), "{by}: {named:?}");
            let above = depth[&named[0]];
            depth.insert(node(by), above + 1);
            *children.entry(named[0]).or_default() += 1;
        }
        assert!(children.values().all(|children| *children <= CHILDREN), "{children:?}");
        assert!(depth.values().all(|depth| *depth <= 5), "{depth:?}");
    }

    #[test]
    fn who_asks_again_hears_of_those_who_came_later() {
        let (mut herds, registry) = (Herds::default(), registry(60, 1));
        let named: Vec<Vec<NodeId>> = (2..=60).map(|by| ask(&mut herds, &registry, by, NOW)).collect();
        assert_eq!(named[0], [node(1)]);
        let again = ask(&mut herds, &registry, 2, NOW);
        assert!(again.len() == 16 && again.contains(&node(1)) && !again.contains(&node(2)), "{again:?}");
    }

    #[test]
    fn a_few_of_many_holders_and_a_later_herd_hear_of_holders_only() {
        let (mut herds, many) = (Herds::default(), registry(60, 15));
        let is_holder = |id: &NodeId| (1..=15).any(|seed| *id == node(seed));
        for by in 16..=60 {
            assert!(ask(&mut herds, &many, by, NOW).iter().all(is_holder));
        }
        let (mut herds, one) = (Herds::default(), registry(60, 1));
        (2..=60).for_each(|by| drop(ask(&mut herds, &one, by, NOW)));
        assert_eq!(ask(&mut herds, &one, 60, NOW + LASTS), [node(1)]);
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_when_herds_are_over() {
        let mut herds = Herds::default();
        let id = |n: usize| IdentityId::of(&n.to_be_bytes());
        assert!((0..MAX_HERDS).all(|n| herds.herd(id(n), NOW).is_some()));
        assert!(herds.herd(id(MAX_HERDS), NOW).is_none() && herds.herd(id(0), NOW).is_some());
        assert!(herds.herd(id(MAX_HERDS), NOW + LASTS).is_some());
        assert_eq!(herds.0.len(), 1);
    }
}
