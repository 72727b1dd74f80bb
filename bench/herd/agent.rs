//! The fetching side of a node: what `agent::fetching` and the driver of a fetch do around search and plan.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use warmd::agent::TELL_AGAIN;
use warmd::identity::NodeId;
use warmd::lifecycle::Doubling;
use warmd::protocol::metadata::{Closeness, HolderInfo};
use warmd::protocol::peer::Busy;
use warmd::transfer::plan::{Action, Failure, Have, Plan, RequestId};
use warmd::transfer::{FIND_AGAIN, Holds, Locality, PlanConfig, Search, Source};

use super::Fate;
use super::network::Cargo;
use super::world::{Answer, Event, World};

/// How long an announcement of changes waits for the one before, as `metadata::AnnounceConfig` has it.
const SPACING: Duration = Duration::from_millis(50);

/// What a node that fetches remembers.
pub(super) struct Puller {
    started: Duration,
    /// Before there is a manifest.
    search: Option<Search>,
    asked_manifest: Vec<Source>,
    /// Holders that the directory named before there was a plan.
    sources: Vec<Source>,
    plan: Option<Plan>,
    open: BTreeMap<RequestId, usize>,
    wake: Option<Duration>,
    finding: bool,
    found_at: Duration,
    find_again: Doubling,
    tell_again: Doubling,
    told_at: Duration,
    sequence: u64,
    told: u32,
}

impl Default for Puller {
    fn default() -> Self {
        Self {
            started: Duration::ZERO,
            search: None,
            asked_manifest: Vec::new(),
            sources: Vec::new(),
            plan: None,
            open: BTreeMap::new(),
            wake: None,
            finding: false,
            found_at: Duration::ZERO,
            find_again: FIND_AGAIN,
            tell_again: TELL_AGAIN,
            told_at: Duration::ZERO,
            // It has announced when it started.
            sequence: 1,
            told: 0,
        }
    }
}

impl Puller {
    pub(super) fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    pub(super) fn meet(&mut self, node: NodeId, now: Instant) {
        if let Some(plan) = self.plan.as_mut().filter(|plan| !plan.is_complete()) {
            plan.add_neighbour(node, now);
        }
    }
}

impl World<'_> {
    pub(super) fn begin(&mut self, node: usize) {
        self.nodes[node].puller.started = self.now;
        self.find(node);
    }

    fn find(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].puller.finding, true) {
            self.call_directory(node, Event::Lookup);
        }
    }

    pub(super) fn found(&mut self, node: usize, holders: &[HolderInfo]) {
        let chunks = self.setup.chunk_lens.len() as u32;
        let here = self.nodes[node].place.clone();
        let source = |holder: &HolderInfo| Source {
            node: holder.node,
            addrs: Vec::new(),
            locality: match here.closeness(&holder.locality) {
                Closeness::SameRack => Locality::SameRack,
                Closeness::SameZone => Locality::SameZone,
                Closeness::SameRegion => Locality::SameRegion,
                Closeness::Other => Locality::Other,
            },
            holds: Holds::of(holder.chunks_held, chunks),
        };
        let sources: Vec<Source> = holders.iter().map(source).collect();
        let now = self.instant();
        let puller = &mut self.nodes[node].puller;
        (puller.finding, puller.found_at) = (false, self.now);
        if puller.plan.is_some() {
            puller.find_again.step();
            sources.into_iter().for_each(|source| self.add(node, &source));
            return self.pump(node);
        }
        puller.sources.clone_from(&sources);
        puller.search = Some(Search::new(sources, now));
        self.ask_manifest(node);
    }

    fn add(&mut self, node: usize, source: &Source) {
        let now = self.instant();
        let Some(plan) = &mut self.nodes[node].puller.plan else { return };
        if source.holds == Holds::Nothing {
            plan.add_neighbour(source.node, now);
            return;
        }
        if plan.add_holder(source.node, source.locality, now) && source.holds == Holds::All {
            plan.set_have(source.node, Have::All, now);
        }
    }

    fn ask_manifest(&mut self, node: usize) {
        let now = self.instant();
        while let Some(source) = self.nodes[node].puller.search.as_mut().and_then(|search| search.next(now)) {
            let holder = self.by_id[&source.node];
            self.nodes[node].puller.asked_manifest.push(source);
            self.send(node, holder, Event::AskedManifest { by: node });
        }
        let deadline = self.nodes[node].puller.search.as_ref().and_then(Search::next_deadline);
        if let Some(deadline) = deadline {
            self.wake_at(node, self.since_epoch(deadline));
        }
    }

    fn wake_at(&mut self, node: usize, at: Duration) {
        let at = at.max(self.now + Duration::from_micros(1));
        let wake = &mut self.nodes[node].puller.wake;
        if wake.is_none_or(|planned| at < planned) {
            *wake = Some(at);
            self.at(at, node, Event::Wake);
        }
    }

    pub(super) fn wake(&mut self, node: usize) {
        let puller = &mut self.nodes[node].puller;
        // An earlier one came meanwhile.
        if puller.wake.is_none_or(|planned| planned > self.now) {
            return;
        }
        puller.wake = None;
        match puller.plan {
            Some(_) => self.pump(node),
            None => self.ask_manifest(node),
        }
    }

    pub(super) fn answered(&mut self, node: usize, from: usize, answer: Answer) {
        let (now, id) = (self.instant(), self.nodes[from].id);
        match answer {
            Answer::Manifest => return self.begin_plan(node),
            Answer::NoManifest | Answer::ManifestBusy(_) => return self.no_manifest(node, id, answer),
            Answer::Busy(request, busy) => return self.busy(node, request, &busy),
            _ => {}
        }
        let puller = &mut self.nodes[node].puller;
        let Some(plan) = &mut puller.plan else { return };
        match answer {
            Answer::Have(Some(have)) if have.is_full() => plan.set_have(id, Have::All, now),
            Answer::Have(Some(have)) => plan.set_have(id, Have::Some(have), now),
            Answer::Have(None) => plan.on_have_failed(id, Failure::NotFound, now),
            Answer::First(request) => plan.on_first_byte(request, now),
            Answer::NotFound(request) if puller.open.remove(&request).is_some() => {
                puller.find_again.reset();
                plan.on_failed(request, Failure::NotFound, now);
            }
            Answer::Given(request, given) if puller.open.remove(&request).is_some() => {
                let failure = if plan.set_given(request, &given, now) { Failure::Given } else { Failure::Forbidden };
                plan.on_failed(request, failure, now);
            }
            _ => {}
        }
        self.pump(node);
    }

    fn no_manifest(&mut self, node: usize, from: NodeId, answer: Answer) {
        let (now, jitter) = (self.instant(), self.rng.random_range(0.0..1.0));
        let puller = &mut self.nodes[node].puller;
        let Some(search) = &mut puller.search else { return };
        let Some(at) = puller.asked_manifest.iter().position(|source| source.node == from) else { return };
        let source = puller.asked_manifest.swap_remove(at);
        match answer {
            Answer::ManifestBusy(busy) => {
                search.busy(source, busy.retry_after, busy.others.iter().map(|other| named(other.node)), jitter, now);
            }
            _ => search.failed(from, now),
        }
        self.ask_manifest(node);
    }

    fn busy(&mut self, node: usize, request: RequestId, busy: &Busy) {
        let now = self.instant();
        let puller = &mut self.nodes[node].puller;
        let Some(plan) = &mut puller.plan else { return };
        if puller.open.remove(&request).is_none() {
            return;
        }
        if busy.others.is_empty() {
            puller.find_again.reset();
        }
        for other in &busy.others {
            plan.add_neighbour(other.node, now);
        }
        plan.on_failed(request, Failure::Busy { retry_after: busy.retry_after }, now);
        self.pump(node);
    }

    fn begin_plan(&mut self, node: usize) {
        let seed = self.rng.random();
        let have = self.nodes[node].have.clone();
        let puller = &mut self.nodes[node].puller;
        if puller.plan.is_some() {
            return;
        }
        puller.search = None;
        puller.found_at = self.now;
        self.outcome.marks[node - 1].manifest = Some(self.now.saturating_sub(puller.started));
        puller.plan = Some(Plan::new(PlanConfig::default(), self.setup.chunk_lens.clone(), &have, seed));
        let sources = std::mem::take(&mut puller.sources);
        self.nodes[node].has_manifest = true;
        self.manifest_came(node);
        sources.iter().for_each(|source| self.add(node, source));
        self.at(self.now, node, Event::Tell);
        self.pump(node);
    }

    /// Does what the plan says, and wakes it when it wants to.
    fn pump(&mut self, node: usize) {
        let now = self.instant();
        while let Some(action) = self.nodes[node].puller.plan.as_mut().and_then(|plan| plan.next(now)) {
            self.act(node, action);
        }
        let puller = &mut self.nodes[node].puller;
        let Some(plan) = &puller.plan else { return };
        if plan.is_complete() {
            let took = self.now.saturating_sub(puller.started);
            let mine = &mut self.outcome.pullers[node - 1].1;
            if mine.is_none() {
                *mine = Some(took);
                self.waiting -= usize::from(self.nodes[node].fate != Fate::Dies);
                self.at(self.now, node, Event::Tell);
            }
            return;
        }
        let look_at = puller.found_at + puller.find_again.pause();
        let finds = !puller.finding && (plan.is_stuck(now).is_some() || self.now >= look_at);
        let deadline = plan.next_deadline();
        if finds {
            self.find(node);
        }
        let wake = deadline.map(|at| self.since_epoch(at)).into_iter().chain((!finds).then_some(look_at)).min();
        if let Some(wake) = wake {
            self.wake_at(node, wake);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Request { request, node: id, indices, fresh } => {
                let holder = self.by_id[&id];
                self.nodes[node].puller.open.insert(request, holder);
                self.send(node, holder, Event::Asked { by: node, request, indices, fresh });
            }
            Action::Cancel { request, node: id } => {
                let (now, holder) = (self.instant(), self.by_id[&id]);
                let puller = &mut self.nodes[node].puller;
                puller.open.remove(&request);
                if let Some(plan) = &mut puller.plan {
                    plan.on_failed(request, Failure::Reset, now);
                }
                self.send(node, holder, Event::Cancelled((node, Cargo::Chunks(request.0))));
            }
            Action::AskHave { node: id, known } => {
                let holder = self.by_id[&id];
                self.send(node, holder, Event::AskedHave { by: node, known });
            }
        }
    }

    pub(super) fn bytes(&mut self, node: usize, request: RequestId, bytes: u64) {
        let now = self.instant();
        if let Some(plan) = &mut self.nodes[node].puller.plan {
            plan.on_bytes(request, bytes, now);
        }
        self.pump(node);
    }

    pub(super) fn chunk(&mut self, node: usize, request: RequestId, index: u32, last: bool) {
        let now = self.instant();
        let puller = &mut self.nodes[node].puller;
        let took = self.now.saturating_sub(puller.started);
        let Some(plan) = &mut puller.plan else { return };
        plan.on_chunk(request, index, now);
        if last && puller.open.remove(&request).is_some() {
            plan.on_finished(request, now);
        }
        self.nodes[node].have.set(index as usize, true);
        let have = self.nodes[node].have.count();
        let marks = &mut self.outcome.marks[node - 1];
        marks.first_chunk.get_or_insert(took);
        if 2 * have >= self.setup.chunk_lens.len() {
            marks.half.get_or_insert(took);
        }
        self.tell_listeners(node);
        self.pump(node);
    }

    /// The connection to `holder` is gone, and with it all requests that are open there.
    pub(super) fn lost(&mut self, node: usize, holder: usize) {
        let (now, id) = (self.instant(), self.nodes[holder].id);
        let puller = &mut self.nodes[node].puller;
        if let (Some(at), Some(search)) =
            (puller.asked_manifest.iter().position(|source| source.node == id), &mut puller.search)
        {
            puller.asked_manifest.swap_remove(at);
            search.failed(id, now);
            return self.ask_manifest(node);
        }
        let Some(plan) = &mut puller.plan else { return };
        let broken: Vec<RequestId> =
            puller.open.iter().filter(|(_, at)| **at == holder).map(|(request, _)| *request).collect();
        for request in broken {
            puller.open.remove(&request);
            plan.on_failed(request, Failure::Disconnected, now);
        }
        self.pump(node);
    }

    /// Announces what is here, and again while it grows.
    pub(super) fn tell(&mut self, node: usize) {
        if !self.setup.swarming {
            return;
        }
        let chunks = self.nodes[node].have.count() as u32;
        let complete = self.nodes[node].have.is_full();
        let puller = &mut self.nodes[node].puller;
        let pause = puller.tell_again.step();
        if chunks > puller.told && self.now < puller.told_at + SPACING && puller.told > 0 {
            let at = puller.told_at + SPACING;
            return self.at(at, node, Event::Tell);
        }
        if chunks > puller.told {
            puller.sequence += 1;
            (puller.told, puller.told_at) = (chunks, self.now);
            let sequence = puller.sequence;
            self.call_directory(node, Event::Announce { sequence, chunks });
        }
        if !complete {
            self.at(self.now + pause, node, Event::Tell);
        }
    }
}

/// Whom a busy holder names; nothing is known of it but that.
fn named(node: NodeId) -> Source {
    Source { node, addrs: Vec::new(), locality: Locality::Other, holds: Holds::Nothing }
}
