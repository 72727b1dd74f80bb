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

fn lookup(by: u8) -> Lookup {
    Lookup { identities: vec![identity(1)], want: Some(16), exclude: vec![node(by)], ..Lookup::default() }
}

fn offers(herds: &Herds, registry: &Registry, lookup: &Lookup, by: u8, now: Duration) -> Vec<Offer> {
    let mut rng = StdRng::seed_from_u64(by.into());
    let mut found = registry.lookup(lookup, now, &mut rng);
    herds.join(registry, lookup, node(by), &mut found, now, &mut rng);
    found.offers
}

fn ask(herds: &Herds, registry: &Registry, by: u8, now: Duration) -> Vec<NodeId> {
    let offers = offers(herds, registry, &lookup(by), by, now);
    offers.into_iter().flat_map(|offer| offer.holders).map(|holder| holder.node).collect()
}

#[test]
fn many_who_ask_together_are_a_flat_tree_below_the_holder_and_all_hear_of_it() {
    let (herds, registry) = (Herds::default(), registry(201, 1));
    let mut depth = HashMap::from([(node(1), 0)]);
    let mut children: HashMap<NodeId, usize> = HashMap::new();
    for by in 2..=201 {
        let named = ask(&herds, &registry, by, NOW);
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
    let (herds, registry) = (Herds::default(), registry(60, 1));
    let named: Vec<Vec<NodeId>> = (2..=60).map(|by| ask(&herds, &registry, by, NOW)).collect();
    assert_eq!(named[0], [node(1)]);
    let again = ask(&herds, &registry, 2, NOW);
    assert!(again.len() == 16 && again.contains(&node(1)) && !again.contains(&node(2)), "{again:?}");
}

#[test]
fn a_few_of_many_holders_and_a_later_herd_hear_of_holders_only() {
    let (herds, many) = (Herds::default(), registry(60, 15));
    let is_holder = |id: &NodeId| (1..=15).any(|seed| *id == node(seed));
    for by in 16..=60 {
        assert!(ask(&herds, &many, by, NOW).iter().all(is_holder));
    }
    let (herds, one) = (Herds::default(), registry(60, 1));
    (2..=60).for_each(|by| drop(ask(&herds, &one, by, NOW)));
    assert_eq!(ask(&herds, &one, 60, NOW + LASTS), [node(1)]);
}

#[test]
fn the_table_is_bounded_and_makes_room_when_herds_are_over() {
    let mut herds = Table::default();
    let id = |n: usize| IdentityId::of(&n.to_be_bytes());
    assert!((0..MAX_HERDS).all(|n| herds.herd(id(n), NOW).is_some()));
    assert!(herds.herd(id(MAX_HERDS), NOW).is_none() && herds.herd(id(0), NOW).is_some());
    assert!(herds.herd(id(MAX_HERDS), NOW + LASTS).is_some());
    assert_eq!(herds.0.len(), 1);
}

#[test]
fn an_artifact_that_one_node_has_does_not_thin_out_the_many_holders_of_another() {
    let (herds, mut registry) = (Herds::default(), registry(100, 20));
    let mut invented = announcement(100, 1, 2, NodeState::Ready);
    invented.held = vec![held(2, 1, 4, 4)];
    registry.announce(&invented, NOW).unwrap();
    for by in 21..=99 {
        let offers = offers(&herds, &registry, &lookup(by), by, NOW);
        let is_holder = |holder: &HolderInfo| (1..=20).any(|seed| holder.node == node(seed));
        let [newer, older] = offers.as_slice() else { panic!("{offers:?}") };
        assert!(older.holders.len() == 16 && older.holders.iter().all(is_holder), "{by}: {older:?}");
        assert_eq!(newer.holders.len() > 1, by >= 21 + 4, "{by}: {newer:?}");
    }
}

#[test]
fn a_complete_holder_is_named_however_many_have_only_parts() {
    let (herds, mut registry) = (Herds::default(), registry(120, 1));
    for seed in 2..=16 {
        let mut told = announcement(seed, 1, 2, NodeState::Ready);
        told.held = vec![held(1, 1, 3, 4)];
        registry.announce(&told, NOW).unwrap();
    }
    for by in 17..=120 {
        let named = ask(&herds, &registry, by, NOW);
        assert!(named.len() <= 16 && named.contains(&node(1)), "{by}: {named:?}");
    }
}

#[test]
fn askers_that_cannot_be_asked_do_not_switch_the_tree_off() {
    let (herds, mut registry) = (Herds::default(), registry(250, 1));
    for seed in 2..=200 {
        let mut told = announcement(seed, 1, 2, NodeState::Ready);
        told.load.upload_slots = 0;
        registry.announce(&told, NOW).unwrap();
    }
    (2..=201).for_each(|by| drop(ask(&herds, &registry, by, NOW)));
    assert_eq!(ask(&herds, &registry, 202, NOW)[0], node(201));
}

#[test]
fn askers_that_somebody_does_not_want_to_hear_of_are_passed_over() {
    let (herds, registry) = (Herds::default(), registry(80, 1));
    (2..=66).for_each(|by| drop(ask(&herds, &registry, by, NOW)));
    let lookup = Lookup { exclude: (2..=65).map(node).collect(), ..lookup(70) };
    assert_eq!(offers(&herds, &registry, &lookup, 70, NOW)[0].holders[0].node, node(66));
}

#[test]
fn a_full_table_costs_one_identity_its_herd_and_no_other() {
    let (herds, mut registry) = (Herds::default(), registry(20, 1));
    let mut told = announcement(1, 1, 2, NodeState::Ready);
    told.held = vec![held(1, 1, 4, 4), held(2, 2, 4, 4)];
    registry.announce(&told, NOW).unwrap();
    (2..=10).for_each(|by| drop(ask(&herds, &registry, by, NOW)));
    let others = (0..MAX_HERDS).map(|n| IdentityId::of(&n.to_be_bytes()));
    assert_eq!(others.filter(|id| herds.table().herd(*id, NOW).is_some()).count(), MAX_HERDS - 1);
    let both = Lookup { identities: vec![identity(2), identity(1)], ..lookup(11) };
    let counts: Vec<usize> =
        offers(&herds, &registry, &both, 11, NOW).iter().map(|offer| offer.holders.len()).collect();
    assert!(counts[0] == 1 && counts[1] > 1, "{counts:?}");
}

#[test]
fn what_herds_add_stays_within_the_bytes_of_a_reply() {
    let registry = registry(100, 1);
    let offer = registry.lookup(&lookup(70), NOW, &mut StdRng::seed_from_u64(1)).offers.remove(0);
    let count = REPLY_BYTES / size(&offer);
    let mut found = Found { server_epoch: ServerEpoch(77), offers: vec![offer; count], truncated: false };
    let named = Named { identity: identity(1), before: 90, nodes: (2..=90).map(node).collect() };
    add(&[named], MAX_HOLDERS, &mut found, |node| registry.asker(node, NOW));
    assert!(found.offers.iter().map(size).sum::<usize>() <= REPLY_BYTES);
}

#[test]
fn herds_that_are_over_are_forgotten() {
    let (herds, registry) = (Herds::default(), registry(20, 1));
    (2..=20).for_each(|by| drop(ask(&herds, &registry, by, NOW)));
    herds.expire(NOW + LASTS / 2);
    assert_eq!(herds.len(), 1);
    herds.expire(NOW + LASTS);
    assert_eq!(herds.len(), 0);
}
