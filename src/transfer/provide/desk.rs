//! What a holder decides of each request: whether there is a slot, which chunks others were given, whom to name when it is
//! busy. Pure: `now` and randomness are parameters.
//!
//! Slots are kept apart by what is asked for. Manifests have their own, since nothing begins without one, and their turn to
//! be sent comes first. Of the slots for chunks, a quarter is kept for fresh ones: what nobody else was given goes on to many,
//! what others have can be had there. Nobody has more than a fair share of the slots while others are sent away: what many
//! got a little of spreads faster. Whoever takes much longer than others leaves this node's card idle: there is another slot
//! meanwhile, and what it was given is fresh for others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::Rng;

use super::given::Given;
use super::recent::Recent;
use super::turns::{Turn, Turns};
use crate::artifact::Bitmap;
use crate::digest::ArtifactId;
use crate::identity::NodeId;
use crate::protocol::peer::{Busy, Neighbour};

/// Manifests sent or about to be.
const MANIFEST_SLOTS: u32 = 4;

/// How long a slot is taken, until one was given back: four chunks of 1 MiB take about this long at 1 Gbit/s.
const USUAL_TURN: f64 = 0.03;

/// Those who are sent away come back after three quarters of a turn, within these bounds; the puller adds jitter. A slot
/// becomes free before a whole one is over, and others would have it first.
const SOONEST: Duration = Duration::from_millis(2);
const LATEST: Duration = Duration::from_millis(250);

/// A slot that is taken for so many times the usual is with a slow node, or a dead one: it hands on nothing soon.
const LATE: f64 = 2.0;

/// For how long a node counts as slow, and how many can.
const SLOW_FOR: Duration = Duration::from_secs(10);
const MAX_SLOW: usize = 256;

/// Slots are scarce for so long after somebody who has none was sent away.
const SCARCE_FOR: Duration = Duration::from_millis(100);

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Manifest,
    /// Chunks that no other node was given lately.
    Fresh,
    /// Any chunks.
    Any,
}

/// A slot that is taken.
#[derive(Debug)]
pub struct Slot {
    by: NodeId,
    role: Role,
    since: Instant,
    turn: Turn,
}

/// What a peer has of the slots for chunks.
#[derive(Debug)]
struct Held {
    slots: u32,
    /// When it last had none, or gave one back.
    since: Instant,
}

/// A request, as far as it matters who gets a slot.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub artifact: ArtifactId,
    pub by: NodeId,
    /// Where `by` serves, if it does.
    pub reachable: Option<Neighbour>,
    pub what: What<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    Manifest,
    /// Some of the artifact's `count` chunks.
    Chunks {
        count: usize,
        indices: &'a [u32],
        fresh: bool,
    },
}

/// Why a request is not served now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotNow {
    Busy(Busy),
    /// Of the fresh chunks not all are: what other nodes were given lately.
    Given(Bitmap),
}

/// The slots of a holder, and what it remembers of those who came.
#[derive(Debug)]
pub struct Desk {
    slots: u32,
    /// Fewer than `slots` where all of them together would send too slowly for anybody to wait for it.
    at_once: u32,
    manifests: u32,
    fresh: u32,
    any: u32,
    /// Slots for chunks by who has them.
    peers: HashMap<NodeId, Held>,
    /// Of these slots, those of late peers when somebody last asked.
    late: u32,
    /// Who was late with what it had last, and when.
    slow: HashMap<NodeId, Instant>,
    scarce_until: Option<Instant>,
    /// Moving average of how long a slot for chunks is taken, seconds.
    turn: f64,
    /// A slot was given back: until then nobody is late.
    is_measured: bool,
    turns: Turns,
    recent: Recent,
    given: Given,
}

impl Desk {
    /// `slots` requests for chunks are served at once, at least one.
    pub fn new(slots: u32) -> Self {
        Self {
            slots: slots.max(1),
            at_once: u32::MAX,
            manifests: 0,
            fresh: 0,
            any: 0,
            peers: HashMap::new(),
            late: 0,
            slow: HashMap::new(),
            scarce_until: None,
            turn: USUAL_TURN,
            is_measured: false,
            turns: Turns::default(),
            recent: Recent::default(),
            given: Given::default(),
        }
    }

    /// As [`Desk::new`], from now on; who has a slot keeps it.
    pub fn set_slots(&mut self, slots: u32) {
        self.slots = slots.max(1);
    }

    /// No more than so many slots for now, at least one; who has one keeps it.
    pub fn at_most(&mut self, at_once: u32) {
        self.at_once = at_once.max(1);
    }

    /// Chunk requests that are served now, and how many can be.
    pub fn load(&self) -> (u32, u32) {
        (self.fresh + self.any, self.slots())
    }

    fn slots(&self) -> u32 {
        self.slots.saturating_add(self.late.min(self.slots)).min(self.at_once)
    }

    /// Takes a slot, which is to be given back with [`end`](Self::end).
    pub fn ask<R: Rng + ?Sized>(&mut self, ask: &Ask<'_>, now: Instant, rng: &mut R) -> Result<Slot, NotNow> {
        let role = match ask.what {
            What::Manifest => Role::Manifest,
            What::Chunks { fresh: true, .. } => Role::Fresh,
            What::Chunks { fresh: false, .. } => Role::Any,
        };
        let result = match self.serve(ask, role, now) {
            Ok(true) => {
                let turn = self.turns.join(role == Role::Manifest, now);
                Ok(Slot { by: ask.by, role, since: now, turn })
            }
            Ok(false) => {
                let others = self.recent.others(&ask.artifact, ask.by, rng);
                Err(NotNow::Busy(Busy { retry_after: self.retry_after(), others }))
            }
            Err(given) => Err(NotNow::Given(given)),
        };
        if let Some(neighbour) = ask.reachable {
            self.recent.saw(&ask.artifact, neighbour, now);
        }
        result
    }

    /// `None` if what has the slot is to be sent now; else when to ask again, if no slot is given back before.
    pub fn begin(&mut self, slot: &Slot, now: Instant) -> Option<Instant> {
        self.turns.begin(&slot.turn, now)
    }

    pub fn end(&mut self, slot: Slot, now: Instant) {
        self.turns.end(&slot.turn);
        if slot.role != Role::Manifest {
            let took = now.saturating_duration_since(slot.since).as_secs_f64();
            self.measure(slot.by, took, now);
            self.give_back(slot.by, now);
        }
        let taken = self.taken(slot.role);
        *taken = taken.saturating_sub(1);
    }

    /// False without a slot; the error is what others were given.
    fn serve(&mut self, ask: &Ask<'_>, role: Role, now: Instant) -> Result<bool, Bitmap> {
        self.note_late(now);
        if let What::Chunks { count, indices, fresh: true } = ask.what {
            self.given.check(&ask.artifact, count, indices, ask.by, now)?;
        }
        let is_fair = role == Role::Manifest || self.has_share(ask.by, now);
        if !is_fair || !self.has_slot(role) {
            if role != Role::Manifest && !self.peers.contains_key(&ask.by) {
                self.scarce_until = Some(now + SCARCE_FOR);
            }
            return Ok(false);
        }
        if let What::Chunks { count, indices, .. } = ask.what {
            if !self.slow.contains_key(&ask.by) {
                self.given.note(&ask.artifact, count, indices, ask.by, now);
            }
            self.peers.entry(ask.by).or_insert(Held { slots: 0, since: now }).slots += 1;
        }
        *self.taken(role) += 1;
        Ok(true)
    }

    /// Whether one more slot for `peer` leaves a place for another one like those who have some.
    fn has_share(&self, peer: NodeId, now: Instant) -> bool {
        let mine = self.peers.get(&peer).map_or(0, |held| held.slots);
        let is_scarce = self.scarce_until.is_some_and(|until| now < until);
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        mine == 0 || !is_scarce || mine < self.slots() / peers.saturating_add(1)
    }

    /// `by` had a slot for so many seconds. The first ones on a slow card must not all be late, nor all that follow a
    /// chunk that was sent alone.
    fn measure(&mut self, by: NodeId, took: f64, now: Instant) {
        if !std::mem::replace(&mut self.is_measured, true) {
            self.turn = took.max(USUAL_TURN);
            return;
        }
        match took > self.turn * LATE {
            true => self.note_slow(by, now),
            false => drop(self.slow.remove(&by)),
        }
        self.turn += (took - self.turn) / 8.0;
    }

    /// Whoever is late now is slow.
    fn note_late(&mut self, now: Instant) {
        self.slow.retain(|_, at| now.saturating_duration_since(*at) < SLOW_FOR);
        if !self.is_measured {
            return;
        }
        let usual = self.turn * LATE;
        let is_late = |held: &Held| now.saturating_duration_since(held.since).as_secs_f64() > usual;
        let late = self.peers.iter().filter(|(_, held)| is_late(held));
        self.late = late.clone().map(|(_, held)| held.slots).sum();
        let new: Vec<NodeId> = late.map(|(peer, _)| *peer).filter(|peer| !self.slow.contains_key(peer)).collect();
        new.into_iter().for_each(|peer| self.note_slow(peer, now));
    }

    fn note_slow(&mut self, peer: NodeId, now: Instant) {
        if self.slow.len() < MAX_SLOW || self.slow.contains_key(&peer) {
            self.slow.insert(peer, now);
            self.given.forget(&peer);
        }
    }

    fn give_back(&mut self, peer: NodeId, now: Instant) {
        if let Some(held) = self.peers.get_mut(&peer) {
            (held.slots, held.since) = (held.slots - 1, now);
            if held.slots == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    fn retry_after(&self) -> Duration {
        Duration::from_secs_f64((self.turn * 0.75).max(0.0)).clamp(SOONEST, LATEST)
    }

    fn taken(&mut self, role: Role) -> &mut u32 {
        match role {
            Role::Manifest => &mut self.manifests,
            Role::Fresh => &mut self.fresh,
            Role::Any => &mut self.any,
        }
    }

    fn has_slot(&self, role: Role) -> bool {
        match role {
            Role::Manifest => self.manifests < MANIFEST_SLOTS,
            Role::Fresh => self.fresh + self.any < self.slots(),
            Role::Any => self.fresh + self.any < self.slots() && self.any < self.slots() - self.slots() / 4,
        }
    }
}

#[cfg(test)]
mod tests;
