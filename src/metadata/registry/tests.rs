use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
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
fn pages_list_every_artifact_once_and_a_family_alone() {
    let mut registry = registry();
    let mut all: Vec<_> = (0..25).map(|n| held(n, n % 3, 4, 4)).collect();
    let mut other = Summary::clone(&all[7].artifact);
    other.family = "lora".parse().unwrap();
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

/// What a registry must know of one node, kept in the plainest way.
#[derive(Debug, Clone)]
struct ModelNode {
    epoch: u64,
    sequence: u64,
    state: NodeState,
    renewed: Duration,
    held: BTreeMap<ArtifactId, (IdentityId, u32)>,
    complete: bool,
}

#[derive(Debug, Clone)]
enum Step {
    /// Of a node: raises its epoch first (a restart), state, artifacts, full, sequence goes back.
    Announce {
        node: u8,
        restart: bool,
        state: NodeState,
        artifacts: Vec<(u8, u32)>,
        full: bool,
        late: bool,
    },
    /// With the epoch this far behind.
    Withdraw {
        node: u8,
        behind: u64,
        artifact: u8,
    },
    /// A message of an epoch that is over.
    OldAnnounce {
        node: u8,
    },
    Pass {
        seconds: u64,
    },
    Expire,
    /// The server loses everything.
    Crash,
}

fn arb_step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![
        1 => Just(NodeState::Initializing), 6 => Just(NodeState::Ready),
        2 => Just(NodeState::Draining), 1 => Just(NodeState::Stale),
    ];
    let artifacts = prop::collection::btree_map(0u8..8, 0u32..=4, 0..4).prop_map(|map| map.into_iter().collect());
    prop_oneof![
        10 => (0u8..4, prop::bool::weighted(0.1), state, artifacts, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
            |(node, restart, state, artifacts, full, late)| Step::Announce { node, restart, state, artifacts, full, late }
        ),
        3 => (0u8..4, 0u64..2, 0u8..8).prop_map(|(node, behind, artifact)| Step::Withdraw { node, behind, artifact }),
        1 => (0u8..4).prop_map(|node| Step::OldAnnounce { node }),
        3 => prop_oneof![0u64..20, Just(40u64), Just(4_000u64)].prop_map(|seconds| Step::Pass { seconds }),
        2 => Just(Step::Expire),
        1 => Just(Step::Crash),
    ]
}

const SMALL: Config = Config {
    heartbeat: Duration::from_secs(10),
    lease: Duration::from_secs(30),
    forget: Duration::from_secs(3600),
    max_nodes: 3,
    max_artifacts_per_node: 4,
    max_holdings: 9,
    max_identities: 3,
};

#[derive(Debug)]
struct Model {
    registry: Registry,
    nodes: BTreeMap<NodeId, ModelNode>,
    /// What each agent would send next.
    agents: [(u64, u64); 4],
    now: Duration,
    /// Holders that watchers know of.
    shown: BTreeSet<(IdentityId, ArtifactId, NodeId)>,
}

impl Model {
    fn new() -> Self {
        let registry = Registry::new(SMALL, EPOCH);
        Self { registry, nodes: BTreeMap::new(), agents: [(1, 0); 4], now: seconds(0), shown: BTreeSet::new() }
    }

    fn forget(&mut self) {
        let now = self.now;
        self.nodes.retain(|_, node| {
            let ends = if node.state == NodeState::Stale { node.renewed } else { node.renewed + SMALL.lease };
            now < ends + SMALL.forget
        });
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Announce { node, restart, state, artifacts, full, late } => {
                let (epoch, sequence) = &mut self.agents[usize::from(*node)];
                if *restart {
                    (*epoch, *sequence) = (*epoch + 1, 0);
                }
                *sequence += 1;
                let sequence = if *late { sequence.saturating_sub(3) } else { *sequence };
                let held = artifacts.iter().map(|(n, chunks)| held(*n, *n % 5, *chunks, 4)).collect();
                let told = Announcement { held, full: *full, ..announcement(node + 1, *epoch, sequence, *state) };
                self.announce(&told);
            }
            Step::OldAnnounce { node } => {
                let (epoch, sequence) = self.agents[usize::from(*node)];
                self.announce(&announcement(node + 1, epoch - 1, sequence + 50, NodeState::Ready));
            }
            Step::Withdraw { node, behind, artifact } => self.withdraw(*node, *behind, *artifact),
            Step::Pass { seconds: passed } => self.now += seconds(*passed),
            Step::Expire => {
                self.registry.expire(self.now);
                self.forget();
            }
            Step::Crash => {
                self.registry = Registry::new(SMALL, EPOCH);
                self.nodes.clear();
                self.shown.clear();
            }
        }
    }

    fn announce(&mut self, told: &Announcement) {
        let result = self.registry.announce(told, self.now);
        self.forget();
        let expected = self.expect(told);
        match (result, expected) {
            (Ok(reply), Ok(next)) => {
                assert_eq!(reply.announce_in_full, told.state != NodeState::Stale && !next.complete);
                self.nodes.insert(told.node, next);
            }
            (Err(got), Err(wanted)) => assert_eq!(std::mem::discriminant(&got), std::mem::discriminant(&wanted)),
            (got, wanted) => panic!("{told:?}: got {got:?}, the model says {wanted:?}"),
        }
    }

    fn expect(&self, told: &Announcement) -> Result<ModelNode, RegistryError> {
        let known = self.nodes.get(&told.node);
        if let Some(node) = known {
            if told.epoch.0 < node.epoch {
                return Err(RegistryError::OldEpoch { told: told.epoch, known: Epoch(node.epoch) });
            }
            if told.epoch.0 == node.epoch {
                if told.sequence <= node.sequence {
                    return Err(RegistryError::Overtaken { told: told.sequence, known: node.sequence });
                }
                if node.state == NodeState::Stale && told.state != NodeState::Stale {
                    return Err(RegistryError::Ended);
                }
                if node.state != NodeState::Initializing && told.state == NodeState::Initializing {
                    return Err(RegistryError::Transition { from: node.state, to: told.state });
                }
            }
        }
        let same = known.filter(|node| node.epoch == told.epoch.0);
        let mut held = same.filter(|_| !told.full).map(|node| node.held.clone()).unwrap_or_default();
        for one in &told.held {
            held.insert(one.artifact.artifact, (one.artifact.identity, one.chunks_held));
        }
        let others = || self.nodes.iter().filter(|(id, _)| **id != told.node).flat_map(|(_, node)| &node.held);
        let before = known.map_or(0, |node| node.held.len());
        let new_identities = {
            let known: BTreeSet<_> = self.nodes.values().flat_map(|node| &node.held).map(|(_, held)| held.0).collect();
            let all: BTreeSet<_> = told.held.iter().map(|held| held.artifact.identity).chain(known.clone()).collect();
            (all.len() > known.len()).then_some(all.len())
        };
        if (known.is_none() && self.nodes.len() >= SMALL.max_nodes)
            || held.len() > SMALL.max_artifacts_per_node
            || (held.len() > before && others().count() + held.len() > SMALL.max_holdings)
            || new_identities.is_some_and(|all| all > SMALL.max_identities)
        {
            return Err(RegistryError::Full { what: "", limit: 0 });
        }
        if told.state == NodeState::Stale {
            held.clear();
        }
        Ok(ModelNode {
            epoch: told.epoch.0,
            sequence: told.sequence,
            state: told.state,
            renewed: self.now,
            held,
            complete: told.full || same.is_some_and(|node| node.complete),
        })
    }

    fn withdraw(&mut self, seed: u8, behind: u64, n: u8) {
        let (epoch, sequence) = &mut self.agents[usize::from(seed)];
        *sequence += 1;
        let told = Withdrawal {
            node: node(seed + 1),
            epoch: Epoch(*epoch - behind),
            sequence: *sequence,
            artifact: artifact(n),
        };
        let result = self.registry.withdraw(&told, self.now);
        self.forget();
        let Some(known) = self.nodes.get_mut(&told.node) else { return result.unwrap() };
        if told.epoch.0 < known.epoch {
            assert!(matches!(result, Err(RegistryError::OldEpoch { .. })));
        } else if told.epoch.0 == known.epoch && told.sequence <= known.sequence {
            assert!(matches!(result, Err(RegistryError::Overtaken { .. })));
        } else {
            result.unwrap();
            if told.epoch.0 == known.epoch {
                known.sequence = told.sequence;
                known.held.remove(&told.artifact);
            }
        }
    }

    /// The registry says what the model knows, no more and no less.
    fn check(&mut self) {
        let now = self.now;
        for event in self.registry.take_changes().events {
            let holder = (event.identity, event.artifact, event.node);
            let news = if event.added { self.shown.insert(holder) } else { self.shown.remove(&holder) };
            assert!(news, "{event:?} was told before");
        }
        let offered = |node: &ModelNode| node.state == NodeState::Ready && now < node.renewed + SMALL.lease;
        let mut expected = BTreeSet::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| offered(node)) {
            let servable = node.held.iter().filter(|(_, (_, chunks))| *chunks > 0);
            expected.extend(servable.map(|(artifact, (identity, _))| (*identity, *artifact, *id)));
        }
        let lookup = Lookup { identities: (0..8).map(identity).collect(), want: Some(64), ..Lookup::default() };
        let found = self.registry.lookup(&lookup, now, &mut StdRng::seed_from_u64(1));
        let mut offers = BTreeSet::new();
        for offer in &found.offers {
            let Summary { identity, artifact, .. } = *offer.artifact;
            assert!(offer.holders.iter().all(|holder| offers.insert((identity, artifact, holder.node))));
        }
        assert_eq!(offers, expected);
        // Watchers may not have heard of a lapse yet, but know every holder there is.
        assert!(expected.is_subset(&self.shown));
        let counts = self.registry.counts(now);
        assert!(counts.holdings <= SMALL.max_holdings && counts.identities <= SMALL.max_identities);
        assert!(counts.artifacts <= counts.holdings && counts.identities <= counts.artifacts);
    }

    /// After all leases were looked at.
    fn check_at_rest(&mut self) {
        self.registry.expire(self.now);
        self.forget();
        self.check();
        let counts = self.registry.counts(self.now);
        assert_eq!(counts.holdings, self.nodes.values().map(|node| node.held.len()).sum::<usize>());
        assert_eq!(self.registry.by_id.len(), self.nodes.len());
        assert_eq!(self.registry.deadlines.len(), self.nodes.len());
        for (id, node) in &self.nodes {
            for (artifact, (identity, chunks)) in &node.held {
                let held = self.registry.holding(*id, *artifact).unwrap();
                assert_eq!((held.artifact.identity, held.chunks_held), (*identity, *chunks));
            }
        }
        self.registry.expire(self.now + seconds(100_000));
        assert_eq!(self.registry.counts(self.now), Counts::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_interleaving_agrees_with_the_plainest_model(steps in prop::collection::vec(arb_step(), 1..60)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
            model.check();
        }
        model.check_at_rest();
    }
}
