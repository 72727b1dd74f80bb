//! Sentences about the plan: decisions one by one, random histories, and whole fleets in the simulation.

mod decisions;
mod fleet;
mod histories;
mod troubles;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use crate::identity::PrivateKey;

use super::*;

/// Deriving a public key is slow in a debug build.
static NODES: LazyLock<Vec<NodeId>> =
    LazyLock::new(|| (0..=u8::MAX).map(|seed| PrivateKey::from_seed(seed).node_id()).collect());

fn node(number: usize) -> NodeId {
    NODES[number]
}

fn bitmap(len: usize, set: impl IntoIterator<Item = u32>) -> Bitmap {
    let mut bits = Bitmap::empty(len);
    set.into_iter().for_each(|index| bits.set(index as usize, true));
    bits
}

const MIB: u32 = 1 << 20;

/// A request as the driver sees it: what it still has to bring.
#[derive(Debug, Clone)]
struct Open {
    node: NodeId,
    left: Vec<u32>,
    asked: Instant,
}

/// Carries out what a plan says by hand, and checks at each action what must always hold.
struct Driver {
    plan: Plan,
    now: Instant,
    lens: Vec<u32>,
    done: BTreeSet<u32>,
    told: BTreeMap<NodeId, BTreeSet<u32>>,
    barred: BTreeSet<NodeId>,
    open: BTreeMap<RequestId, Open>,
    asked: BTreeMap<NodeId, Instant>,
    cancelled: Vec<RequestId>,
    fresh: BTreeSet<RequestId>,
    /// When the last chunk came.
    heard: BTreeMap<NodeId, Instant>,
}

impl Driver {
    fn new(config: PlanConfig, lens: Vec<u32>, have: &Bitmap, seed: u64) -> Self {
        Self {
            now: Instant::now(),
            done: (0..lens.len() as u32).filter(|index| have.get(*index as usize)).collect(),
            plan: Plan::new(config, lens.clone(), have, seed),
            lens,
            told: BTreeMap::new(),
            barred: BTreeSet::new(),
            open: BTreeMap::new(),
            asked: BTreeMap::new(),
            cancelled: Vec::new(),
            fresh: BTreeSet::new(),
            heard: BTreeMap::new(),
        }
    }

    /// `count` chunks of `len` bytes, all missing.
    fn of(count: usize, len: u32) -> Self {
        Self::new(PlanConfig::default(), vec![len; count], &Bitmap::empty(count), 1)
    }

    fn all(&self) -> std::ops::Range<u32> {
        0..self.lens.len() as u32
    }

    fn tell(&mut self, node: NodeId, set: impl IntoIterator<Item = u32>) {
        let set: BTreeSet<u32> = set.into_iter().collect();
        let bits = bitmap(self.lens.len(), set.iter().copied());
        self.plan.set_have(node, Have::Some(bits), self.now);
        if self.plan.gone(node).is_none() {
            self.told.insert(node, set);
        }
        self.asked.remove(&node);
    }

    fn holder(&mut self, number: usize, set: impl IntoIterator<Item = u32>) -> NodeId {
        assert!(self.plan.add_holder(node(number), Locality::SameZone, self.now));
        self.tell(node(number), set);
        node(number)
    }

    /// A holder of everything.
    fn complete(&mut self, number: usize) {
        assert!(self.plan.add_holder(node(number), Locality::SameZone, self.now));
        self.plan.set_have(node(number), Have::All, self.now);
        self.told.insert(node(number), self.all().collect());
    }

    /// The request ends because these chunks were given to others.
    fn given(&mut self, request: RequestId, to_others: impl IntoIterator<Item = u32>) {
        assert!(self.fresh.contains(&request));
        let node = self.open.remove(&request).map(|open| open.node);
        let reason = self.plan.set_given(request, &bitmap(self.lens.len(), to_others), self.now);
        let failure = if reason { Failure::Given } else { Failure::Forbidden };
        self.barred.extend(node.filter(|_| !reason));
        self.plan.on_failed(request, failure, self.now);
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Follows the plan until it has nothing more to say; returns the requests.
    fn drain(&mut self) -> Vec<(RequestId, Open)> {
        let mut requests = Vec::new();
        while let Some(action) = self.plan.next(self.now) {
            match action {
                Action::Request { request, node, indices, fresh } => {
                    self.check(node, &indices);
                    self.fresh.extend(fresh.then_some(request));
                    let open = Open { node, left: indices, asked: self.now };
                    self.open.insert(request, open.clone());
                    requests.push((request, open));
                }
                Action::Cancel { request, node } => {
                    assert_eq!(self.open.remove(&request).map(|open| open.node), Some(node), "cancels what is open");
                    self.cancelled.push(request);
                }
                Action::AskHave { node, .. } => {
                    let before = self.asked.insert(node, self.now);
                    let over = before.is_none_or(|at| self.now >= at + self.plan.config.first_byte);
                    assert!(over, "asked while it is being asked");
                }
            }
        }
        requests
    }

    fn missing(&self, open: &Open) -> Vec<u32> {
        open.left.iter().copied().filter(|index| !self.done.contains(index)).collect()
    }

    fn carriers(&self, index: u32) -> Vec<NodeId> {
        self.open.values().filter(|open| open.left.contains(&index)).map(|open| open.node).collect()
    }

    /// For how long nothing came from this carrier of the chunk.
    fn silent(&self, carrier: NodeId, index: u32) -> Duration {
        let is_it = |open: &&Open| open.node == carrier && open.left.contains(&index);
        let asked = self.open.values().find(is_it).map(|open| open.asked);
        let heard = self.heard.get(&carrier).copied();
        asked.max(heard).map_or(Duration::ZERO, |last| self.now.saturating_duration_since(last))
    }

    fn check(&self, node: NodeId, indices: &[u32]) {
        assert!(!self.barred.contains(&node), "a barred holder is asked");
        assert_eq!(self.plan.gone(node), None);
        assert!((1..=64).contains(&indices.len()));
        assert_eq!(indices.iter().collect::<BTreeSet<_>>().len(), indices.len(), "an index twice");
        let told = &self.told[&node];
        // Wanted: missing and in flight nowhere.
        let wanted = |index: &u32| !self.done.contains(index) && self.carriers(*index).is_empty();
        let idle = !told.iter().any(wanted);
        for index in indices {
            assert!(!self.done.contains(index), "chunk {index} is here");
            assert!(told.contains(index), "the holder lacks chunk {index}");
            let carriers = self.carriers(*index);
            assert!(carriers.is_empty() || idle, "duplicates chunk {index} while the holder has wanted ones");
            let heard = carriers.iter().filter(|carrier| self.silent(**carrier, *index) < Duration::from_millis(30));
            assert!(heard.count() < 3 && !carriers.contains(&node), "chunk {index} is in flight at {carriers:?}");
        }
        let bytes = |left: &[u32]| left.iter().map(|index| u64::from(self.lens[*index as usize])).sum::<u64>();
        let in_flight: u64 = self.open.values().map(|open| bytes(&self.missing(open))).sum();
        let most = self.plan.config.max_in_flight_bytes;
        assert!(in_flight == 0 || in_flight + bytes(indices) <= most, "{in_flight} bytes are in flight");
        let streams = self.open.values().filter(|open| open.node == node).count();
        assert!(streams < self.plan.config.max_streams_per_holder as usize);
    }

    /// The next chunk of the request arrives; the last one ends it.
    fn deliver(&mut self, request: RequestId) -> Option<ChunkOutcome> {
        let open = self.open.get_mut(&request)?;
        let index = open.left.remove(0);
        let ends = open.left.is_empty();
        self.heard.insert(open.node, self.now);
        self.done.insert(index);
        let outcome = self.plan.on_chunk(request, index, self.now);
        if ends {
            self.open.remove(&request);
            self.plan.on_finished(request, self.now);
        }
        Some(outcome)
    }

    fn bring(&mut self, request: RequestId) {
        self.deliver(request);
    }

    fn fail(&mut self, request: RequestId, failure: Failure) {
        if let Some(open) = self.open.remove(&request) {
            if failure == Failure::Forbidden {
                self.barred.insert(open.node);
            }
            self.plan.on_failed(request, failure, self.now);
        }
    }

    fn lie(&mut self, request: RequestId) {
        if let Some(open) = self.open.get(&request).cloned() {
            self.barred.insert(open.node);
            self.plan.on_bad_chunk(request, self.now);
        }
    }

    /// Every open request brings a chunk each round, bitmaps are answered as told before, time passes where it must.
    fn run_to_the_end(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.drain();
            if self.plan.is_complete() {
                return;
            }
            for holder in std::mem::take(&mut self.asked).into_keys() {
                let told = self.told.get(&holder).cloned().unwrap_or_default();
                self.tell(holder, told);
            }
            self.drain();
            match self.open.is_empty() {
                true => self.now = self.plan.next_deadline().expect("something to wait for").max(self.now),
                false => self.pass(5),
            }
            let open: Vec<RequestId> = self.open.keys().copied().collect();
            open.into_iter().for_each(|request| self.bring(request));
        }
        panic!("not complete: {:?}, stuck: {:?}", self.plan.progress(), self.plan.is_stuck(self.now));
    }
}

/// Node 0 got a request and is silent since then; node 1 has brought everything else and has nothing to do.
fn silent_and_idle() -> (Driver, RequestId) {
    let mut driver = Driver::of(8, MIB);
    driver.holder(0, 0..4);
    let slow = driver.drain()[0].0;
    let kept = driver.open[&slow].left.len();
    driver.holder(1, 0..8);
    while driver.done.len() < 8 - kept {
        driver.drain();
        let fast = driver.open.iter().find(|(_, open)| open.node == node(1)).map(|(request, _)| *request);
        driver.bring(fast.expect("the fast one is asked"));
    }
    (driver, slow)
}
