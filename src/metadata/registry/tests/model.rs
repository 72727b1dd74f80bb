//! Random interleavings of everything that can happen, against the plainest model of a registry.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{EPOCH, announcement, artifact, held, identity, node, seconds};
use crate::digest::{ArtifactId, IdentityId};
use crate::identity::NodeId;
use crate::metadata::registry::{Config, Counts, Registry, RegistryError};
use crate::protocol::metadata::{Announcement, Epoch, Lookup, NodeState, Summary, Withdrawal};

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
    /// With the node's epoch, or the one before or after it.
    Withdraw {
        node: u8,
        shift: i64,
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
        3 => (0u8..4, -1i64..=1, 0u8..8).prop_map(|(node, shift, artifact)| Step::Withdraw { node, shift, artifact }),
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
            Step::Withdraw { node, shift, artifact } => self.withdraw(*node, *shift, *artifact),
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

    fn withdraw(&mut self, seed: u8, shift: i64, n: u8) {
        let (epoch, sequence) = &mut self.agents[usize::from(seed)];
        *sequence += 1;
        let told = Withdrawal {
            node: node(seed + 1),
            epoch: Epoch(epoch.saturating_add_signed(shift)),
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
