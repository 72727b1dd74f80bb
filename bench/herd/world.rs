//! Nodes, messages and time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use warmd::artifact::Bitmap;
use warmd::identity::NodeId;
use warmd::protocol::metadata::{Closeness, HolderInfo, Locality};
use warmd::protocol::peer::Busy;
use warmd::transfer::plan::RequestId;
use warmd::transfer::{Desk, Slot};

use super::agent::Puller;
use super::directory::{Directory, node_ids};
use super::network::{Arrival, Arrived, Cargo, Key, Network};
use super::{Fate, Marks, Outcome, Setup};

/// Simulated time after which a run is over in any case.
const END: Duration = Duration::from_secs(600);

/// Rates hold for so long.
const STEP: Duration = Duration::from_micros(100);

/// To the metadata server, one way.
const TO_DIRECTORY: Duration = Duration::from_micros(250);

/// What a handshake costs whoever accepts it: 0.4 ms on one of eight cores.
const HANDSHAKE: Duration = Duration::from_micros(50);

/// From the last byte of a chunk until it is verified and in the store: 0.25 ms at 1 MiB.
const VERIFIED_BYTES_PER_SECOND: f64 = 4e9;

/// A peer from which nothing was heard for this long is gone, as `transport` has it.
const IDLE: Duration = Duration::from_secs(10);

/// Slots of an agent, as `[provide]` has it.
const SLOTS: u32 = 16;

/// What happens at a node.
#[derive(Debug)]
pub(super) enum Event {
    Start,
    Wake,
    /// The time has come to tell the metadata server what is here.
    Tell,
    Die,
    /// At the metadata server, from this node.
    Lookup,
    Announce {
        sequence: u64,
        chunks: u32,
    },
    Found(Vec<HolderInfo>),
    /// At a holder.
    AskedManifest {
        by: usize,
    },
    /// Who asked for a manifest that is sought here has waited long enough.
    NoManifestYet {
        by: usize,
    },
    AskedHave {
        by: usize,
        known: Option<u32>,
    },
    /// The turn of something that has a slot may have come.
    Turn,
    /// Who asked for news has waited long enough.
    NoNews {
        by: usize,
        since: Duration,
    },
    Asked {
        by: usize,
        request: RequestId,
        indices: Vec<u32>,
        fresh: bool,
    },
    Cancelled(Key),
    /// At a puller.
    Answered {
        from: usize,
        answer: Answer,
    },
    Bytes(RequestId, u64),
    Chunk(RequestId, u32, bool),
    /// The connection to this node is lost.
    Lost(usize),
}

#[derive(Debug)]
pub(super) enum Answer {
    Manifest,
    NoManifest,
    ManifestBusy(Busy),
    /// `None` where nothing of the artifact is known.
    Have(Option<Bitmap>),
    First(RequestId),
    Given(RequestId, Bitmap),
    Busy(RequestId, Busy),
    NotFound(RequestId),
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) place: Arc<Locality>,
    pub(super) fate: Fate,
    pub(super) dead: bool,
    pub(super) has_manifest: bool,
    pub(super) have: Bitmap,
    pub(super) desk: Desk,
    pub(super) slots: BTreeMap<Key, Slot>,
    /// What has a slot and waits for its turn to be sent.
    pub(super) queue: Vec<(Key, Vec<(u32, u64)>)>,
    /// Who waits for more chunks than it knows of, and since when.
    pub(super) listeners: BTreeMap<usize, (u32, Duration)>,
    /// Who waits for the manifest that this node looks for itself.
    pub(super) manifest_for: Vec<usize>,
    /// Of streams that it receives: when the last chunk that landed is verified.
    pub(super) verified: BTreeMap<Cargo, Duration>,
    /// When the last handshake that this node accepted ended.
    pub(super) handshakes: Duration,
    pub(super) puller: Puller,
}

pub(super) struct World<'a> {
    pub(super) setup: &'a Setup,
    epoch: Instant,
    pub(super) now: Duration,
    pub(super) nodes: Vec<Node>,
    pub(super) by_id: BTreeMap<NodeId, usize>,
    pub(super) directory: Directory,
    pub(super) network: Network,
    /// When the connection between two nodes is there, the lower number first.
    connections: BTreeMap<(usize, usize), Duration>,
    order: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, (usize, Event)>,
    count: u64,
    pub(super) rng: SmallRng,
    /// Pullers that live and lack something.
    pub(super) waiting: usize,
    /// Chunks that the first holder has sent.
    seeded: Bitmap,
    pub(super) outcome: Outcome,
}

impl<'a> World<'a> {
    pub(super) fn new(setup: &'a Setup) -> Self {
        let mut rng = SmallRng::seed_from_u64(setup.seed);
        let ids = node_ids(setup.pullers + 1, &mut rng);
        let chunks = setup.chunk_lens.len();
        let fates: Vec<Fate> = (0..ids.len()).map(|node| setup.fate(node, &mut rng)).collect();
        let cards: Vec<f64> =
            fates.iter().map(|fate| if *fate == Fate::Straggles { setup.card / 10.0 } else { setup.card }).collect();
        let node = |(number, id): (usize, &NodeId)| Node {
            id: *id,
            place: Arc::new(setup.place(number)),
            fate: fates[number],
            dead: false,
            has_manifest: number == 0,
            have: if number == 0 { Bitmap::full(chunks) } else { Bitmap::empty(chunks) },
            desk: Desk::new(SLOTS),
            slots: BTreeMap::new(),
            queue: Vec::new(),
            listeners: BTreeMap::new(),
            manifest_for: Vec::new(),
            verified: BTreeMap::new(),
            handshakes: Duration::ZERO,
            puller: Puller::default(),
        };
        let nodes: Vec<Node> = ids.iter().enumerate().map(node).collect();
        Self {
            setup,
            epoch: Instant::now(),
            now: Duration::ZERO,
            by_id: ids.iter().enumerate().map(|(number, id)| (*id, number)).collect(),
            directory: Directory::new(chunks as u32, setup.seed),
            network: Network::new(&cards, setup.machine),
            connections: BTreeMap::new(),
            order: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            rng,
            waiting: fates[1..].iter().filter(|fate| **fate != Fate::Dies).count(),
            seeded: Bitmap::empty(chunks),
            outcome: Outcome {
                pullers: fates[1..].iter().map(|fate| (*fate, None)).collect(),
                marks: vec![Marks::default(); setup.pullers],
                sent: vec![0.0; nodes.len()],
                seeded: Duration::ZERO,
                manifests: 0,
                between_zones: 0.0,
                busy: 0,
                calls: 0,
                events: 0,
            },
            nodes,
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        let (id, place) = (self.nodes[0].id, self.nodes[0].place.clone());
        let chunks = self.setup.chunk_lens.len() as u32;
        self.directory.announce(id, &place, 1, (0, SLOTS), chunks, Duration::ZERO);
        if self.setup.swarming {
            for node in &self.nodes[1..] {
                self.directory.announce(node.id, &node.place, 1, (0, SLOTS), 0, Duration::ZERO);
            }
        }
        self.directory.open();
        for node in 1..self.nodes.len() {
            let start = self.setup.within.mul_f64(self.rng.random_range(0.0..=1.0));
            self.at(start, node, Event::Start);
            if self.nodes[node].fate == Fate::Dies {
                let dies = start + self.setup.ideal().mul_f64(self.rng.random_range(0.0..1.0));
                self.at(dies, node, Event::Die);
            }
        }
        while self.waiting > 0 && self.now < END && (!self.network.is_idle() || !self.order.is_empty()) {
            self.step();
        }
        self.outcome.calls = self.directory.calls;
        self.outcome.events = self.count;
        self.outcome
    }

    /// Moves the fluid, then lets happen what is due until the end of the step.
    fn step(&mut self) {
        if self.network.is_idle() {
            // Nothing flows: on to the step in which something happens.
            let next = self.order.peek().map_or(END, |Reverse((at, _))| *at);
            let steps = next.saturating_sub(self.now).as_nanos() / STEP.as_nanos();
            self.now += STEP * u32::try_from(steps).unwrap_or(u32::MAX);
        } else {
            self.network.share();
            for arrival in self.network.advance(self.now, STEP) {
                self.arrive(arrival);
            }
        }
        let end = self.now + STEP;
        while let Some(Reverse((at, number))) = self.order.peek().copied().filter(|Reverse((at, _))| *at < end) {
            self.order.pop();
            self.now = at;
            if let Some((node, event)) = self.events.remove(&number)
                && !self.nodes[node].dead
            {
                self.handle(node, event);
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { at, from, key: (to, cargo), what } = arrival;
        let landed = at + self.distance(from, to);
        match (what, cargo) {
            (Arrived::Part { last, .. }, Cargo::Manifest(_)) => {
                debug_assert!(last);
                if from == 0 {
                    self.outcome.manifests += self.setup.manifest;
                }
                self.leave(from, (to, cargo));
                self.at(landed, to, Event::Answered { from, answer: Answer::Manifest });
            }
            (Arrived::Part { index, last }, Cargo::Chunks(number)) => {
                let bytes = f64::from(self.setup.chunk_lens[index as usize]);
                self.outcome.sent[from] += bytes;
                if from == 0 && !self.seeded.get(index as usize) {
                    self.seeded.set(index as usize, true);
                    self.outcome.seeded = at;
                }
                if self.nodes[from].place.zone != self.nodes[to].place.zone {
                    self.outcome.between_zones += bytes;
                }
                if last {
                    self.leave(from, (to, cargo));
                }
                // A request ends when all that it brought is verified.
                let before = self.nodes[to].verified.remove(&cargo).unwrap_or_default();
                let verified = before.max(landed + Duration::from_secs_f64(bytes / VERIFIED_BYTES_PER_SECOND));
                if !last {
                    self.nodes[to].verified.insert(cargo, verified);
                }
                self.at(verified, to, Event::Chunk(RequestId(number), index, last));
            }
            (Arrived::Bytes(bytes), Cargo::Chunks(number)) => {
                self.at(landed, to, Event::Bytes(RequestId(number), bytes));
            }
            (Arrived::Bytes(_), Cargo::Manifest(_)) => {}
        }
    }

    pub(super) fn at(&mut self, time: Duration, node: usize, event: Event) {
        self.count += 1;
        self.order.push(Reverse((time, self.count)));
        self.events.insert(self.count, (node, event));
    }

    pub(super) fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    pub(super) fn since_epoch(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    /// One way.
    pub(super) fn distance(&self, a: usize, b: usize) -> Duration {
        Duration::from_micros(match self.nodes[a].place.closeness(&self.nodes[b].place) {
            Closeness::SameRack => 25,
            Closeness::SameZone => 75,
            Closeness::SameRegion | Closeness::Other => 400,
        })
    }

    /// A message to another node; the first one waits for a handshake. Who is dead does not answer: the connection is lost
    /// in the end.
    pub(super) fn send(&mut self, from: usize, to: usize, event: Event) {
        if self.nodes[to].dead {
            return self.at(self.now + IDLE, from, Event::Lost(to));
        }
        let way = self.distance(from, to);
        let pair = (from.min(to), from.max(to));
        let ready = match self.connections.get(&pair) {
            Some(ready) => *ready,
            None => {
                let accepted = self.nodes[to].handshakes.max(self.now + way) + HANDSHAKE;
                self.nodes[to].handshakes = accepted;
                self.connections.insert(pair, accepted + way);
                accepted + way
            }
        };
        self.at(self.now.max(ready) + way, to, event);
    }

    fn handle(&mut self, node: usize, event: Event) {
        match event {
            Event::Start => self.begin(node),
            Event::Wake => self.wake(node),
            Event::Tell => self.tell(node),
            Event::Die => self.die(node),
            Event::Lookup => {
                let (id, place) = (self.nodes[node].id, self.nodes[node].place.clone());
                let (answered, holders) = self.directory.lookup(id, &place, self.now);
                self.at(answered + TO_DIRECTORY, node, Event::Found(holders));
            }
            Event::Announce { sequence, chunks } => {
                let (id, place) = (self.nodes[node].id, self.nodes[node].place.clone());
                let load = self.nodes[node].desk.load();
                self.directory.announce(id, &place, sequence, load, chunks, self.now);
            }
            Event::Found(holders) => self.found(node, &holders),
            Event::AskedManifest { by } => self.asked_manifest(node, by),
            Event::NoManifestYet { by } => self.no_manifest_yet(node, by),
            Event::AskedHave { by, known } => self.asked_have(node, by, known),
            Event::Turn => self.take_turns(node),
            Event::NoNews { by, since } => self.no_news(node, by, since),
            Event::Asked { by, request, indices, fresh } => self.asked(node, by, request, &indices, fresh),
            Event::Cancelled(key) => {
                self.network.close(key);
                self.leave(node, key);
            }
            Event::Answered { from, answer } => self.answered(node, from, answer),
            Event::Bytes(request, bytes) => self.bytes(node, request, bytes),
            Event::Chunk(request, index, last) => self.chunk(node, request, index, last),
            Event::Lost(holder) => self.lost(node, holder),
        }
    }

    pub(super) fn call_directory(&mut self, node: usize, event: Event) {
        self.at(self.now + TO_DIRECTORY, node, event);
    }

    fn die(&mut self, node: usize) {
        self.nodes[node].dead = true;
        self.network.cut(node);
        for puller in 1..self.nodes.len() {
            self.at(self.now + IDLE, puller, Event::Lost(node));
            // What it was being sent has no taker: the holder's stream ends when it notices.
            let gone: Vec<Key> = self.nodes[puller].slots.keys().filter(|key| key.0 == node).copied().collect();
            gone.into_iter().for_each(|key| self.at(self.now + IDLE, puller, Event::Cancelled(key)));
        }
        let gone: Vec<Key> = self.nodes[0].slots.keys().filter(|key| key.0 == node).copied().collect();
        gone.into_iter().for_each(|key| self.at(self.now + IDLE, 0, Event::Cancelled(key)));
    }
}
