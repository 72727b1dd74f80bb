//! Whom to ask for what.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::holder::{HaveState, Holder, MIN_BATCH};
use super::request::Request;
use super::{Action, MAX_HOLDERS, Plan};

/// Pace of a holder while nobody's is known, bytes per second.
const USUAL_RATE: f64 = 100e6;

/// A holder this many times slower than the fastest may fill only a quarter of the memory, as may an untried one.
const SLOW: f64 = 8.0;

/// As `PlanConfig::steal_ratio`, when every missing chunk is in flight.
const ENDGAME_RATIO: f64 = 2.0;

/// The delay after which an idle holder looks for something to steal again.
const STEAL_AGAIN: Duration = Duration::from_millis(5);

/// A partial holder that had nothing new for so long is not waited for.
const GROWS: Duration = Duration::from_secs(1);

/// A complete holder that was spared is asked for anything when so small a part of the bytes is left.
const ENDING: u64 = 12;

/// A chunk is in flight at most so many times, those aside of which nothing was heard for a while: they may all be dead.
const MAX_COPIES: usize = 3;
const SILENT: Duration = Duration::from_millis(30);

/// The paces of all live holders, bytes per second.
struct Paces {
    of: [Option<f64>; MAX_HOLDERS],
    fastest: Option<f64>,
    usual: f64,
    sum: f64,
    /// Bytes in flight at slow and untried holders.
    slow_in_flight: u64,
}

impl Paces {
    fn guess(&self, slot: usize) -> f64 {
        self.of[slot].unwrap_or(self.usual).max(1.0)
    }

    fn is_slow(&self, slot: usize) -> bool {
        self.fastest.is_some_and(|fastest| self.of[slot].is_none_or(|rate| rate * SLOW < fastest))
    }
}

impl Plan {
    /// Asks the holder whose bitmap is due.
    pub(super) fn ask_have(&mut self, now: Instant) -> Option<Action> {
        let due = |slot: &usize| {
            let offers = self.chunks.offered(*slot) > 0;
            self.holders[*slot].have_due(offers, self.have_age).is_some_and(|at| at <= now)
        };
        let slot = (0..self.holders.len()).find(due)?;
        let known = matches!(self.holders[slot].have, HaveState::Known(_)).then(|| self.chunks.held(slot)).flatten();
        self.holders[slot].have = HaveState::Asked(now);
        Some(Action::AskHave { node: self.holders[slot].node, known })
    }

    /// Asks the better of two random holders for its rarest wanted chunks.
    pub(super) fn request(&mut self, now: Instant) -> Option<Action> {
        if self.chunks.wanted() == 0 || !self.has_memory(self.largest_chunk) {
            return None;
        }
        let paces = self.paces(now);
        let sparing = self.spares_complete(&paces, now);
        let mut open = [0; MAX_HOLDERS];
        let mut count = 0;
        for slot in 0..self.holders.len() {
            if self.offers(slot, sparing) && self.admits(slot, &paces, now) {
                open[count] = slot;
                count += 1;
            }
        }
        let slot = match &open[..count] {
            [] => return None,
            [only] => *only,
            open => self.better_of_two(open, &paces),
        };
        let batch = self.batch(slot, &paces);
        let start = self.start();
        let fresh = self.holders[slot].have == HaveState::All && self.chunks.wanted_of_nobody() > 0;
        let indices = match fresh {
            true => self.chunks.take_unshared(slot, start, self.config.max_request_chunks, batch),
            false => self.chunks.take(slot, start, self.config.max_request_chunks, batch),
        };
        Some(self.open(slot, indices, fresh, now))
    }

    /// Where to begin among chunks that are equally rare. In the first half at any of them: small ones are handed on sooner,
    /// which gets a herd going. Then at any byte, or the large ones, which rarely fit behind others, would remain to the end.
    fn start(&mut self) -> u32 {
        let bytes = self.chunks.bytes();
        match self.chunks.bytes_done() < bytes / 2 {
            true => self.rng.random_range(0..self.chunks.count() as u32),
            false => self.chunks.at(self.rng.random_range(0..bytes.max(1))),
        }
    }

    /// Whether complete holders are fewer than the partial ones that grow, and not faster than those together. Then they are
    /// asked only for what nobody has and nobody was given, so that many who begin together hand a new artifact on instead
    /// of queueing where it is.
    fn spares_complete(&self, paces: &Paces, now: Instant) -> bool {
        let (mut complete, mut partial) = ((0, 0.0), (0, 0.0));
        for (slot, holder) in self.holders.iter().enumerate().filter(|(_, holder)| holder.is_live()) {
            let side = match holder.have {
                HaveState::All => &mut complete,
                _ if holder.is_resting(now) => continue,
                _ if self.chunks.offered(slot) > 0 || now < holder.grew_at + GROWS => &mut partial,
                _ => continue,
            };
            *side = (side.0 + 1, side.1 + paces.guess(slot));
        }
        partial.0 > complete.0 && partial.1 >= complete.1
    }

    /// All was given to somebody, and little is left: the rest may be with the dead and the slow, and complete holders have
    /// nothing else to do.
    fn is_ending(&self) -> bool {
        self.chunks.wanted_of_nobody() == 0 && self.chunks.bytes_wanted() < self.chunks.bytes() / ENDING
    }

    fn offers(&self, slot: usize, sparing: bool) -> bool {
        let all = !sparing || self.holders[slot].have != HaveState::All || self.requests.is_empty() || self.is_ending();
        if all { self.chunks.offered(slot) > 0 } else { self.chunks.wanted_of_nobody() > 0 }
    }

    fn better_of_two(&mut self, open: &[usize], paces: &Paces) -> usize {
        let first = self.rng.random_range(0..open.len());
        let second = (first + self.rng.random_range(1..open.len())) % open.len();
        let score = |slot: usize| self.holders[slot].score(self.batch(slot, paces), paces.guess(slot));
        let (first, second) = (open[first], open[second]);
        if score(first) <= score(second) { first } else { second }
    }

    fn paces(&self, now: Instant) -> Paces {
        let live = || self.holders.iter().enumerate().filter(|(_, holder)| holder.is_live());
        let mut of = [None; MAX_HOLDERS];
        live().for_each(|(slot, holder)| of[slot] = holder.rate.at(now));
        let known = || of.iter().flatten();
        let usual = match known().count() {
            0 => USUAL_RATE,
            count => known().sum::<f64>() / count as f64,
        };
        let fastest = known().copied().reduce(f64::max);
        let mut paces = Paces { of, fastest, usual, sum: 0.0, slow_in_flight: 0 };
        for (slot, holder) in live() {
            paces.sum += paces.guess(slot);
            paces.slow_in_flight += if paces.is_slow(slot) { holder.in_flight } else { 0 };
        }
        paces
    }

    /// Bytes of the next request to the holder: what its pace allows, but no more than a sixth of its part of the memory
    /// and half of its part of what is wanted.
    fn batch(&self, slot: usize, paces: &Paces) -> u64 {
        let part = paces.guess(slot) / paces.sum.max(1.0);
        let memory = self.config.max_in_flight_bytes as f64 * part / 6.0;
        let wanted = self.chunks.bytes_wanted() as f64 * part / 2.0;
        let most = (memory.min(wanted) as u64).max(MIN_BATCH);
        Holder::batch(&self.config, paces.of[slot]).min(most)
    }

    fn has_memory(&self, bytes: u64) -> bool {
        self.in_flight == 0 || self.in_flight + bytes <= self.config.max_in_flight_bytes
    }

    /// Whether the holder may be asked for one more batch now.
    fn admits(&self, slot: usize, paces: &Paces, now: Instant) -> bool {
        let holder = &self.holders[slot];
        if !holder.is_live() || holder.is_resting(now) {
            return false;
        }
        let batch = self.batch(slot, paces);
        let need = batch.max(self.largest_chunk);
        let share = self.config.max_in_flight_bytes / 4;
        let hogs = paces.is_slow(slot) && paces.slow_in_flight > 0 && paces.slow_in_flight + need > share;
        !hogs && self.has_memory(need) && holder.has_room(batch, &self.config, paces.of[slot])
    }

    /// Duplicates the last chunks of a request at a holder that is idle and expected to bring them much earlier. The slow
    /// one goes on from the front, they meet, and the loser is stopped.
    pub(super) fn steal(&mut self, now: Instant) -> Option<Action> {
        if self.steal_at.is_some_and(|at| now < at) {
            return None;
        }
        self.steal_at = None;
        if self.requests.is_empty() || !self.has_memory(self.largest_chunk) {
            return None;
        }
        let paces = self.paces(now);
        let ratio = if self.chunks.wanted() == 0 { ENDGAME_RATIO } else { self.config.steal_ratio };
        let mut best: Option<(f64, usize, Vec<u32>)> = None;
        let mut idle = false;
        for slot in 0..self.holders.len() {
            if self.chunks.offered(slot) > 0 || !self.admits(slot, &paces, now) {
                continue;
            }
            idle = true;
            if let Some((gain, indices)) = self.best_victim(slot, &paces, now)
                && gain > best.as_ref().map_or(ratio, |(gain, ..)| *gain)
            {
                best = Some((gain, slot, indices));
            }
        }
        let Some((_, slot, indices)) = best else {
            self.steal_at = idle.then_some(now + STEAL_AGAIN);
            return None;
        };
        indices.iter().for_each(|index| self.chunks.duplicate(*index));
        Some(self.open(slot, indices, false, now))
    }

    /// The chunks that the idle holder `slot` would gain most on, and how many times faster it would be.
    fn best_victim(&self, slot: usize, paces: &Paces, now: Instant) -> Option<(f64, Vec<u32>)> {
        let mut best: Option<(f64, &Request, u32)> = None;
        for request in self.requests.values().filter(|request| request.slot != slot) {
            let theirs = self.eta(request, paces, now);
            let Some(index) = self.victim(request, slot, now) else { continue };
            let bytes = self.holders[slot].in_flight + u64::from(self.chunks.len_of(index));
            let ours = self.holders[slot].latency() + bytes as f64 / paces.guess(slot);
            let theirs = match self.chunks.copies(index) {
                1 => theirs,
                _ => self.carriers(index).map(|carrier| self.eta(carrier, paces, now)).fold(theirs, f64::min),
            };
            if best.is_none_or(|(gain, ..)| theirs / ours > gain) {
                best = Some((theirs / ours, request, index));
            }
        }
        let (gain, request, last) = best?;
        let mut indices = vec![last];
        let mut bytes = u64::from(self.chunks.len_of(last));
        let part = paces.guess(slot) / (paces.guess(slot) + paces.guess(request.slot));
        let most = ((request.bytes_left as f64 * part) as u64).min(self.batch(slot, paces));
        for index in request.left.iter().rev().copied().filter(|index| *index != last) {
            bytes += u64::from(self.chunks.len_of(index));
            if bytes > most || indices.len() == self.config.max_request_chunks {
                break;
            }
            if self.chunks.copies(index) == 1 && self.chunks.holds(slot, index) {
                indices.push(index);
            }
        }
        Some((gain, indices))
    }

    /// The chunk of the request that comes last and that `slot` could bring, better one that is in flight only once.
    fn victim(&self, request: &Request, slot: usize, now: Instant) -> Option<u32> {
        let possible = || request.left.iter().rev().copied().filter(|index| self.chunks.holds(slot, *index));
        let once = possible().find(|index| self.chunks.copies(*index) == 1);
        once.or_else(|| possible().next()).filter(|index| {
            if self.chunks.copies(*index) == 1 {
                return true;
            }
            let heard = |carrier: &&Request| self.holders[carrier.slot].silent(carrier.sent_at, now) < SILENT;
            let is_new = self.carriers(*index).all(|carrier| carrier.slot != slot);
            is_new && self.carriers(*index).filter(heard).count() < MAX_COPIES
        })
    }

    fn carriers(&self, index: u32) -> impl Iterator<Item = &Request> {
        self.requests.values().filter(move |request| request.left.contains(&index))
    }

    /// Seconds until the last chunk of the request is expected. A holder that is silent is expected to be so for as long
    /// again, whatever its pace was: it may be dead.
    fn eta(&self, request: &Request, paces: &Paces, now: Instant) -> f64 {
        let holder = &self.holders[request.slot];
        let silent = holder.silent(request.sent_at, now).as_secs_f64();
        (holder.in_flight as f64 / paces.guess(request.slot)).max(silent)
    }
}
