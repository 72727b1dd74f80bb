mod model;
mod shared;

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::digest::{ContentId, KeyId};
use crate::identity::{PrivateKey, UnixTime};
use crate::protocol::metadata::{Announcement, Held, Load, Locality, Lookup, Offer, PageRequest, Summary, Withdrawal};

pub(in crate::metadata) fn node(seed: u8) -> NodeId {
    PrivateKey::from_seed(seed).node_id()
}

pub(in crate::metadata) fn identity(n: u8) -> IdentityId {
    IdentityId::from_array([n; 32])
}

fn artifact(n: u8) -> ArtifactId {
    ArtifactId::from_array([n; 32])
}

/// Artifact `n` of identity `of`; higher numbers are newer.
pub(in crate::metadata) fn held(n: u8, of: u8, chunks_held: u32, chunks: u32) -> Held {
    let summary = Summary {
        artifact: artifact(n),
        identity: identity(of),
        content: ContentId::from_array([n; 32]),
        family: "triton".parse().unwrap(),
        subject: "subject".into(),
        generation: n.into(),
        created: UnixTime::from_seconds(n.into()),
        size: 1,
        wire_size: 1,
        files: 1,
        chunks,
        signer: KeyId::from_array([9; 32]),
        compile_ms: 0,
    };
    Held { artifact: Arc::new(summary), chunks_held }
}

pub(in crate::metadata) fn announcement(seed: u8, epoch: u64, sequence: u64, state: NodeState) -> Announcement {
    Announcement {
        node: node(seed),
        epoch: Epoch(epoch),
        sequence,
        state,
        endpoints: Arc::from([format!("10.0.0.{seed}:1").parse().unwrap()]),
        load: Load { uploads: 0, upload_slots: 4 },
        locality: Arc::default(),
        held: Vec::new(),
        full: true,
        server_epoch: Some(EPOCH),
    }
}

const EPOCH: ServerEpoch = ServerEpoch(77);

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn registry() -> Registry {
    Registry::new(Config::default(), EPOCH)
}

fn ready(seed: u8, sequence: u64, held: Vec<Held>) -> Announcement {
    Announcement { held, ..announcement(seed, 1, sequence, NodeState::Ready) }
}

fn offers(registry: &Registry, of: u8, now: Duration) -> Vec<Offer> {
    let lookup = Lookup { identities: vec![identity(of)], ..Lookup::default() };
    registry.lookup(&lookup, now, &mut StdRng::seed_from_u64(1)).offers
}

/// Holders of each offered artifact.
fn holders(registry: &Registry, of: u8, now: Duration) -> Vec<(ArtifactId, BTreeSet<NodeId>)> {
    offers(registry, of, now)
        .into_iter()
        .map(|offer| (offer.artifact.artifact, offer.holders.iter().map(|holder| holder.node).collect()))
        .collect()
}

#[test]
fn a_ready_node_is_offered_until_its_lease_ends_and_again_when_it_comes_back() {
    let mut registry = registry();
    let reply = registry.announce(&ready(1, 1, vec![held(1, 1, 4, 4)]), seconds(0)).unwrap();
    assert_eq!((reply.server_epoch, reply.lease, reply.announce_in_full), (EPOCH, seconds(30), false));
    assert_eq!(holders(&registry, 1, seconds(29)), [(artifact(1), [node(1)].into())]);
    // Not even if nobody called `expire`.
    assert_eq!(holders(&registry, 1, seconds(30)), []);
    registry.expire(seconds(31));
    let mut beat = ready(1, 2, vec![]);
    beat.full = false;
    assert!(!registry.announce(&beat, seconds(40)).unwrap().announce_in_full);
    assert_eq!(holders(&registry, 1, seconds(41)), [(artifact(1), [node(1)].into())]);
    let events: Vec<_> = registry.take_changes().events.iter().map(|event| event.added).collect();
    assert_eq!(events, [true, false, true]);
}

#[test]
fn a_node_that_was_forgotten_is_asked_for_everything() {
    let mut registry = registry();
    registry.announce(&ready(1, 1, vec![held(1, 1, 4, 4)]), seconds(0)).unwrap();
    registry.expire(seconds(30 + 3599));
    assert_eq!(registry.counts(seconds(3629)).lapsed, 1);
    registry.expire(seconds(30 + 3600));
    assert_eq!(registry.counts(seconds(3630)), Counts::default());
    let beat = Announcement { full: false, ..ready(1, 2, vec![]) };
    assert!(registry.announce(&beat, seconds(3631)).unwrap().announce_in_full);
}

#[test]
fn a_node_that_believes_in_another_server_epoch_is_asked_for_everything() {
    let mut registry = registry();
    registry.announce(&ready(1, 1, vec![]), seconds(0)).unwrap();
    let beat = Announcement { full: false, server_epoch: Some(ServerEpoch(5)), ..ready(1, 2, vec![]) };
    assert!(registry.announce(&beat, seconds(1)).unwrap().announce_in_full);
    assert!(!registry.announce(&ready(1, 3, vec![]), seconds(2)).unwrap().announce_in_full);
}

#[test]
fn stale_is_the_last_word_of_an_epoch_and_a_higher_epoch_replaces_everything() {
    let mut registry = registry();
    registry.announce(&ready(1, 1, vec![held(1, 1, 4, 4)]), seconds(0)).unwrap();
    registry.announce(&announcement(1, 1, 2, NodeState::Stale), seconds(1)).unwrap();
    assert_eq!(registry.counts(seconds(1)).holdings, 0);
    assert_eq!(registry.announce(&ready(1, 3, vec![]), seconds(2)), Err(RegistryError::Ended));
    let next = Announcement { epoch: Epoch(2), held: vec![held(2, 1, 4, 4)], ..ready(1, 1, vec![]) };
    registry.announce(&next, seconds(3)).unwrap();
    let again = Announcement { epoch: Epoch(3), full: false, held: vec![held(3, 1, 4, 4)], ..ready(1, 1, vec![]) };
    assert!(registry.announce(&again, seconds(4)).unwrap().announce_in_full);
    assert_eq!(holders(&registry, 1, seconds(5)), [(artifact(3), [node(1)].into())]);
    assert_eq!(
        registry.announce(&ready(1, 9, vec![]), seconds(5)),
        Err(RegistryError::OldEpoch { told: Epoch(1), known: Epoch(3) })
    );
}

#[test]
fn overtaken_messages_and_impossible_changes_of_state_change_nothing() {
    let mut registry = registry();
    registry.announce(&ready(1, 5, vec![held(1, 1, 4, 4)]), seconds(0)).unwrap();
    assert_eq!(
        registry.announce(&ready(1, 5, vec![]), seconds(1)),
        Err(RegistryError::Overtaken { told: 5, known: 5 })
    );
    let old = Withdrawal { node: node(1), epoch: Epoch(1), sequence: 4, artifact: artifact(1) };
    assert!(matches!(registry.withdraw(&old, seconds(1)), Err(RegistryError::Overtaken { .. })));
    let back = announcement(1, 1, 6, NodeState::Initializing);
    assert!(matches!(registry.announce(&back, seconds(1)), Err(RegistryError::Transition { .. })));
    assert_eq!(holders(&registry, 1, seconds(1)), [(artifact(1), [node(1)].into())]);
    registry.announce(&announcement(1, 1, 6, NodeState::Draining), seconds(1)).unwrap();
    assert_eq!(holders(&registry, 1, seconds(1)), []);
    registry.announce(&ready(1, 7, vec![held(1, 1, 4, 4)]), seconds(1)).unwrap();
    assert_eq!(holders(&registry, 1, seconds(1)), [(artifact(1), [node(1)].into())]);
}

#[test]
fn a_node_that_lies_about_an_artifact_does_not_spoil_what_others_said() {
    let mut registry = registry();
    let mut lie = Summary::clone(&held(1, 1, 4, 4).artifact);
    lie.identity = identity(2);
    registry.announce(&ready(2, 1, vec![Held { artifact: lie.into(), chunks_held: 4 }]), seconds(0)).unwrap();
    registry.announce(&ready(1, 1, vec![held(1, 1, 4, 4)]), seconds(0)).unwrap();
    assert_eq!(holders(&registry, 1, seconds(1)), [(artifact(1), [node(1)].into())]);
    assert_eq!(holders(&registry, 2, seconds(1)), [(artifact(1), [node(2)].into())]);
}

#[test]
fn offers_are_newest_first_and_excluded_nodes_are_left_out() {
    let mut registry = registry();
    let all = [3, 1, 200, 7].map(|n| held(n, 1, 4, 4)).to_vec();
    registry.announce(&ready(1, 1, all.clone()), seconds(0)).unwrap();
    registry.announce(&ready(2, 1, all[..1].to_vec()), seconds(0)).unwrap();
    let order: Vec<_> = offers(&registry, 1, seconds(1)).iter().map(|offer| offer.artifact.generation).collect();
    assert_eq!(order, [200, 7, 3, 1]);
    let lookup = Lookup { identities: vec![identity(1)], exclude: vec![node(1)], ..Lookup::default() };
    let found = registry.lookup(&lookup, seconds(1), &mut StdRng::seed_from_u64(1));
    assert_eq!(found.offers.len(), 1);
    assert_eq!((found.offers[0].holders[0].node, found.offers[0].holder_count), (node(2), 2));
}

#[test]
fn partial_holders_are_never_offered_alone_while_a_complete_one_exists() {
    let mut registry = registry();
    registry.announce(&ready(1, 1, vec![held(1, 1, 8, 8)]), seconds(0)).unwrap();
    for seed in 2..60 {
        registry.announce(&ready(seed, 1, vec![held(1, 1, 7, 8)]), seconds(0)).unwrap();
    }
    let mut rng = StdRng::seed_from_u64(3);
    let mut partial = 0;
    for _ in 0..200 {
        let lookup = Lookup { identities: vec![identity(1)], want: Some(3), ..Lookup::default() };
        let found = registry.lookup(&lookup, seconds(1), &mut rng);
        let chunks: Vec<_> = found.offers[0].holders.iter().map(|holder| holder.chunks_held).collect();
        assert_eq!(chunks.len(), 3);
        assert!(chunks.contains(&8), "{chunks:?}");
        partial += chunks.iter().filter(|chunks| **chunks == 7).count();
    }
    assert!(partial >= 200, "partial holders take load off the complete one");
    registry.announce(&announcement(1, 1, 2, NodeState::Draining), seconds(1)).unwrap();
    assert!(offers(&registry, 1, seconds(1))[0].holders.iter().all(|holder| holder.chunks_held == 7));
}

#[test]
fn near_holders_are_offered_more_often_but_not_always() {
    let mut registry = registry();
    let place = |zone: &str| Locality { region: "r".to_owned(), zone: zone.to_owned(), rack: String::new() };
    for seed in 1..=20 {
        let zone = if seed <= 4 { "near" } else { "far" };
        let told = Announcement { locality: place(zone).into(), ..ready(seed, 1, vec![held(1, 1, 4, 4)]) };
        registry.announce(&told, seconds(0)).unwrap();
    }
    let mut rng = StdRng::seed_from_u64(3);
    let lookup = Lookup { identities: vec![identity(1)], want: Some(1), near: place("near"), ..Lookup::default() };
    let near = (0..1_000)
        .filter(|_| {
            let found = registry.lookup(&lookup, seconds(1), &mut rng);
            found.offers[0].holders[0].locality.zone == "near"
        })
        .count();
    // 4 of weight 4 against 16 of weight 2: a third, where 4 of 20 would be a fifth.
    assert!((270..400).contains(&near), "{near} of 1,000");
}

#[test]
fn a_full_table_refuses_the_newcomer_and_evicts_nobody() {
    let config =
        Config { max_nodes: 2, max_artifacts_per_node: 2, max_holdings: 3, max_identities: 2, ..Config::default() };
    let mut registry = Registry::new(config, EPOCH);
    let mut announce = |told: Announcement| registry.announce(&told, seconds(1)).map(|_| ());
    let full = |what, limit| Err(RegistryError::Full { what, limit });
    announce(ready(1, 1, vec![held(1, 1, 4, 4), held(2, 2, 4, 4)])).unwrap();
    let amend = |sequence, held| Announcement { full: false, ..ready(1, sequence, held) };
    assert_eq!(announce(amend(2, vec![held(3, 1, 4, 4)])), full("artifacts of one node", 2));
    assert_eq!(announce(ready(2, 1, vec![held(1, 1, 4, 4), held(2, 2, 4, 4)])), full("holdings", 3));
    assert_eq!(announce(ready(2, 2, vec![held(5, 3, 4, 4)])), full("identities", 2));
    announce(ready(2, 3, vec![held(1, 1, 4, 4)])).unwrap();
    assert_eq!(announce(ready(3, 1, vec![])), full("nodes", 2));
    // What is already there can be renewed and changed.
    announce(amend(3, vec![held(1, 1, 2, 4)])).unwrap();
    announce(ready(1, 4, vec![held(4, 1, 4, 4), held(2, 2, 4, 4)])).unwrap();
    assert_eq!(holders(&registry, 1, seconds(1)).len(), 2);
}

#[test]
fn pages_list_every_artifact_once_and_a_family_or_a_subject_alone() {
    let mut registry = registry();
    let mut all: Vec<_> = (0..25).map(|n| held(n, n % 3, 4, 4)).collect();
    let mut other = Summary::clone(&all[7].artifact);
    (other.family, other.subject) = ("lora".parse().unwrap(), "sql".into());
    all[7].artifact = other.into();
    registry.announce(&ready(1, 1, all), seconds(0)).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut request = PageRequest { size: Some(10), ..PageRequest::default() };
    let mut seen = Vec::new();
    loop {
        let page = registry.list(&request, seconds(1), &mut rng);
        assert_eq!(page.nodes, 1);
        seen.extend(page.offers.iter().map(|offer| offer.artifact.artifact));
        // An artifact that goes in between disturbs nobody else's place.
        let gone = Withdrawal { node: node(1), epoch: Epoch(1), sequence: 2 + seen.len() as u64, artifact: seen[0] };
        registry.withdraw(&gone, seconds(1)).unwrap();
        request.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 25);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 25);
    let lora = PageRequest { family: Some("lora".parse().unwrap()), ..PageRequest::default() };
    assert_eq!(registry.list(&lora, seconds(1), &mut rng).offers.len(), 1);
    let mut named = PageRequest { subject: Some("sql".to_owned()), ..lora };
    assert_eq!(registry.list(&named, seconds(1), &mut rng).offers.len(), 1);
    named.family = Some("triton".parse().unwrap());
    assert_eq!(registry.list(&named, seconds(1), &mut rng).offers, []);
}

#[test]
fn replies_are_bounded_in_offers_and_in_bytes() {
    let mut registry = Registry::new(Config { max_artifacts_per_node: 5_000, ..Config::default() }, EPOCH);
    let many = |count: u32, subject: &str| -> Vec<Held> {
        (0..count)
            .map(|n| {
                let mut summary = Summary::clone(&held(1, 1, 4, 4).artifact);
                summary.artifact = ArtifactId::of(&n.to_be_bytes());
                summary.subject = subject.into();
                Held { artifact: summary.into(), chunks_held: 4 }
            })
            .collect()
    };
    let lookup = Lookup { identities: vec![identity(1), identity(2)], ..Lookup::default() };
    let mut rng = StdRng::seed_from_u64(1);
    registry.announce(&ready(1, 1, many(2_000, "s")), seconds(0)).unwrap();
    let found = registry.lookup(&lookup, seconds(1), &mut rng);
    assert_eq!((found.offers.len(), found.truncated), (512, true));
    registry.announce(&ready(1, 2, many(2_000, &"s".repeat(4096))), seconds(0)).unwrap();
    let found = registry.lookup(&Lookup { identities: vec![identity(1)], ..lookup }, seconds(1), &mut rng);
    assert!(found.truncated && found.offers.len() < 512);
    let page = registry.list(&PageRequest { size: Some(1_000), ..PageRequest::default() }, seconds(1), &mut rng);
    assert!(page.offers.len() < 512 && page.next.is_some());
}

#[test]
fn restored_nodes_are_hints_for_one_lease_and_are_asked_for_everything() {
    let mut registry = registry();
    registry.restore(&ready(1, 5, vec![held(1, 1, 4, 4)]), seconds(0)).unwrap();
    registry.restore(&announcement(2, 3, 1, NodeState::Stale), seconds(0)).unwrap();
    assert_eq!(holders(&registry, 1, seconds(29)).len(), 1);
    let beat = Announcement { full: false, ..ready(1, 6, vec![]) };
    assert!(registry.announce(&beat, seconds(1)).unwrap().announce_in_full);
    // STALE is remembered across the restart too.
    let back = Announcement { epoch: Epoch(3), ..ready(2, 9, vec![]) };
    assert_eq!(registry.announce(&back, seconds(1)), Err(RegistryError::Ended));
    assert_eq!(holders(&registry, 1, seconds(31)), []);
}

#[test]
fn what_one_node_invents_does_not_push_aside_what_others_hold() {
    let mut registry = registry();
    registry.announce(&ready(1, 1, vec![held(1, 1, 1, 1)]), seconds(0)).unwrap();
    let invented = (2..=200).map(|n| held(n, 1, 1, 1)).collect();
    registry.announce(&ready(2, 1, invented), seconds(0)).unwrap();
    // So many that each has few places in the answer.
    let lookup = Lookup { identities: (1..=64).map(identity).collect(), ..Lookup::default() };
    let found = registry.lookup(&lookup, seconds(1), &mut StdRng::seed_from_u64(1));
    assert!(found.truncated);
    assert!(found.offers.iter().any(|offer| offer.artifact.artifact == artifact(1)), "{:?}", found.offers);
}
