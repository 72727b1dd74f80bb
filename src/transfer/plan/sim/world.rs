//! Nodes, links and events of the simulation.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::artifact::Bitmap;
use crate::identity::NodeId;

use super::super::{Action, Failure, Have, Locality, Plan, RequestId};
use super::{Outcome, Setup};

/// Simulated time after which a run is over in any case.
const END: Duration = Duration::from_secs(600);

pub(super) type Stream = (usize, RequestId);

#[derive(Debug)]
pub(super) enum Event {
    Start,
    Wake,
    Hear {
        of: usize,
    },
    /// At a holder.
    Asked {
        by: usize,
        request: RequestId,
        indices: Vec<u32>,
        fresh: bool,
    },
    AskedHave {
        by: usize,
    },
    Cancelled {
        stream: Stream,
    },
    Sent,
    /// At the puller's end of the wire, before and after its downlink.
    Landed {
        segment: Segment,
    },
    Arrived {
        segment: Segment,
    },
    Failed {
        request: RequestId,
        failure: Failure,
    },
    HaveIs {
        of: usize,
        bits: Option<Bitmap>,
    },
    Given {
        request: RequestId,
        bits: Bitmap,
    },
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) from: usize,
    pub(super) request: RequestId,
    pub(super) bytes: u64,
    /// The chunk that ends with it and whether its bytes are right.
    pub(super) ends: Option<(u32, bool)>,
    pub(super) last: bool,
}

pub(super) struct Upload {
    pub(super) stream: Stream,
    pub(super) chunks: VecDeque<u32>,
    pub(super) offset: u64,
    pub(super) under_way: u64,
}

pub(super) struct Peer {
    pub(super) id: NodeId,
    pub(super) plan: Option<Plan>,
    pub(super) have: Bitmap,
    /// Whom it gave each chunk last.
    pub(super) given: Vec<Option<usize>>,
    pub(super) uploads: VecDeque<Upload>,
    pub(super) sending: bool,
    pub(super) down_free: Duration,
    pub(super) dead: bool,
    pub(super) pullers: BTreeSet<usize>,
    pub(super) open: BTreeMap<RequestId, usize>,
    pub(super) wake: Option<Duration>,
    pub(super) announced: bool,
}

pub(super) struct World<'a> {
    pub(super) setup: &'a Setup,
    pub(super) epoch: Instant,
    pub(super) now: Duration,
    pub(super) peers: Vec<Peer>,
    pub(super) by_id: BTreeMap<NodeId, usize>,
    pub(super) order: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) count: u64,
    pub(super) rng: SmallRng,
    pub(super) outcome: Outcome,
}

impl<'a> World<'a> {
    pub(super) fn new(setup: &'a Setup, ids: impl Fn(usize) -> NodeId) -> Self {
        let chunks = setup.chunk_lens.len();
        let peer = |node: usize| Peer {
            id: ids(node),
            plan: None,
            have: if setup.nodes[node].full { Bitmap::full(chunks) } else { Bitmap::empty(chunks) },
            given: vec![None; chunks],
            uploads: VecDeque::new(),
            sending: false,
            down_free: Duration::ZERO,
            dead: false,
            pullers: BTreeSet::new(),
            open: BTreeMap::new(),
            wake: None,
            announced: false,
        };
        let count = setup.nodes.len();
        let peers: Vec<Peer> = (0..count).map(peer).collect();
        let outcome = Outcome {
            finished: setup.nodes.iter().map(|node| node.full.then_some(Duration::ZERO)).collect(),
            sent: vec![0; count],
            received: vec![0; count],
            size: setup.chunk_lens.iter().map(|len| u64::from(*len)).sum(),
            requests: 0,
            indices: 0,
            most_streams: 0,
        };
        Self {
            setup,
            epoch: Instant::now(),
            now: Duration::ZERO,
            by_id: peers.iter().enumerate().map(|(node, peer)| (peer.id, node)).collect(),
            peers,
            order: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            rng: SmallRng::seed_from_u64(setup.seed),
            outcome,
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        for node in (0..self.peers.len()).filter(|node| !self.setup.nodes[*node].full) {
            self.at(self.setup.nodes[node].starts, node, Event::Start);
        }
        while let Some(Reverse((time, key, node))) = self.order.pop() {
            if self.outcome.all_finished() || time > END {
                break;
            }
            self.now = time;
            if let Some(event) = self.events.remove(&key)
                && !self.peers[node].dead
            {
                self.handle(node, event);
            }
        }
        self.outcome
    }

    pub(super) fn at(&mut self, time: Duration, node: usize, event: Event) {
        self.count += 1;
        self.order.push(Reverse((time, self.count, node)));
        self.events.insert(self.count, event);
    }

    /// To another node, over the wire.
    pub(super) fn tell(&mut self, node: usize, event: Event) {
        self.at(self.now + self.setup.latency, node, event);
    }

    pub(super) fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    fn handle(&mut self, node: usize, event: Event) {
        match event {
            Event::Start => self.start(node),
            Event::Wake => {
                self.peers[node].wake = None;
                self.pump(node);
            }
            Event::Hear { of } => self.hear(node, of),
            Event::Asked { by, request, indices, fresh } => self.asked(node, by, request, indices, fresh),
            Event::AskedHave { by } => {
                let bits = Some(self.peers[node].have.clone());
                self.peers[node].pullers.insert(by);
                self.tell(by, Event::HaveIs { of: node, bits });
            }
            Event::Cancelled { stream } => {
                self.peers[node].uploads.retain(|upload| upload.stream != stream);
                self.send(node);
            }
            Event::Sent => {
                self.peers[node].sending = false;
                self.send(node);
            }
            Event::Landed { segment } => self.landed(node, segment),
            Event::Arrived { segment } => self.arrived(node, segment),
            Event::Failed { request, failure } => {
                let now = self.instant();
                self.peers[node].open.remove(&request);
                self.with_plan(node, |plan| plan.on_failed(request, failure, now));
            }
            Event::HaveIs { of, bits } => self.have_is(node, of, bits),
            Event::Given { request, bits } => {
                let now = self.instant();
                self.peers[node].open.remove(&request);
                self.with_plan(node, |plan| {
                    assert!(plan.set_given(request, &bits, now));
                    plan.on_failed(request, Failure::Given, now);
                });
            }
        }
    }

    fn start(&mut self, node: usize) {
        let setup = self.setup;
        let (now, have) = (self.instant(), self.peers[node].have.clone());
        let seed = self.rng.random();
        let mut plan = Plan::new(setup.config.clone(), setup.chunk_lens.clone(), &have, seed);
        for holder in (0..self.peers.len()).filter(|holder| setup.nodes[*holder].full) {
            plan.add_holder(self.peers[holder].id, Locality::SameZone, now);
        }
        self.peers[node].plan = Some(plan);
        self.pump(node);
    }

    fn hear(&mut self, node: usize, of: usize) {
        let (now, id) = (self.instant(), self.peers[of].id);
        if node != of {
            self.with_plan(node, |plan| {
                plan.add_holder(id, Locality::SameZone, now);
            });
        }
    }

    fn have_is(&mut self, node: usize, of: usize, bits: Option<Bitmap>) {
        let (now, id) = (self.instant(), self.peers[of].id);
        self.with_plan(node, |plan| match bits {
            Some(bits) => plan.set_have(id, Have::Some(bits), now),
            None => plan.on_have_failed(id, Failure::Disconnected, now),
        });
    }

    fn with_plan(&mut self, node: usize, act: impl FnOnce(&mut Plan)) {
        if let Some(plan) = &mut self.peers[node].plan {
            act(plan);
            self.pump(node);
        }
    }

    /// Does what the plan of the node says, and wakes it when it wants to.
    pub(super) fn pump(&mut self, node: usize) {
        let now = self.instant();
        while let Some(action) = self.peers[node].plan.as_mut().and_then(|plan| plan.next(now)) {
            self.act(node, action);
        }
        let Some(plan) = &self.peers[node].plan else { return };
        if plan.is_complete() {
            self.outcome.finished[node].get_or_insert(self.now);
        }
        if let Some(deadline) = plan.next_deadline() {
            let wake = deadline.saturating_duration_since(self.epoch).max(self.now + Duration::from_micros(1));
            if self.peers[node].wake.is_none_or(|planned| wake < planned) {
                self.peers[node].wake = Some(wake);
                self.at(wake, node, Event::Wake);
            }
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Request { request, node: id, indices, fresh } => {
                let holder = self.by_id[&id];
                self.outcome.requests += 1;
                self.outcome.indices += indices.len();
                self.peers[node].open.insert(request, holder);
                self.outcome.most_streams = self.outcome.most_streams.max(self.peers[node].open.len());
                match self.peers[holder].dead {
                    true => self.tell(node, Event::Failed { request, failure: Failure::Disconnected }),
                    false => self.tell(holder, Event::Asked { by: node, request, indices, fresh }),
                }
            }
            Action::Cancel { request, node: id } => {
                let holder = self.by_id[&id];
                self.tell(holder, Event::Cancelled { stream: (node, request) });
                self.at(self.now, node, Event::Failed { request, failure: Failure::Reset });
            }
            Action::AskHave { node: id, .. } => {
                let holder = self.by_id[&id];
                match self.peers[holder].dead {
                    true => self.tell(node, Event::HaveIs { of: holder, bits: None }),
                    false => self.tell(holder, Event::AskedHave { by: node }),
                }
            }
        }
    }
}
