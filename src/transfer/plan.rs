//! The fetch plan: which chunk to ask of which holder, when to stop waiting, when to give up.
//!
//! Pure: no I/O, `now` comes in, randomness from a seed. The driver calls [`Plan::next`] until it says `None` after every
//! event and at [`Plan::next_deadline`], does what it says, and reports what happened.
//!
//! A complete holder is asked for what nobody has, and says so if it has just given that to somebody else. While it is one of
//! few, what others have or were given is left to them.
//!
//! Order of preference: due bitmaps; the rarest wanted chunks at the better of two random holders with room; chunks in
//! flight at a holder that an idle one would beat clearly. Requests are small beside what is left, so work stays shared.
//!
//! Cost: each event is O(holders + requests in flight); choosing the chunks of one request reads at most one bit a chunk
//! and rarity; only a new bitmap and the loss of a holder cost one step for each chunk that changes.

mod choose;
mod chunks;
mod config;
mod holder;
mod outcome;
mod rate;
mod request;
mod set;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::artifact::Bitmap;
use crate::identity::NodeId;

use chunks::Chunks;
pub use config::{Action, ChunkOutcome, Failure, Gone, Have, Locality, PlanConfig, Progress, RequestId, Stuck};
use holder::{HaveState, Holder};
use rate::Rate;
use request::Request;

/// Most holders that a plan uses at a time. One bit of a word for each, and one is for what was given to others.
pub const MAX_HOLDERS: usize = 32;

/// No neighbour is added to so many live holders: places are left for those whom the directory names, because it knows all.
const MAX_NEIGHBOURS: usize = 16;

/// A partial holder that sent us away so many times in a row may lose its place. Those that begin first know each other and
/// are known to all: they would queue at each other to the end.
const SENT_AWAY: u32 = 2;

/// The fetch of one artifact's missing chunks.
pub struct Plan {
    config: PlanConfig,
    chunks: Chunks,
    largest_chunk: u64,
    /// A holder keeps its place; the place of one that is gone may be given to another.
    holders: Vec<Holder>,
    /// Liars and refusers, remembered after their place was given away.
    banned: BTreeSet<NodeId>,
    requests: BTreeMap<RequestId, Request>,
    /// Cancelled, not yet reported as ended.
    cancelled: BTreeMap<RequestId, NodeId>,
    /// No request is late before this.
    late_at: Option<Instant>,
    /// When a holder last said what it has given to others.
    given_at: Option<Instant>,
    in_flight: u64,
    last_request: u64,
    to_cancel: VecDeque<(RequestId, NodeId)>,
    /// When stealing is worth another look; `None` while it is at any time.
    steal_at: Option<Instant>,
    /// Of all holders together.
    pace: Rate,
    /// See [`PlanConfig::have_age`]; less when the whole fetch is soon over.
    have_age: Duration,
    rng: SmallRng,
}

impl Plan {
    /// `chunk_lens` are encoded bytes, in the order of the manifest; `have` is where an earlier fetch stopped. The seed
    /// must differ between nodes: it spreads their choices.
    pub fn new(config: PlanConfig, chunk_lens: Vec<u32>, have: &Bitmap, seed: u64) -> Self {
        Self {
            have_age: config.have_age,
            config,
            largest_chunk: chunk_lens.iter().copied().max().map_or(0, u64::from),
            chunks: Chunks::new(chunk_lens, have),
            holders: Vec::new(),
            banned: BTreeSet::new(),
            requests: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            late_at: None,
            given_at: None,
            in_flight: 0,
            last_request: 0,
            to_cancel: VecDeque::new(),
            steal_at: None,
            pace: Rate::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// A holder that was gone for a reason that may have passed is back. False if there is no place for it, or if it lied
    /// or refused before.
    pub fn add_holder(&mut self, node: NodeId, locality: Locality, now: Instant) -> bool {
        if self.banned.contains(&node) {
            return false;
        }
        if let Some(slot) = self.slot(node) {
            let holder = &mut self.holders[slot];
            holder.locality = locality;
            if !holder.is_live() {
                holder.revive(now);
            }
            return true;
        }
        self.seat(node, locality, MAX_HOLDERS, now).is_some()
    }

    /// The place of a new holder, beside fewer than `most` live ones or instead of one that always sends us away.
    fn seat(&mut self, node: NodeId, locality: Locality, most: usize, now: Instant) -> Option<usize> {
        let idle = |holder: &Holder| holder.requests == 0;
        let has_room = self.holders.iter().filter(|holder| holder.is_live()).count() < most;
        let holder = Holder::new(node, locality, &self.config, now);
        if has_room && self.holders.len() < MAX_HOLDERS {
            self.holders.push(holder);
            return Some(self.holders.len() - 1);
        }
        let gone = self.holders.iter().position(|holder| has_room && !holder.is_live() && idle(holder));
        let useless = || {
            let is_partial = |holder: &Holder| holder.is_live() && holder.have != HaveState::All;
            let sends_away = |holder: &Holder| holder.sent_away >= SENT_AWAY && is_partial(holder) && idle(holder);
            let all = self.holders.iter().enumerate().filter(|(_, holder)| sends_away(holder));
            all.max_by_key(|(_, holder)| holder.sent_away).map(|(slot, _)| slot)
        };
        let slot = gone.or_else(useless)?;
        self.chunks.set_none(slot);
        self.holders[slot] = holder;
        Some(slot)
    }

    /// Whether it has a place.
    pub fn knows(&self, node: NodeId) -> bool {
        self.slot(node).is_some()
    }

    /// As [`add_holder`](Self::add_holder), of a node that fetches the artifact as we do and may not have begun: it is asked
    /// again when it knows nothing. Where it is, is not known, nor changed. False also if there are holders enough.
    pub fn add_neighbour(&mut self, node: NodeId, now: Instant) -> bool {
        match self.slot(node) {
            Some(slot) if self.holders[slot].is_live() => true,
            Some(slot) => self.add_holder(node, self.holders[slot].locality, now),
            None if self.banned.contains(&node) => false,
            None => {
                let seat = self.seat(node, Locality::Other, MAX_NEIGHBOURS, now);
                seat.is_some_and(|slot| {
                    self.holders[slot].begins = true;
                    true
                })
            }
        }
    }

    /// An answer to [`Action::AskHave`], or news that came by itself. A bitmap of the wrong length is a failure of the
    /// holder.
    pub fn set_have(&mut self, node: NodeId, have: Have, now: Instant) {
        let Some(slot) = self.slot(node).filter(|slot| self.holders[*slot].is_live()) else { return };
        self.steal_at = None;
        match have {
            Have::Some(bits) if bits.len() != self.chunks.count() => self.have_failed(slot, Failure::Reset, now),
            Have::Some(bits) if !bits.is_full() => {
                let grew = self.chunks.set_part(slot, &bits);
                self.holders[slot].have_known(grew, &self.config, now);
            }
            Have::All | Have::Some(_) => {
                self.chunks.set_all(slot);
                self.holders[slot].have = HaveState::All;
            }
        }
    }

    /// Why a request for fresh chunks fails: what its holder has lately given to others. They will hand it on, so we rather
    /// ask for something else. False if that is of the wrong length, or is no reason because it has nothing of the request.
    pub fn set_given(&mut self, request: RequestId, given: &Bitmap, now: Instant) -> bool {
        let open = self.requests.get(&request);
        let is_reason = open.is_none_or(|open| open.left.iter().any(|index| given.get(*index as usize)));
        let fits = is_reason && given.len() == self.chunks.count();
        if fits {
            self.given_at = Some(now);
            self.chunks.add_given(given);
        }
        fits
    }

    /// Only for an [`Action::AskHave`].
    pub fn on_have_failed(&mut self, node: NodeId, failure: Failure, now: Instant) {
        if let Some(slot) = self.slot(node).filter(|slot| self.holders[*slot].is_live()) {
            self.have_failed(slot, failure, now);
        }
    }

    /// The next thing to do; to be called until it says `None`.
    pub fn next(&mut self, now: Instant) -> Option<Action> {
        if self.to_cancel.is_empty() && !self.is_complete() {
            self.expire(now);
        }
        while let Some((request, node)) = self.to_cancel.pop_front() {
            // It may have ended by itself in the meantime.
            if self.cancelled.contains_key(&request) {
                return Some(Action::Cancel { request, node });
            }
        }
        if self.is_complete() {
            return None;
        }
        self.ask_have(now).or_else(|| self.request(now)).or_else(|| self.steal(now))
    }

    /// When [`next`](Self::next) must be called even if nothing happens. `None` when that would change nothing: the plan
    /// is complete, or [`is_stuck`](Self::is_stuck).
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.is_complete() {
            return None;
        }
        let requests = self.requests.values().map(|request| request.deadline(&self.config));
        let holders = (0..self.holders.len()).filter_map(|slot| self.holder_deadline(slot));
        requests.chain(holders).chain(self.steal_at).min()
    }

    /// The answer to a request began to arrive.
    pub fn on_first_byte(&mut self, request: RequestId, now: Instant) {
        if let Some(open) = self.requests.get_mut(&request)
            && let Some(took) = open.begin(now)
        {
            self.holders[open.slot].first_byte(took, now);
        }
    }

    /// Part of a chunk arrived. To be reported every 256 KiB or so: without it slow chunks look like stalled ones, and the
    /// next request is not sent before the last chunk of the one before is here.
    pub fn on_bytes(&mut self, request: RequestId, bytes: u64, now: Instant) {
        self.on_first_byte(request, now);
        if let Some(open) = self.requests.get_mut(&request) {
            let new = open.arrive(bytes, &self.config, now);
            self.holders[open.slot].arrive(new, now);
            self.pace.add(new, now);
        }
    }

    /// A chunk arrived and is verified, no matter whether its request still runs.
    pub fn on_chunk(&mut self, request: RequestId, index: u32, now: Instant) -> ChunkOutcome {
        self.on_first_byte(request, now);
        let len = u64::from(self.chunks.len_of(index));
        if let Some(open) = self.requests.get_mut(&request) {
            let new = open.verify(len, &self.config, now);
            self.holders[open.slot].arrive(new, now);
            self.holders[open.slot].verify(len);
            self.pace.add(new, now);
        }
        let new = self.chunks.finish(index);
        self.unload(request, index);
        if new && self.chunks.copies(index) > 0 {
            self.drop_losers(index, now);
        }
        if new { ChunkOutcome::New } else { ChunkOutcome::Duplicate }
    }

    /// A chunk arrived and its digest is wrong: the holder is out for good.
    pub fn on_bad_chunk(&mut self, request: RequestId, now: Instant) {
        let node = match self.requests.get(&request) {
            Some(open) => Some(self.holders[open.slot].node),
            None => self.cancelled.get(&request).copied(),
        };
        let Some(node) = node else { return };
        self.banned.insert(node);
        if let Some(slot) = self.slot(node) {
            self.lose(slot, Gone::Bad, now);
        }
    }

    /// The request ended early; what did not arrive of it is wanted again.
    pub fn on_failed(&mut self, request: RequestId, failure: Failure, now: Instant) {
        self.cancelled.remove(&request);
        if let Some(closed) = self.close(request, now) {
            self.fail(closed.slot, failure, now);
        }
    }

    /// The request ended by itself, after all its chunks were reported. Chunks that it did not bring count as a reset.
    pub fn on_finished(&mut self, request: RequestId, now: Instant) {
        self.cancelled.remove(&request);
        let Some(closed) = self.close(request, now) else { return };
        match closed.left.is_empty() {
            true => self.holders[closed.slot].succeed(&self.config, now),
            false => self.fail(closed.slot, Failure::Reset, now),
        }
    }

    pub fn is_complete(&self) -> bool {
        self.chunks.is_complete()
    }

    /// Whether the known holders cannot bring what is missing; the caller finds others or gives up.
    pub fn is_stuck(&self, now: Instant) -> Option<Stuck> {
        if self.is_complete() || (!self.requests.is_empty() && self.chunks.wanted() == 0) {
            return None;
        }
        if self.holders.is_empty() {
            return Some(Stuck::NoHolders);
        }
        let mut live = self.holders.iter().filter(|holder| holder.is_live()).peekable();
        if live.peek().is_none() {
            let for_good = |holder: &Holder| matches!(holder.gone, Some(Gone::Bad | Gone::Forbidden));
            return Some(if self.holders.iter().all(for_good) { Stuck::Refused } else { Stuck::Unreachable });
        }
        let hopeless = |holder: &Holder| holder.have != HaveState::All && now >= holder.grew_at + self.config.growth;
        if !live.all(hopeless) {
            return None;
        }
        let chunks = self.chunks.count_held_by_nobody();
        (chunks > 0).then_some(Stuck::NotHeld { chunks })
    }

    /// Why a holder is not asked any more.
    pub fn gone(&self, node: NodeId) -> Option<Gone> {
        self.slot(node).and_then(|slot| self.holders[slot].gone)
    }

    pub fn progress(&self) -> Progress {
        Progress {
            chunks_done: self.chunks.done(),
            chunks: self.chunks.count(),
            bytes_done: self.chunks.bytes_done(),
            bytes: self.chunks.bytes(),
            holders_active: self.holders.iter().filter(|holder| holder.requests > 0).count(),
        }
    }
}
