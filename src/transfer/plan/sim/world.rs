//! Nodes, links and events of the simulation.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::artifact::Bitmap;
use crate::identity::NodeId;

use super::super::{Action, ChunkOutcome, Failure, Have, Locality, Plan, RequestId};
use super::{Fault, Outcome, Setup};

const SEGMENT: f64 = 256.0 * 1024.0;

/// Bytes of one stream that may be under way.
const WINDOW: u64 = 16 << 20;

/// Simulated time after which a run is over in any case.
const END: Duration = Duration::from_secs(600);

type Stream = (usize, RequestId);

#[derive(Debug)]
enum Event {
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
}

#[derive(Debug)]
struct Segment {
    from: usize,
    request: RequestId,
    bytes: u64,
    /// The chunk that ends with it and whether its bytes are right.
    ends: Option<(u32, bool)>,
    last: bool,
}

struct Upload {
    stream: Stream,
    chunks: VecDeque<u32>,
    offset: u64,
    under_way: u64,
}

struct Peer {
    id: NodeId,
    plan: Option<Plan>,
    have: Bitmap,
    uploads: VecDeque<Upload>,
    sending: bool,
    down_free: Duration,
    dead: bool,
    pullers: BTreeSet<usize>,
    open: BTreeMap<RequestId, usize>,
    wake: Option<Duration>,
    announced: bool,
}

pub(super) struct World<'a> {
    setup: &'a Setup,
    epoch: Instant,
    now: Duration,
    peers: Vec<Peer>,
    by_id: BTreeMap<NodeId, usize>,
    order: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    rng: SmallRng,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(super) fn new(setup: &'a Setup, ids: impl Fn(usize) -> NodeId) -> Self {
        let chunks = setup.chunk_lens.len();
        let peer = |node: usize| Peer {
            id: ids(node),
            plan: None,
            have: if setup.nodes[node].full { Bitmap::full(chunks) } else { Bitmap::empty(chunks) },
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

    fn at(&mut self, time: Duration, node: usize, event: Event) {
        self.count += 1;
        self.order.push(Reverse((time, self.count, node)));
        self.events.insert(self.count, event);
    }

    /// To another node, over the wire.
    fn tell(&mut self, node: usize, event: Event) {
        self.at(self.now + self.setup.latency, node, event);
    }

    fn instant(&self) -> Instant {
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
            Event::Asked { by, request, indices } => self.asked(node, by, request, indices),
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
            Event::Landed { segment } => {
                let took = Duration::from_secs_f64(segment.bytes as f64 / self.setup.nodes[node].down);
                let free = self.peers[node].down_free.max(self.now) + took;
                self.peers[node].down_free = free;
                self.at(free, node, Event::Arrived { segment });
            }
            Event::Arrived { segment } => self.arrived(node, segment),
            Event::Failed { request, failure } => {
                let now = self.instant();
                self.peers[node].open.remove(&request);
                self.with_plan(node, |plan| plan.on_failed(request, failure, now));
            }
            Event::HaveIs { of, bits } => {
                let (now, id) = (self.instant(), self.peers[of].id);
                self.with_plan(node, |plan| match bits {
                    Some(bits) => plan.set_have(id, Have::Some(bits), now),
                    None => plan.on_have_failed(id, Failure::Disconnected, now),
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

    fn with_plan(&mut self, node: usize, act: impl FnOnce(&mut Plan)) {
        if let Some(plan) = &mut self.peers[node].plan {
            act(plan);
            self.pump(node);
        }
    }

    /// Does what the plan of the node says, and wakes it when it wants to.
    fn pump(&mut self, node: usize) {
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
            Action::Request { request, node: id, indices } => {
                let holder = self.by_id[&id];
                self.outcome.requests += 1;
                self.outcome.indices += indices.len();
                self.peers[node].open.insert(request, holder);
                self.outcome.most_streams = self.outcome.most_streams.max(self.peers[node].open.len());
                match self.peers[holder].dead {
                    true => self.tell(node, Event::Failed { request, failure: Failure::Disconnected }),
                    false => self.tell(holder, Event::Asked { by: node, request, indices }),
                }
            }
            Action::Cancel { request, node: id } => {
                let holder = self.by_id[&id];
                self.tell(holder, Event::Cancelled { stream: (node, request) });
                self.at(self.now, node, Event::Failed { request, failure: Failure::Reset });
            }
            Action::AskHave { node: id } => {
                let holder = self.by_id[&id];
                match self.peers[holder].dead {
                    true => self.tell(node, Event::HaveIs { of: holder, bits: None }),
                    false => self.tell(holder, Event::AskedHave { by: node }),
                }
            }
        }
    }

    fn asked(&mut self, holder: usize, by: usize, request: RequestId, indices: Vec<u32>) {
        self.peers[holder].pullers.insert(by);
        if self.peers[holder].uploads.len() >= self.setup.nodes[holder].slots {
            let failure = Failure::Busy { retry_after: self.setup.retry_after };
            self.tell(by, Event::Failed { request, failure });
            let mut others: Vec<usize> = self.peers[holder].pullers.iter().copied().collect();
            others.shuffle(&mut self.rng);
            others.into_iter().take(4).for_each(|of| self.tell(by, Event::Hear { of }));
            return;
        }
        let unheld = indices.iter().any(|index| !self.peers[holder].have.get(*index as usize));
        assert!(!unheld, "seed {}: asked for a chunk that the holder lacks", self.setup.seed);
        let upload = Upload { stream: (by, request), chunks: indices.into(), offset: 0, under_way: 0 };
        self.peers[holder].uploads.push_back(upload);
        self.send(holder);
    }

    /// The next segment of the next stream in turn, if the uplink is free.
    fn send(&mut self, node: usize) {
        let stalled = self.faulty(node, |fault| matches!(fault, Fault::Stalls { .. }));
        if self.peers[node].sending || stalled {
            return;
        }
        if self.faulty(node, |fault| matches!(fault, Fault::Dies { .. })) {
            return self.die(node);
        }
        let ready = |upload: &Upload| upload.under_way < WINDOW && !upload.chunks.is_empty();
        let Some(at) = self.peers[node].uploads.iter().position(ready) else { return };
        let wrong = self.faulty(node, |fault| matches!(fault, Fault::Lies { .. }));
        let Some(mut upload) = self.peers[node].uploads.remove(at) else { return };
        let index = upload.chunks[0];
        let rest = u64::from(self.setup.chunk_lens[index as usize]) - upload.offset;
        // A slow link still makes some progress each second.
        let bytes = rest.min(SEGMENT.min(self.setup.nodes[node].up).max(1.0) as u64);
        upload.offset += bytes;
        upload.under_way += bytes;
        let ends = (bytes == rest).then_some((index, !wrong));
        if ends.is_some() {
            upload.chunks.pop_front();
            upload.offset = 0;
        }
        let (puller, request) = upload.stream;
        let segment = Segment { from: node, request, bytes, ends, last: upload.chunks.is_empty() };
        if !upload.chunks.is_empty() {
            self.peers[node].uploads.push_back(upload);
        }
        self.outcome.sent[node] += bytes;
        self.peers[node].sending = true;
        let sent = self.now + Duration::from_secs_f64(bytes as f64 / self.setup.nodes[node].up);
        self.at(sent, node, Event::Sent);
        self.at(sent + self.setup.latency, puller, Event::Landed { segment });
    }

    fn faulty(&self, node: usize, of_kind: impl Fn(Fault) -> bool) -> bool {
        self.setup.nodes[node].fault.is_some_and(|fault| {
            let (Fault::Dies { after } | Fault::Stalls { after } | Fault::Lies { after }) = fault;
            of_kind(fault) && self.outcome.sent[node] >= after
        })
    }

    fn die(&mut self, node: usize) {
        self.peers[node].dead = true;
        self.peers[node].uploads.clear();
        for puller in 0..self.peers.len() {
            let broken: Vec<RequestId> =
                self.peers[puller].open.iter().filter(|(_, holder)| **holder == node).map(|(id, _)| *id).collect();
            for request in broken {
                self.tell(puller, Event::Failed { request, failure: Failure::Disconnected });
            }
        }
    }

    fn arrived(&mut self, node: usize, segment: Segment) {
        let Segment { from, request, bytes, ends, last } = segment;
        self.outcome.received[node] += bytes;
        let now = self.instant();
        let holder = &mut self.peers[from];
        if let Some(upload) = holder.uploads.iter_mut().find(|upload| upload.stream == (node, request)) {
            upload.under_way -= bytes;
        }
        self.send(from);
        let open = self.peers[node].open.contains_key(&request);
        let peer = &mut self.peers[node];
        let Some(plan) = &mut peer.plan else { return };
        plan.on_bytes(request, bytes, now);
        match ends {
            Some((index, true)) => {
                if plan.on_chunk(request, index, now) == ChunkOutcome::New {
                    peer.have.set(index as usize, true);
                }
            }
            Some((index, false)) => plan.on_bad_chunk(request, index, now),
            None => {}
        }
        if last && open {
            peer.open.remove(&request);
            plan.on_finished(request, now);
        }
        if ends.is_some() && !peer.announced {
            peer.announced = true;
            self.announce(node);
        }
        self.pump(node);
    }

    fn announce(&mut self, node: usize) {
        let mut others: Vec<usize> = (0..self.peers.len()).filter(|other| *other != node).collect();
        others.shuffle(&mut self.rng);
        let heard = self.now + self.setup.discovery;
        for other in others.into_iter().take(self.setup.fan_out) {
            self.at(heard, other, Event::Hear { of: node });
        }
    }
}
