//! What a holder decides of each request: whether there is a slot, which chunks others were given, whom to name when it is
//! busy. Pure: `now` and randomness are parameters.
//!
//! Slots are kept apart by what is asked for. Manifests have their own, since nothing begins without one, and their turn to
//! be sent comes first. Of the slots for chunks, a quarter is kept for fresh ones: what nobody else was given goes on to many,
//! what others have can be had there. Nobody has more than a fair share of the slots while others are sent away: what many
//! got a little of spreads faster. Whoever takes much longer than others leaves this node's card idle: there is another slot
//! meanwhile.

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

/// How long a slot is taken, until it is known: four chunks of 1 MiB take about this long at 1 Gbit/s.
const USUAL_TURN: f64 = 0.03;

/// Those who are sent away come back after three quarters of a turn, within these bounds; the puller adds jitter. A slot
/// becomes free before a whole one is over, and others would have it first.
const SOONEST: Duration = Duration::from_millis(2);
const LATEST: Duration = Duration::from_millis(250);

/// A slot that is taken for so many times the usual is with a slow node, or a dead one.
const LATE: f64 = 3.0;

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
    scarce_until: Option<Instant>,
    /// Moving average of how long a slot for chunks is taken, seconds.
    turn: f64,
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
            scarce_until: None,
            turn: USUAL_TURN,
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
            self.turn += (took - self.turn) / 8.0;
            self.give_back(slot.by, now);
        }
        let taken = self.taken(slot.role);
        *taken = taken.saturating_sub(1);
    }

    /// False without a slot; the error is what others were given.
    fn serve(&mut self, ask: &Ask<'_>, role: Role, now: Instant) -> Result<bool, Bitmap> {
        if let What::Chunks { count, indices, fresh: true } = ask.what {
            self.given.check(&ask.artifact, count, indices, ask.by, now)?;
        }
        self.late = self.late(now);
        let is_fair = role == Role::Manifest || self.has_share(ask.by, now);
        if !is_fair || !self.has_slot(role) {
            if role != Role::Manifest && !self.peers.contains_key(&ask.by) {
                self.scarce_until = Some(now + SCARCE_FOR);
            }
            return Ok(false);
        }
        if let What::Chunks { count, indices, .. } = ask.what {
            self.given.note(&ask.artifact, count, indices, ask.by, now);
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

    fn late(&self, now: Instant) -> u32 {
        let usual = self.turn * LATE;
        let is_late = |held: &&Held| now.saturating_duration_since(held.since).as_secs_f64() > usual;
        self.peers.values().filter(is_late).map(|held| held.slots).sum()
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
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::identity::PrivateKey;

    fn neighbour(seed: u8) -> Neighbour {
        let endpoint = format!("10.0.0.{seed}:4780").parse().unwrap();
        Neighbour { node: PrivateKey::from_seed(seed).node_id(), endpoint }
    }

    fn ask(desk: &mut Desk, by: u8, what: What<'_>) -> Result<Slot, NotNow> {
        ask_at(desk, by, what, Instant::now())
    }

    fn ask_at(desk: &mut Desk, by: u8, what: What<'_>, now: Instant) -> Result<Slot, NotNow> {
        let by = neighbour(by);
        let ask = Ask { artifact: ArtifactId::of(b"a"), by: by.node, reachable: Some(by), what };
        desk.ask(&ask, now, &mut SmallRng::seed_from_u64(1))
    }

    fn chunks(indices: &[u32], fresh: bool) -> What<'_> {
        What::Chunks { count: 100, indices, fresh }
    }

    fn busy(answer: Result<Slot, NotNow>) -> Busy {
        let Err(NotNow::Busy(busy)) = answer else { panic!("not busy: {answer:?}") };
        busy
    }

    #[test]
    fn chunks_that_others_have_leave_room_for_fresh_ones_and_both_for_manifests() {
        let mut desk = Desk::new(4);
        let any: Vec<Slot> = (0..3).map(|_| ask(&mut desk, 1, chunks(&[0], false)).unwrap()).collect();
        busy(ask(&mut desk, 1, chunks(&[0], false)));
        let fresh = ask(&mut desk, 1, chunks(&[1], true)).unwrap();
        busy(ask(&mut desk, 1, chunks(&[2], true)));
        assert_eq!(desk.load(), (4, 4));
        ask(&mut desk, 2, What::Manifest).unwrap();
        desk.end(fresh, Instant::now());
        busy(ask(&mut desk, 1, chunks(&[0], false)));
        any.into_iter().for_each(|slot| desk.end(slot, Instant::now()));
        assert_eq!(desk.load(), (0, 4));
        ask(&mut desk, 1, chunks(&[0], false)).unwrap();
    }

    #[test]
    fn a_single_slot_serves_everything() {
        let mut desk = Desk::new(1);
        let slot = ask(&mut desk, 1, chunks(&[0], false)).unwrap();
        desk.end(slot, Instant::now());
        ask(&mut desk, 1, chunks(&[0], true)).unwrap();
    }

    #[test]
    fn there_are_fewer_slots_while_uploads_are_slow() {
        let mut desk = Desk::new(4);
        let taken: Vec<Slot> = (0..3).map(|_| ask(&mut desk, 1, chunks(&[0], false)).unwrap()).collect();
        desk.at_most(0);
        assert_eq!(desk.load(), (3, 1));
        busy(ask(&mut desk, 2, chunks(&[1], true)));
        taken.into_iter().for_each(|slot| desk.end(slot, Instant::now()));
        let only = ask(&mut desk, 2, chunks(&[1], true)).unwrap();
        busy(ask(&mut desk, 2, chunks(&[2], true)));
        desk.at_most(u32::MAX);
        ask(&mut desk, 2, chunks(&[2], true)).unwrap();
        desk.end(only, Instant::now());
        assert_eq!(desk.load(), (1, 4));
    }

    #[test]
    fn slots_of_those_who_take_long_are_there_for_others_but_no_more_than_twice() {
        let (mut desk, start) = (Desk::new(2), Instant::now());
        let ask = |desk: &mut Desk, by: u8, now| ask_at(desk, by, chunks(&[u32::from(by)], true), now);
        let first = [1, 2].map(|by| ask(&mut desk, by, start).unwrap());
        busy(ask(&mut desk, 3, start + Duration::from_millis(50)));
        let late = start + Duration::from_millis(100);
        let second = [3, 4].map(|by| ask(&mut desk, by, late).unwrap());
        assert_eq!(desk.load(), (4, 4));
        busy(ask(&mut desk, 5, late));
        let later = late + Duration::from_millis(100);
        busy(ask(&mut desk, 5, later));
        for slot in first.into_iter().chain(second) {
            desk.end(slot, later);
        }
        ask(&mut desk, 5, later).unwrap();
        assert_eq!(desk.load(), (1, 2));
    }

    #[test]
    fn who_is_sent_away_hears_of_others_and_nothing_is_noted_as_given() {
        let mut desk = Desk::new(1);
        let slot = ask(&mut desk, 1, chunks(&[0], true)).unwrap();
        assert_eq!(busy(ask(&mut desk, 2, chunks(&[1], true))).others, [neighbour(1)]);
        desk.end(slot, Instant::now());
        ask(&mut desk, 3, chunks(&[1], true)).expect("2 was not given it");
        let Err(NotNow::Given(given)) = ask(&mut desk, 2, chunks(&[0], true)) else { panic!("1 was given it") };
        assert_eq!(given.ones().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn who_comes_first_keeps_no_more_than_a_share_while_others_are_sent_away() {
        let (mut desk, now) = (Desk::new(8), Instant::now());
        let fresh = |index: u32| [index];
        let mut first: Vec<Slot> =
            (0..8).map(|index| ask_at(&mut desk, 1, chunks(&fresh(index), true), now).unwrap()).collect();
        busy(ask_at(&mut desk, 2, chunks(&fresh(10), true), now));
        first.drain(..3).for_each(|slot| desk.end(slot, now));
        busy(ask_at(&mut desk, 1, chunks(&fresh(11), true), now));
        let second = ask_at(&mut desk, 2, chunks(&fresh(10), true), now).unwrap();
        ask_at(&mut desk, 2, chunks(&fresh(12), true), now).unwrap();
        busy(ask_at(&mut desk, 2, chunks(&fresh(13), true), now));
        desk.end(second, now);
        ask_at(&mut desk, 1, chunks(&fresh(11), true), now + SCARCE_FOR).expect("nobody was sent away lately");
    }

    #[test]
    fn who_is_sent_away_comes_back_before_a_turn_is_over() {
        let (mut desk, start) = (Desk::new(1), Instant::now());
        let ms = Duration::from_millis;
        for turn in 0..60 {
            let slot = ask_at(&mut desk, 1, chunks(&[0], false), start).unwrap();
            desk.end(slot, start + if turn < 30 { ms(10) } else { ms(5_000) });
            let slot = ask_at(&mut desk, 1, chunks(&[0], false), start).unwrap();
            let after = busy(ask_at(&mut desk, 2, chunks(&[0], false), start)).retry_after;
            match turn {
                29 => assert!(after > ms(7) && after < ms(10), "{after:?}"),
                59 => assert_eq!(after, LATEST),
                _ => {}
            }
            desk.end(slot, start + if turn < 30 { ms(10) } else { ms(5_000) });
        }
    }
}
