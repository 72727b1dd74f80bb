//! Several registries over one store, in random interleavings of everything that can happen to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{EPOCH, announcement, artifact, held, node, seconds};
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::metadata::registry::{Change, Config, Decision, Registry, Version};
use crate::protocol::metadata::{Announcement, Epoch, Held, NodeState, Withdrawal};

const NODES: u8 = 5;
const ARTIFACTS: u8 = 6;
const SERVERS: usize = 3;

fn config() -> Config {
    Config { lease: seconds(30), forget: seconds(120), ..Config::default() }
}

/// A node in the store.
#[derive(Debug, Clone)]
struct Row {
    version: Version,
    renewed: Duration,
    complete: bool,
    told: Announcement,
    held: BTreeMap<ArtifactId, Held>,
}

/// What the scripts do, and the promises that they keep.
#[derive(Debug, Default)]
struct Store {
    rows: HashMap<NodeId, Row>,
    log: Vec<(Version, Duration, Change)>,
    /// Epochs of nodes that have ended.
    ended: HashMap<NodeId, Epoch>,
}

impl Store {
    /// False if the node's last change is another one.
    fn commit(&mut self, change: &Change, decision: &Decision, now: Duration) -> bool {
        let id = change.node();
        let known = self.rows.get(&id).map_or_else(Version::default, |row| row.version);
        if known != decision.known {
            return false;
        }
        let version = Version(self.log.len() as u64 + 1);
        self.log.push((version, now, change.clone()));
        let Some(told) = &decision.node else {
            self.rows.remove(&id);
            self.ended.remove(&id);
            return true;
        };
        self.check(change);
        let renewed = self.rows.get(&id).map_or(now, |row| row.renewed);
        let mut held = self.rows.remove(&id).map(|row| row.held).filter(|_| !decision.replaces).unwrap_or_default();
        let mut row = Row { version, renewed, complete: decision.complete, told: told.clone(), held: BTreeMap::new() };
        match change {
            Change::Announce(told) => {
                row.renewed = now;
                let holds = told.held.iter().filter(|_| told.state != NodeState::Stale);
                held.extend(holds.map(|held| (held.artifact.artifact, held.clone())));
            }
            Change::Withdraw(told) => drop(held.remove(&told.artifact)),
            Change::Forget(_) => unreachable!("has no node afterwards"),
        }
        row.held = held;
        self.rows.insert(id, row);
        true
    }

    /// No change follows the end of its epoch, and none is of an epoch or a message before the last.
    fn check(&mut self, change: &Change) {
        let (epoch, sequence, state) = match change {
            Change::Announce(told) => (told.epoch, told.sequence, told.state),
            Change::Withdraw(told) => (told.epoch, told.sequence, NodeState::Stale),
            Change::Forget(_) => return,
        };
        let id = change.node();
        if self.ended.get(&id) >= Some(&epoch) {
            assert_eq!(state, NodeState::Stale, "{change:?} after the end");
        }
        if let Some(row) = self.rows.get(&id) {
            assert!(epoch >= row.told.epoch, "{change:?} after {:?}", row.told);
            assert!(epoch > row.told.epoch || sequence > row.told.sequence, "{change:?} after {:?}", row.told);
        }
        if matches!(change, Change::Announce(told) if told.state == NodeState::Stale) {
            self.ended.insert(id, epoch);
        }
    }
}

struct Server {
    registry: Registry,
    applied: usize,
}

impl Server {
    fn start(store: &Store) -> Self {
        let mut registry = Registry::shared(config(), EPOCH);
        for row in store.rows.values() {
            let node = Announcement { held: row.held.values().cloned().collect(), ..row.told.clone() };
            registry.adopt(&node, row.complete, row.version, row.renewed);
        }
        Self { registry, applied: store.log.len() }
    }

    fn follow(&mut self, store: &Store, lines: usize) {
        for (version, at, change) in store.log.iter().skip(self.applied).take(lines) {
            self.registry.apply(change, *version, *at);
            self.applied += 1;
        }
    }

    fn assert_same(&self, store: &Store) {
        let mut holdings = 0;
        for seed in 0..NODES {
            let row = store.rows.get(&node(seed));
            let known = self.registry.node(node(seed));
            assert_eq!(known.as_ref().map(said), row.map(|row| said(&row.told)), "node {seed}");
            for n in 0..ARTIFACTS {
                let held = row.and_then(|row| row.held.get(&artifact(n)).cloned());
                assert_eq!(self.registry.holding(node(seed), artifact(n)), held, "node {seed}, artifact {n}");
                holdings += usize::from(held.is_some());
            }
        }
        assert_eq!(self.registry.counts(Duration::ZERO).holdings, holdings);
    }
}

fn said(told: &Announcement) -> (NodeId, Epoch, u64, NodeState) {
    (told.node, told.epoch, told.sequence, told.state)
}

/// An agent: what it has said last.
#[derive(Debug, Clone)]
struct Agent {
    epoch: u64,
    sequence: u64,
    state: NodeState,
}

struct World {
    rng: StdRng,
    now: Duration,
    store: Store,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    /// Decided, and not yet at the store.
    under_way: Vec<(Change, Decision)>,
    taken: usize,
    refused: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let store = Store::default();
        let servers = (0..SERVERS).map(|_| Server::start(&store)).collect();
        let agents = vec![Agent { epoch: 1, sequence: 0, state: NodeState::Initializing }; NODES.into()];
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, now: seconds(1), store, servers, agents, under_way: Vec::new(), taken: 0, refused: 0 }
    }

    fn step(&mut self) {
        let server = self.rng.random_range(0..SERVERS);
        match self.rng.random_range(0..100) {
            0..40 => self.speak(server),
            40..65 => self.commit(),
            65..92 => {
                let lines = self.rng.random_range(1..20);
                self.servers[server].follow(&self.store, lines);
            }
            92..94 => self.servers[server] = Server::start(&self.store),
            94..96 => self.reap(server),
            // Once in a while long enough for everybody to be forgotten.
            96..99 if self.rng.random_bool(0.02) => self.now += seconds(200),
            96..99 => self.now += Duration::from_millis(self.rng.random_range(0..20_000)),
            _ => {
                let seed = self.rng.random_range(0..self.agents.len());
                let epoch = self.agents[seed].epoch + 1;
                self.agents[seed] = Agent { epoch, sequence: 0, state: NodeState::Initializing };
            }
        }
        // What waits for longer than anything is remembered is not under way any more.
        if self.under_way.len() > 12 {
            self.under_way.remove(0);
        }
    }

    fn speak(&mut self, server: usize) {
        let seed = self.rng.random_range(0..NODES);
        let agent = &mut self.agents[usize::from(seed)];
        // One in ten messages is late, or of the life before.
        let late = self.rng.random_bool(0.1);
        agent.sequence += u64::from(!late);
        let epoch = agent.epoch - u64::from(agent.epoch > 1 && self.rng.random_bool(0.05));
        let sequence = agent.sequence.max(1);
        let change = if self.rng.random_bool(0.2) {
            let artifact = artifact(self.rng.random_range(0..ARTIFACTS));
            Change::Withdraw(Withdrawal { node: node(seed), epoch: Epoch(epoch), sequence, artifact })
        } else {
            let state = [NodeState::Ready, NodeState::Ready, NodeState::Draining, NodeState::Stale];
            let wished = state[self.rng.random_range(0..state.len())];
            // Agents keep to the rules; messages that come late or twice do not.
            if agent.state.may_become(wished) {
                agent.state = wished;
            }
            let all: BTreeSet<u8> =
                (0..self.rng.random_range(0..4)).map(|_| self.rng.random_range(0..ARTIFACTS)).collect();
            let held = all.into_iter().map(|n| held(n, n % 3, self.rng.random_range(1..=4), 4)).collect();
            let told = announcement(seed, epoch, sequence, if late { wished } else { agent.state });
            Change::Announce(Announcement { held, full: self.rng.random_bool(0.3), ..told })
        };
        match self.servers[server].registry.decide(&change) {
            Ok(Some(decision)) => self.under_way.push((change, decision)),
            Ok(None) => {}
            Err(_) => self.refused += 1,
        }
    }

    fn commit(&mut self) {
        if !self.under_way.is_empty() {
            let (change, decision) = self.under_way.swap_remove(self.rng.random_range(0..self.under_way.len()));
            self.taken += usize::from(self.store.commit(&change, &decision, self.now));
        }
    }

    fn reap(&mut self, server: usize) {
        let registry = &mut self.servers[server].registry;
        registry.expire(self.now);
        for id in registry.to_forget(self.now) {
            let change = Change::Forget(id);
            if let Ok(Some(decision)) = registry.decide(&change) {
                self.under_way.push((change, decision));
            }
        }
    }
}

fn interleave(steps: usize) {
    let mut world = World::new(steps as u64);
    for step in 0..steps {
        world.step();
        if step % 1_000 == 999 {
            for server in &mut world.servers {
                server.follow(&world.store, usize::MAX);
                server.assert_same(&world.store);
            }
        }
    }
    assert!(
        world.taken > steps / 20 && world.refused > steps / 100,
        "{} taken, {} refused",
        world.taken,
        world.refused
    );
    assert!(world.store.log.iter().any(|(_, _, change)| matches!(change, Change::Forget(_))));
}

#[test]
fn in_every_interleaving_servers_agree_and_nothing_follows_the_end_of_an_epoch() {
    interleave(20_000);
}

#[test]
#[ignore = "takes minutes"]
fn in_a_million_interleavings_servers_agree_and_nothing_follows_the_end_of_an_epoch() {
    interleave(std::env::var("WARMD_TEST_INTERLEAVINGS").map_or(1_000_000, |steps| steps.parse().unwrap()));
}

#[test]
fn what_was_decided_on_old_knowledge_is_not_taken() {
    let mut store = Store::default();
    let (mut a, b) = (Server::start(&store), Server::start(&store));
    let ready = Change::Announce(announcement(1, 1, 1, NodeState::Ready));
    let stale = Change::Announce(announcement(1, 1, 2, NodeState::Stale));
    assert!(store.commit(&ready, &a.registry.decide(&ready).unwrap().unwrap(), seconds(1)));
    a.follow(&store, 1);
    assert!(store.commit(&stale, &a.registry.decide(&stale).unwrap().unwrap(), seconds(2)));
    // The other server does not know of the end yet, and the store does not let it speak.
    let back = Change::Announce(announcement(1, 1, 3, NodeState::Ready));
    let decision = b.registry.decide(&back).unwrap().unwrap();
    assert!(!store.commit(&back, &decision, seconds(3)));
    a.follow(&store, 1);
    assert!(a.registry.decide(&back).is_err());
    assert_eq!(a.registry.to_forget(seconds(2 + 30 + 119)), []);
    assert_eq!(a.registry.to_forget(seconds(2 + 30 + 120)), [node(1)]);
}
