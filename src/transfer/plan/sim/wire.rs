//! What happens to chunks between two nodes: slots, uplinks, faults, downlinks.

use std::time::Duration;

use rand::seq::SliceRandom;

use super::super::{Failure, RequestId};
use super::Fault;
use super::world::{Event, Segment, Upload, World};
use crate::artifact::Bitmap;

const SEGMENT: f64 = 256.0 * 1024.0;

/// Bytes of one stream that may be under way.
const WINDOW: u64 = 16 << 20;

impl World<'_> {
    pub(super) fn asked(&mut self, holder: usize, by: usize, request: RequestId, indices: Vec<u32>, fresh: bool) {
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
        let others = |given: &Option<usize>| given.is_some_and(|node| node != by);
        if fresh && indices.iter().any(|index| others(&self.peers[holder].given[*index as usize])) {
            let mut bits = Bitmap::empty(self.setup.chunk_lens.len());
            let given = self.peers[holder].given.iter().enumerate();
            given.for_each(|(index, given)| bits.set(index, others(given)));
            return self.tell(by, Event::Given { request, bits });
        }
        indices.iter().for_each(|index| self.peers[holder].given[*index as usize] = Some(by));
        let upload = Upload { stream: (by, request), chunks: indices.into(), offset: 0, under_way: 0 };
        self.peers[holder].uploads.push_back(upload);
        self.send(holder);
    }

    /// The next segment of the next stream in turn, if the uplink is free.
    pub(super) fn send(&mut self, node: usize) {
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

    pub(super) fn landed(&mut self, node: usize, segment: Segment) {
        let took = Duration::from_secs_f64(segment.bytes as f64 / self.setup.nodes[node].down);
        let free = self.peers[node].down_free.max(self.now) + took;
        self.peers[node].down_free = free;
        self.at(free, node, Event::Arrived { segment });
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

    pub(super) fn arrived(&mut self, node: usize, segment: Segment) {
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
                plan.on_chunk(request, index, now);
                peer.have.set(index as usize, true);
            }
            Some((_, false)) => plan.on_bad_chunk(request, now),
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
