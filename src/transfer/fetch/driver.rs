//! The loop of one fetch: the plan's actions become requests, and what comes of them goes back to the plan.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::Span;
use tracing::field::Empty;

use super::{FIND_AGAIN, FetchError, Fetched, Fetcher, Find, Holds, Progress, Source};
use crate::artifact::{Family, Manifest};
use crate::identity::NodeId;
use crate::lifecycle::Doubling;
use crate::protocol::peer::Busy;
use crate::store::Held;
use crate::telemetry::trace;
use crate::transfer::metrics::{Direction, Holder, Metrics};
use crate::transfer::plan::{Action, ChunkOutcome, Failure, Have, MAX_HOLDERS, Plan, RequestId};
use crate::transfer::request::{Event, Peer, Shared};

/// Bytes of one family, by who had them.
struct Received {
    peer: Counter,
    partial: Counter,
    local: Counter,
}

impl Received {
    fn of(metrics: &Metrics, family: &Family) -> Self {
        let received = |holder| metrics.bytes(family, Direction::Received, holder);
        Self { peer: received(Holder::Peer), partial: received(Holder::Partial), local: received(Holder::Local) }
    }
}

/// What one holder gives of an artifact, as it is traced.
struct Part {
    span: Span,
    bytes: u64,
}

impl Part {
    fn new(node: NodeId) -> Self {
        Self { span: tracing::debug_span!(target: trace::OPERATIONS, "holder", node = %node, bytes = Empty), bytes: 0 }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.span.record("bytes", self.bytes);
    }
}
/// Who has sent how much is for people; all else is told with every step.
const TELL_SENDERS_EVERY: Duration = Duration::from_millis(200);

/// The state of one fetch.
pub(super) struct Driver<'f> {
    fetcher: &'f Fetcher,
    artifact: Held,
    shared: Arc<Shared>,
    plan: Plan,
    peers: HashMap<NodeId, Peer>,
    parts: HashMap<NodeId, Part>,
    requests: JoinSet<()>,
    handles: HashMap<RequestId, (NodeId, AbortHandle)>,
    /// Holders of all chunks.
    complete: HashSet<NodeId>,
    received: Received,
    /// Bytes that each has sent, and what was last told of them.
    senders: HashMap<NodeId, u64>,
    told: Arc<[(NodeId, u64)]>,
    told_at: Instant,
    find: Find,
    finding: Option<BoxFuture<'static, Vec<Source>>>,
    /// When the directory answered last, and how long that answer serves.
    found_at: Instant,
    find_again: Doubling,
    progress: &'f watch::Sender<Progress>,
    wire_bytes: u64,
    reused_bytes: u64,
}

impl<'f> Driver<'f> {
    pub(super) fn new(
        fetcher: &'f Fetcher,
        artifact: Held,
        shared: Arc<Shared>,
        find: Find,
        progress: &'f watch::Sender<Progress>,
    ) -> Self {
        let now = Instant::now();
        let manifest = artifact.signed().manifest();
        let have = artifact.have();
        let lens: Vec<u32> = manifest.chunks.iter().map(|chunk| chunk.encoded_len).collect();
        let reused_bytes = have.ones().map(|index| u64::from(lens[index])).sum();
        let received = Received::of(&fetcher.metrics, manifest.identity.family());
        received.local.inc_by(reused_bytes);
        let plan = Plan::new(fetcher.config.clone(), lens, &have, rand::random());
        Self {
            fetcher,
            artifact,
            shared,
            plan,
            peers: HashMap::new(),
            parts: HashMap::new(),
            requests: JoinSet::new(),
            handles: HashMap::new(),
            complete: HashSet::new(),
            received,
            senders: HashMap::new(),
            told: Arc::default(),
            told_at: now,
            find,
            finding: None,
            found_at: now,
            find_again: FIND_AGAIN,
            progress,
            wire_bytes: 0,
            reused_bytes,
        }
    }

    fn manifest(&self) -> &Manifest {
        self.artifact.signed().manifest()
    }

    /// As the directory says.
    pub(super) fn add(&mut self, source: Source) {
        let (now, Source { node, addrs, locality, holds }) = (Instant::now(), source);
        let is_known = match holds {
            Holds::Nothing => self.plan.add_neighbour(node, now),
            Holds::Part | Holds::All => self.plan.add_holder(node, locality, now),
        };
        if !is_known {
            return;
        }
        if holds == Holds::All {
            self.complete.insert(node);
            self.plan.set_have(node, Have::All, now);
        }
        let context = self.shared.context;
        self.peers.insert(node, Peer { node, addrs, context });
        self.forget();
    }

    /// Of a node that fetches as we do, by hearsay: of where a node is the directory knows more.
    fn add_neighbour(&mut self, source: Source, now: Instant) {
        let Source { node, addrs, .. } = source;
        if self.plan.add_neighbour(node, now) {
            let context = self.shared.context;
            self.peers.entry(node).or_insert(Peer { node, addrs, context });
            self.forget();
        }
    }

    /// Where those are whose place in the plan went to another is not kept for long.
    fn forget(&mut self) {
        if self.peers.len() > 2 * MAX_HOLDERS {
            self.peers.retain(|node, _| self.plan.knows(*node));
        }
    }

    /// Takes over who has asked this node for what it fetches.
    fn meet(&mut self) {
        let now = Instant::now();
        for met in self.fetcher.wanted.take_met(&self.shared.artifact) {
            if let Some(source) = Source::named(&met, &[met.endpoint.addr()]) {
                self.add_neighbour(source, now);
            }
        }
    }

    pub(super) async fn drive(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        deadline: Instant,
    ) -> Result<Fetched, FetchError> {
        loop {
            self.meet();
            self.act();
            self.tell();
            if self.plan.is_complete() {
                let holders = u32::try_from(self.senders.len()).unwrap_or(u32::MAX);
                return Ok(Fetched { wire_bytes: self.wire_bytes, reused_bytes: self.reused_bytes, holders });
            }
            self.look_around()?;
            let wake = self.wake(deadline);
            tokio::select! {
                Some(event) = events.recv() => {
                    self.apply(event)?;
                    // What is already there is taken in before the plan is asked again.
                    while let Ok(event) = events.try_recv() {
                        self.apply(event)?;
                    }
                }
                sources = found(&mut self.finding) => {
                    self.finding = None;
                    self.found_at = Instant::now();
                    self.find_again.step();
                    sources.into_iter().for_each(|source| self.add(source));
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            while self.requests.try_join_next().is_some() {}
            if Instant::now() >= deadline {
                let progress = self.plan.progress();
                return Err(FetchError::Deadline { bytes: progress.bytes_done, bytes_total: progress.bytes });
            }
        }
    }

    /// When there is something to do even if nothing happens. While the directory is being asked, its answer is waited for.
    fn wake(&self, deadline: Instant) -> Instant {
        let ask_again = self.finding.is_none().then(|| self.found_at + self.find_again.pause());
        self.plan.next_deadline().into_iter().chain(ask_again).fold(deadline, Instant::min)
    }

    /// Does what the plan asks for.
    fn act(&mut self) {
        while let Some(action) = self.plan.next(Instant::now()) {
            match action {
                Action::Request { request, node, indices, fresh } => self.request(request, node, indices, fresh),
                Action::Cancel { request, .. } => {
                    if let Some((_, handle)) = self.handles.remove(&request) {
                        handle.abort();
                    }
                    self.plan.on_failed(request, Failure::Reset, Instant::now());
                }
                Action::AskHave { node, known } => {
                    if let Some(peer) = self.peers.get(&node) {
                        self.requests.spawn(self.shared.clone().have(peer.clone(), known));
                    }
                }
            }
        }
    }

    fn request(&mut self, id: RequestId, node: NodeId, indices: Vec<u32>, fresh: bool) {
        let chunks = &self.manifest().chunks;
        let wanted = indices.iter().filter_map(|index| Some((*index, *chunks.get(*index as usize)?))).collect();
        let Some(peer) = self.peers.get_mut(&node) else {
            self.plan.on_failed(id, Failure::Disconnected, Instant::now());
            return;
        };
        let part = self.parts.entry(node).or_insert_with(|| Part::new(node));
        peer.context = trace::of(&part.span).unwrap_or(peer.context);
        let peer = peer.clone();
        let handle = self.requests.spawn(self.shared.clone().chunks(id, peer, wanted, fresh));
        self.handles.insert(id, (node, handle));
    }

    fn apply(&mut self, event: Event) -> Result<(), FetchError> {
        let now = Instant::now();
        match event {
            Event::FirstByte(id) => self.plan.on_first_byte(id, now),
            Event::Bytes(id, bytes) => self.plan.on_bytes(id, bytes, now),
            Event::Verified(id, index) => self.verified(id, index, now),
            Event::Bad(id, index) => {
                let holder = self.handles.get(&id).map(|(node, _)| node.short());
                tracing::warn!(artifact = %self.shared.artifact.short(), index, ?holder, "chunk does not match its digest: holder dropped");
                self.fetcher.metrics.bad_chunks.inc();
                self.plan.on_bad_chunk(id, now);
            }
            Event::Store(error) => return Err(error.into()),
            Event::Finished(id) => {
                self.handles.remove(&id);
                self.plan.on_finished(id, now);
            }
            Event::Failed(id, failure) => {
                if failure == Failure::NotFound {
                    self.find_again.reset();
                }
                self.handles.remove(&id);
                self.plan.on_failed(id, failure, now);
            }
            Event::Given(id, given) => {
                self.handles.remove(&id);
                let failure = if self.plan.set_given(id, &given, now) { Failure::Given } else { Failure::Forbidden };
                self.plan.on_failed(id, failure, now);
            }
            Event::Busy(id, busy) => self.busy(id, &busy, now),
            Event::Have(node, answer) => {
                let have = if answer.have.is_full() {
                    self.complete.insert(node);
                    Have::All
                } else {
                    self.complete.remove(&node);
                    Have::Some(answer.have)
                };
                self.plan.set_have(node, have, now);
            }
            Event::NoHave(node, failure) => self.plan.on_have_failed(node, failure, now),
        }
        Ok(())
    }

    /// Those that a busy holder names are as good as those that the directory knows, and are known at once.
    fn busy(&mut self, id: RequestId, busy: &Busy, now: Instant) {
        let holder = self.handles.remove(&id).and_then(|(node, _)| self.peers.get(&node));
        let addrs = holder.map(|holder| holder.addrs.clone()).unwrap_or_default();
        if busy.others.is_empty() {
            self.find_again.reset();
        }
        for other in busy.others.iter().filter_map(|other| Source::named(other, &addrs)) {
            self.add_neighbour(other, now);
        }
        self.plan.on_failed(id, Failure::Busy { retry_after: busy.retry_after }, now);
    }

    fn verified(&mut self, id: RequestId, index: u32, now: Instant) {
        let bytes = u64::from(self.manifest().chunks[index as usize].encoded_len);
        self.wire_bytes += bytes;
        let metrics = &self.fetcher.metrics;
        metrics.received_chunks.inc();
        let sender = self.handles.get(&id).map(|(node, _)| *node);
        if let Some(node) = sender {
            *self.senders.entry(node).or_default() += bytes;
            if let Some(part) = self.parts.get_mut(&node) {
                part.bytes += bytes;
            }
        }
        match sender.is_some_and(|node| self.complete.contains(&node)) {
            true => self.received.peer.inc_by(bytes),
            false => self.received.partial.inc_by(bytes),
        };
        if self.plan.on_chunk(id, index, now) == ChunkOutcome::Duplicate {
            metrics.duplicate_chunks.inc();
        }
    }

    /// Asks the directory again now and then, and gives up when it knows nobody new.
    fn look_around(&mut self) -> Result<(), FetchError> {
        let now = Instant::now();
        let stuck = self.plan.is_stuck(now);
        if self.finding.is_none() && (stuck.is_some() || now >= self.found_at + self.find_again.pause()) {
            let fresh = now < self.found_at + self.find_again.pause();
            match stuck {
                Some(_) if fresh && self.handles.is_empty() => {
                    return Err(FetchError::NoHolder(self.shared.artifact));
                }
                _ => self.look_again(),
            }
        }
        Ok(())
    }

    fn look_again(&mut self) {
        if self.finding.is_none() {
            self.finding = Some((self.find)());
        }
    }

    fn tell(&mut self) {
        let (progress, now) = (self.plan.progress(), Instant::now());
        if now >= self.told_at + TELL_SENDERS_EVERY || self.told.len() != self.senders.len() {
            self.told = self.senders.iter().map(|(node, bytes)| (*node, *bytes)).collect();
            self.told_at = now;
        }
        self.progress.send_replace(Progress {
            bytes: progress.bytes_done,
            bytes_total: progress.bytes,
            holders: u32::try_from(progress.holders_active).unwrap_or(u32::MAX),
            from: self.told.clone(),
        });
    }
}

/// The directory's answer; never, while it is not being asked.
async fn found(finding: &mut Option<BoxFuture<'static, Vec<Source>>>) -> Vec<Source> {
    match finding {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
