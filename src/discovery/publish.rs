//! When the keys of this node are published in the DHT: soon when they are new or were not taken, and again before others
//! forget them. A few at a time, so that a node with many keys does not drown the others in walks. Pure: time is a
//! parameter.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

/// Walks in progress.
const PARALLEL: usize = 8;

/// A node that lives says so three times before its records end.
pub(super) const AGAIN: Duration = Duration::from_secs(60);

/// After a walk that should have found the nodes to publish to and did not.
const RETRY: Duration = Duration::from_secs(2);

pub(super) type Key = [u8; 32];

#[derive(Debug, Clone, Copy)]
struct Turn {
    due: Instant,
    /// It was published once.
    is_told: bool,
}

#[derive(Debug, Default)]
pub(super) struct Publishing {
    turns: HashMap<Key, Turn>,
    queue: BTreeSet<(Instant, Key)>,
    walking: HashSet<Key>,
    untold: usize,
}

impl Publishing {
    /// Of what is wanted no longer.
    pub(super) fn want(&mut self, wanted: &HashSet<Key>, now: Instant) -> Vec<Key> {
        let gone: Vec<Key> = self.turns.keys().filter(|key| !wanted.contains(*key)).copied().collect();
        for key in &gone {
            if let Some(turn) = self.turns.remove(key) {
                self.queue.remove(&(turn.due, *key));
                self.untold -= usize::from(!turn.is_told);
            }
        }
        for key in wanted {
            if !self.turns.contains_key(key) {
                self.turns.insert(*key, Turn { due: now, is_told: false });
                self.queue.insert((now, *key));
                self.untold += 1;
            }
        }
        gone
    }

    /// There are other nodes now that should keep what was published.
    pub(super) fn again(&mut self, at: Instant) {
        for (key, turn) in &mut self.turns {
            // One whose walk is in progress has no place in the queue.
            if turn.due > at && self.queue.remove(&(turn.due, *key)) {
                turn.due = at;
                self.queue.insert((at, *key));
            }
        }
    }

    /// The key to publish now. [`Self::ended`] has to follow.
    pub(super) fn next(&mut self, now: Instant) -> Option<Key> {
        if self.walking.len() >= PARALLEL || self.queue.first()?.0 > now {
            return None;
        }
        let (_, key) = self.queue.pop_first()?;
        self.walking.insert(key);
        Some(key)
    }

    pub(super) fn ended<R: Rng + ?Sized>(&mut self, key: &Key, is_told: bool, now: Instant, rng: &mut R) {
        if !self.walking.remove(key) {
            return;
        }
        let Some(turn) = self.turns.get_mut(key) else { return };
        // Nodes that started together do not publish together.
        let pause = if is_told { AGAIN } else { RETRY }.mul_f64(rng.random_range(0.75..=1.0));
        if is_told && !turn.is_told {
            turn.is_told = true;
            self.untold -= 1;
        }
        self.queue.remove(&(turn.due, *key));
        turn.due = now + pause;
        self.queue.insert((turn.due, *key));
    }

    /// `None` while nothing is to be done before a walk ends.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.queue.first().map(|(due, _)| *due);
        first.filter(|_| self.walking.len() < PARALLEL)
    }

    /// Keys that were never published.
    pub(super) fn untold(&self) -> usize {
        self.untold
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(seeds: impl IntoIterator<Item = u8>) -> HashSet<Key> {
        seeds.into_iter().map(|seed| [seed; 32]).collect()
    }

    fn next(publishing: &mut Publishing, now: Instant) -> Vec<Key> {
        std::iter::from_fn(|| publishing.next(now)).collect()
    }

    fn end(publishing: &mut Publishing, key: Key, is_told: bool, now: Instant) {
        publishing.ended(&key, is_told, now, &mut rand::rng());
    }

    #[test]
    fn what_is_new_is_published_at_once_a_few_at_a_time_and_all_of_it() {
        let (mut publishing, now) = (Publishing::default(), Instant::now());
        publishing.want(&keys(0..20), now);
        let mut published = HashSet::new();
        while publishing.untold() > 0 {
            let walks = next(&mut publishing, now);
            assert!(!walks.is_empty() && walks.len() <= PARALLEL);
            for key in walks {
                end(&mut publishing, key, true, now);
                published.insert(key);
            }
        }
        assert_eq!(published, keys(0..20));
        assert!(next(&mut publishing, now).is_empty());
    }

    #[test]
    fn what_was_taken_is_published_again_in_a_minute_and_what_was_not_soon() {
        let (mut publishing, now) = (Publishing::default(), Instant::now());
        publishing.want(&keys([1, 2]), now);
        assert_eq!(next(&mut publishing, now).len(), 2);
        end(&mut publishing, [1; 32], true, now);
        end(&mut publishing, [2; 32], false, now);
        assert_eq!(publishing.untold(), 1);
        assert_eq!(next(&mut publishing, now + RETRY), [[2; 32]]);
        assert_eq!(next(&mut publishing, now + AGAIN), [[1; 32]]);
    }

    #[test]
    fn what_is_gone_is_not_published_again_although_its_walk_ends_later() {
        let (mut publishing, now) = (Publishing::default(), Instant::now());
        publishing.want(&keys([1]), now);
        assert_eq!(next(&mut publishing, now), [[1; 32]]);
        assert_eq!(publishing.want(&keys([]), now), [[1; 32]]);
        end(&mut publishing, [1; 32], false, now);
        assert_eq!((publishing.due(), publishing.untold()), (None, 0));
    }

    #[test]
    fn when_there_are_more_nodes_everything_is_published_again() {
        let (mut publishing, now) = (Publishing::default(), Instant::now());
        publishing.want(&keys([1, 2]), now);
        for key in next(&mut publishing, now) {
            end(&mut publishing, key, true, now);
        }
        let at = now + Duration::from_secs(1);
        publishing.again(at);
        assert_eq!((publishing.due(), publishing.untold()), (Some(at), 0));
        assert_eq!(next(&mut publishing, at).len(), 2);
    }

    proptest! {
        #[test]
        fn every_wanted_key_has_its_turn_after_any_history(steps in prop::collection::vec((0u8..6, 0u8..8), 1..200)) {
            let (mut publishing, mut now) = (Publishing::default(), Instant::now());
            let mut walking: Vec<Key> = Vec::new();
            let mut wanted = HashSet::new();
            for (action, n) in steps {
                now += Duration::from_secs(n.into());
                match action {
                    0 => {
                        wanted = keys(0..n);
                        publishing.want(&wanted, now);
                    }
                    1 => publishing.again(now),
                    2 | 3 => if let Some(key) = walking.pop() {
                        end(&mut publishing, key, action == 2, now);
                    }
                    _ => walking.extend(publishing.next(now)),
                }
                prop_assert!(publishing.walking.len() <= PARALLEL);
                prop_assert_eq!(publishing.untold(), publishing.turns.values().filter(|turn| !turn.is_told).count());
                let with_turn: HashSet<Key> =
                    publishing.queue.iter().map(|(_, key)| *key).chain(publishing.walking.iter().copied()).collect();
                prop_assert!(wanted.is_subset(&with_turn));
                prop_assert!(publishing.queue.iter().all(|(due, key)| publishing.turns[key].due == *due));
            }
        }
    }
}
