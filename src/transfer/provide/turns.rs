//! Whose turn it is to send. Manifests go first and few at a time: whoever has one hands it on, so the herd that has it
//! doubles with each turn. Side by side the first would be done as late as the last. Chunks wait for them, but not long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Manifests sent at once. One alone would leave the card idle between its last byte and the next one's first.
const AT_ONCE: usize = 2;

/// A manifest that takes longer goes to a slow card or over a shared one: the next one begins beside it.
const TURN: Duration = Duration::from_millis(5);

/// No chunk waits longer for manifests.
const PATIENCE: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub(super) struct Turns {
    last: u64,
    /// Manifests by the number of their turn, and since when they are being sent.
    waiting: BTreeSet<u64>,
    sending: BTreeMap<u64, Instant>,
}

/// A place among those who wait.
#[derive(Debug)]
pub(super) struct Turn {
    /// `None` for chunks.
    manifest: Option<u64>,
    since: Instant,
}

impl Turns {
    pub(super) fn join(&mut self, is_manifest: bool, now: Instant) -> Turn {
        self.last += 1;
        let manifest = is_manifest.then_some(self.last);
        self.waiting.extend(manifest);
        Turn { manifest, since: now }
    }

    /// `None` if the turn has come; else when it may have, if no other one ends before.
    pub(super) fn begin(&mut self, turn: &Turn, now: Instant) -> Option<Instant> {
        let ends = self.sending.values().map(|since| *since + TURN).filter(|end| now < *end);
        let (count, next) = (ends.clone().count(), ends.min());
        let Some(number) = turn.manifest else {
            let patience = turn.since + PATIENCE;
            let waits = count + self.waiting.len() > 0 && now < patience;
            return waits.then(|| next.map_or(patience, |next| next.min(patience)));
        };
        let before = self.waiting.range(..number).count();
        if self.waiting.contains(&number) && before + count >= AT_ONCE {
            return Some(next.unwrap_or(now + TURN));
        }
        if self.waiting.remove(&number) {
            self.sending.insert(number, now);
        }
        None
    }

    pub(super) fn end(&mut self, turn: &Turn) {
        if let Some(number) = turn.manifest {
            self.waiting.remove(&number);
            self.sending.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_sent_two_at_a_time_in_the_order_in_which_they_were_asked_for() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let all: Vec<Turn> = (0..4).map(|_| turns.join(true, now)).collect();
        assert_eq!(turns.begin(&all[0], now), None);
        assert!(turns.begin(&all[2], now).is_some(), "one is before it");
        assert_eq!(turns.begin(&all[1], now), None);
        assert_eq!(turns.begin(&all[1], now), None, "asked again");
        assert_eq!(turns.begin(&all[2], now), Some(now + TURN));
        turns.end(&all[0]);
        assert_eq!(turns.begin(&all[2], now), None);
        assert_eq!(turns.begin(&all[3], now), Some(now + TURN));
    }

    #[test]
    fn a_slow_manifest_keeps_nobody_waiting_and_neither_does_one_whose_asker_went_away() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let all: Vec<Turn> = (0..5).map(|_| turns.join(true, now)).collect();
        assert!(all[..2].iter().all(|turn| turns.begin(turn, now).is_none()));
        let later = now + TURN;
        assert_eq!(turns.begin(&all[2], later), None);
        turns.end(&all[3]);
        assert_eq!(turns.begin(&all[4], later), None);
    }

    #[test]
    fn chunks_wait_for_manifests_but_not_long() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let chunks = turns.join(false, now);
        assert_eq!(turns.begin(&chunks, now), None);
        let manifest = turns.join(true, now);
        assert_eq!(turns.begin(&chunks, now), Some(now + PATIENCE));
        assert_eq!(turns.begin(&manifest, now), None);
        assert_eq!(turns.begin(&chunks, now), Some(now + TURN));
        turns.end(&manifest);
        assert_eq!(turns.begin(&chunks, now), None);
        let again = turns.join(true, now);
        assert_eq!(turns.begin(&again, now), None);
        turns.join(true, now);
        assert_eq!(turns.begin(&chunks, now + PATIENCE), None);
    }
}
