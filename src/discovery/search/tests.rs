use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::discovery::samples::{held, holdings, node};

const DEADLINE: Duration = Duration::from_secs(2);

fn search(identities: &[u8], now: Instant) -> Search {
    let identities = identities.iter().map(|seed| IdentityId::from_array([*seed; 32])).collect();
    Search::new(node(100), &Lookup { identities, ..Lookup::default() }, true, 50, now + DEADLINE)
}

fn nodes(range: std::ops::RangeInclusive<u8>) -> Vec<NodeId> {
    range.map(node).collect()
}

fn answer(search: &mut Search, seed: u8, identities: &[u8], now: Instant) {
    let held = identities.iter().map(|identity| held(*identity, *identity, 10)).collect();
    search.answered(node(seed), &holdings(held), now, UnixTime::from_seconds(1_000_000));
}

#[test]
fn in_a_small_cluster_everybody_is_asked_and_the_dht_only_for_what_nobody_has() {
    let now = Instant::now();
    let mut search = search(&[7, 8], now);
    let members = nodes(1..=3);
    assert_eq!(search.next(&members, Shards::One, now), Step::Ask(members.clone()));
    assert_eq!(search.next(&members, Shards::One, now), Step::Wait);
    answer(&mut search, 1, &[7], now);
    answer(&mut search, 2, &[], now);
    search.failed(&node(3));
    assert_eq!(search.next(&members, Shards::One, now), Step::Walk(vec![key(&IdentityId::from_array([8; 32]), 0)]));
    search.walk_ended();
    let Step::Walk(more) = search.next(&members, Shards::One, now) else { panic!("the next shards") };
    assert_eq!(more, [1, 2, 3].map(|shard| key(&IdentityId::from_array([8; 32]), shard)));
    more.iter().for_each(|_| search.walk_ended());
    assert_eq!(search.next(&members, Shards::One, now), Step::Done);
    let offers = search.finish();
    assert_eq!((offers.len(), offers[0].holders[0].node), (1, node(1)));
}

#[test]
fn when_there_is_something_of_everything_a_silent_node_costs_a_moment() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    let members = nodes(1..=3);
    search.next(&members, Shards::One, now);
    answer(&mut search, 1, &[7], now);
    assert_eq!(search.next(&members, Shards::One, now), Step::Wait);
    assert_eq!(search.due(), now + GRACE);
    assert_eq!(search.next(&members, Shards::One, now + GRACE), Step::Done);
}

#[test]
fn silent_neighbours_do_not_hold_up_the_dht() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    search.next(&nodes(1..=3), Shards::One, now);
    assert!(matches!(search.next(&nodes(1..=3), Shards::One, now + DIRECT), Step::Walk(_)));
    assert_eq!(search.named([node(4)]), [node(4)]);
    answer(&mut search, 4, &[7], now + DIRECT);
    assert_eq!(search.finish().len(), 1);
}

#[test]
fn a_large_cluster_is_walked_in_all_shards_at_once() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    let Step::Walk(keys) = search.next(&nodes(1..=60), Shards::Sixteen, now) else { panic!("a walk") };
    assert_eq!(keys.len(), 16);
    assert_eq!(search.next(&nodes(1..=60), Shards::Sixteen, now), Step::Wait);
    keys.iter().for_each(|_| search.walk_ended());
    assert_eq!(search.next(&nodes(1..=60), Shards::Sixteen, now), Step::Done);
}

#[test]
fn a_cluster_that_turns_out_to_be_larger_is_walked_further() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    let mut walked = 0;
    for shards in [Shards::One, Shards::One, Shards::Four] {
        let Step::Walk(keys) = search.next(&nodes(1..=60), shards, now) else { panic!("a walk") };
        keys.iter().for_each(|_| search.walk_ended());
        walked += keys.len();
    }
    assert_eq!(walked, 16);
    assert_eq!(search.next(&[], Shards::Sixteen, now), Step::Done);
}

#[test]
fn a_slow_walk_does_not_hold_up_the_keys_of_a_larger_view() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    assert!(matches!(search.next(&nodes(1..=60), Shards::One, now), Step::Walk(_)));
    assert_eq!(search.due(), now + WIDEN);
    let Step::Walk(more) = search.next(&[], Shards::One, now + WIDEN) else { panic!("the next shards") };
    assert_eq!(more.len(), 3);
    // What was found is enough: there is nothing to widen for.
    search.named([node(1)]);
    answer(&mut search, 1, &[7], now + WIDEN);
    assert_eq!(search.next(&[], Shards::One, now + 2 * WIDEN), Step::Done);
}

#[test]
fn nodes_that_name_the_same_holders_are_enough_once_those_have_answered() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    assert!(matches!(search.next(&nodes(1..=60), Shards::One, now), Step::Walk(_)));
    assert_eq!(search.named(nodes(1..=2)), nodes(1..=2));
    (0..REPEATS).for_each(|_| assert_eq!(search.named(nodes(1..=2)), []));
    answer(&mut search, 1, &[7], now);
    assert_eq!(search.next(&[], Shards::One, now), Step::Wait);
    answer(&mut search, 2, &[], now);
    assert_eq!(search.next(&[], Shards::One, now), Step::Done);
}

#[test]
fn no_more_are_asked_than_are_wanted_and_a_few_for_those_that_are_gone() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    let asked: usize = (1..20).map(|n| search.named(nodes(4 * n..=4 * n + 3)).len()).sum();
    assert_eq!(asked, WANT + SPARE);
    search.failed(&node(4));
    assert_eq!(search.named(nodes(90..=93)).len(), 1);
}

#[test]
fn nobody_is_asked_twice_nor_this_node_nor_whom_the_caller_excludes() {
    let now = Instant::now();
    let lookup =
        Lookup { identities: vec![IdentityId::from_array([7; 32])], exclude: vec![node(2)], ..Lookup::default() };
    let mut search = Search::new(node(100), &lookup, true, 50, now + DEADLINE);
    let named = search.named([node(1), node(2), node(100)]);
    assert_eq!(named, [node(1)]);
    assert_eq!(search.named([node(1)]), []);
    answer(&mut search, 5, &[7], now);
    assert!(search.finish().is_empty(), "an answer of somebody who was not asked");
}

#[test]
fn who_names_many_does_not_use_up_whom_a_search_may_ask() {
    let now = Instant::now();
    let mut search = search(&[7], now);
    assert_eq!(search.named(nodes(1..=20)).len(), MAX_OF_REPLY);
    assert_eq!(search.named([node(30)]), [node(30)]);
}

#[test]
fn nobody_to_ask_is_the_end() {
    let now = Instant::now();
    let mut search = search(&[], now);
    assert_eq!(search.next(&[], Shards::One, now), Step::Done);
}

proptest! {
    #[test]
    fn every_search_ends_within_its_bounds(
        identities in prop::collection::vec(0u8..20, 0..20),
        members in 0u8..60,
        events in prop::collection::vec((0u8..4, 1u8..99), 0..200),
    ) {
        let start = Instant::now();
        let mut search = search(&identities, start);
        let members: Vec<NodeId> = if members == 0 { Vec::new() } else { nodes(1..=members) };
        let (mut asked, mut walked) = (0, 0);
        for (event, seed) in events {
            match search.next(&members, Shards::One, start) {
                Step::Ask(ask) => asked += ask.len(),
                Step::Walk(keys) => walked += keys.len(),
                Step::Wait | Step::Done => {}
            }
            match event {
                0 => asked += search.named([node(seed)]).len(),
                1 => search.walk_ended(),
                2 => search.failed(&node(seed)),
                _ => answer(&mut search, seed, &[seed % 20], start),
            }
        }
        prop_assert!(asked <= MAX_ASKED && walked <= MAX_WALKS);
        prop_assert!(search.due() <= start + DEADLINE);
        prop_assert_eq!(search.next(&members, Shards::One, start + DEADLINE), Step::Done);
    }
}
