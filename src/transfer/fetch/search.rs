//! Whom to ask for a manifest, and when. Pure: `now` and randomness are parameters.
//!
//! Sources are asked one after the other, the next one as soon as the one before fails or is slow. Who is busy names others
//! and is asked again later. The first two that bring nothing soon get company: where a fleet restarts some are dead, and
//! nothing begins without a manifest.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::Source;
use crate::identity::NodeId;

/// So long after the first, the second, and each later one another source is asked as well.
const HEDGE_AFTER: [Duration; 3] = [Duration::from_millis(12), Duration::from_millis(6), Duration::from_millis(30)];

/// Sources in all: a holder can name as many as it likes.
const MAX_SOURCES: usize = 512;

/// No source may send us away for longer than this.
const MAX_REST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Search {
    waiting: VecDeque<Source>,
    /// Busy ones, and when to ask them again.
    later: Vec<(Instant, Source)>,
    /// Waiting, asked now, or to be asked again.
    known: BTreeSet<NodeId>,
    asking: usize,
    /// No further one is asked before, unless nobody is asked.
    hedge_at: Instant,
}

impl Search {
    pub fn new(sources: impl IntoIterator<Item = Source>, now: Instant) -> Self {
        let waiting: VecDeque<Source> = sources.into_iter().take(MAX_SOURCES).collect();
        let known = waiting.iter().map(|source| source.node).collect();
        Self { waiting, later: Vec::new(), known, asking: 0, hedge_at: now }
    }

    /// A source that is to be asked now; to be called until it says `None`. The end is told by [`busy`](Self::busy) or
    /// [`failed`](Self::failed).
    pub fn next(&mut self, now: Instant) -> Option<Source> {
        while let Some(due) = self.later.iter().position(|(at, _)| *at <= now) {
            self.waiting.push_front(self.later.swap_remove(due).1);
        }
        if self.asking > 0 && now < self.hedge_at {
            return None;
        }
        let source = self.waiting.pop_front()?;
        self.hedge_at = now + HEDGE_AFTER[self.asking.min(HEDGE_AFTER.len() - 1)];
        self.asking += 1;
        Some(source)
    }

    /// When [`next`](Self::next) has something to say even if nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let hedge = (!self.waiting.is_empty() && self.asking > 0).then_some(self.hedge_at);
        self.later.iter().map(|(at, _)| *at).chain(hedge).min()
    }

    /// `source` has no slot and names others. `jitter` is from 0 to 1: those that were sent away together must not come
    /// back together.
    pub fn busy(
        &mut self,
        source: Source,
        retry_after: Duration,
        others: impl IntoIterator<Item = Source>,
        jitter: f64,
        now: Instant,
    ) {
        self.asking = self.asking.saturating_sub(1);
        self.hedge_at = now;
        self.later.push((now + retry_after.min(MAX_REST).mul_f64(0.75 + jitter / 2.0), source));
        for other in others {
            if self.known.len() < MAX_SOURCES && self.known.insert(other.node) {
                self.waiting.push_back(other);
            }
        }
    }

    /// `source` has no manifest for us. It may be named again, when it may have one.
    pub fn failed(&mut self, source: NodeId, now: Instant) {
        self.asking = self.asking.saturating_sub(1);
        self.hedge_at = now;
        self.known.remove(&source);
    }

    /// Nobody is left.
    pub fn is_over(&self) -> bool {
        self.asking == 0 && self.waiting.is_empty() && self.later.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;
    use crate::transfer::{Holds, Locality};

    fn source(seed: u8) -> Source {
        let node = PrivateKey::from_seed(seed).node_id();
        Source { node, addrs: Vec::new(), locality: Locality::Other, holds: Holds::Nothing }
    }

    fn node(source: Option<Source>) -> Option<NodeId> {
        source.map(|source| source.node)
    }

    #[test]
    fn a_slow_source_gets_company_and_a_failed_one_is_followed_at_once() {
        let now = Instant::now();
        let mut search = Search::new([source(1), source(2), source(3)], now);
        assert_eq!(node(search.next(now)), node(Some(source(1))));
        assert_eq!(node(search.next(now)), None);
        let late = now + HEDGE_AFTER[0];
        assert_eq!(search.next_deadline(), Some(late));
        assert_eq!(node(search.next(late)), node(Some(source(2))));
        search.failed(source(1).node, late);
        assert_eq!(node(search.next(late)), node(Some(source(3))));
        assert_eq!(search.next_deadline(), None);
        search.failed(source(2).node, late);
        assert!(!search.is_over());
        search.failed(source(3).node, late);
        assert!(search.is_over());
    }

    #[test]
    fn the_first_two_get_company_soon_and_further_ones_later() {
        let now = Instant::now();
        let mut search = Search::new((1..=6).map(source), now);
        let mut asked = Vec::new();
        for _ in 0..5 {
            let due = search.next_deadline().unwrap_or(now);
            assert!(search.next(due).is_some());
            asked.push(due - now);
        }
        assert_eq!(asked, [0, 12, 18, 48, 78].map(Duration::from_millis));
    }

    #[test]
    fn who_a_busy_source_names_is_asked_meanwhile_and_it_is_asked_again() {
        let now = Instant::now();
        let mut search = Search::new([source(1)], now);
        let first = search.next(now).unwrap();
        let retry = Duration::from_millis(40);
        search.busy(first, retry, [source(2), source(1), source(2)], 0.5, now);
        assert_eq!(node(search.next(now)), node(Some(source(2))));
        search.failed(source(2).node, now);
        assert_eq!(node(search.next(now)), None, "1 rests, 2 was asked once");
        assert_eq!(search.next_deadline(), Some(now + retry));
        let again = search.next(now + retry).unwrap();
        assert_eq!(again.node, source(1).node);
        search.busy(again, retry, [source(2)], 0.5, now + retry);
        assert_eq!(node(search.next(now + retry)), node(Some(source(2))), "named again");
    }

    #[test]
    fn the_number_of_sources_is_bounded_whatever_a_holder_names() {
        let now = Instant::now();
        let mut search = Search::new([source(0)], now);
        let mut named = 0;
        for round in 0..4u64 {
            let at = now + MAX_REST * round as u32;
            let Some(busy) = search.next(at) else { break };
            let others = (1..=u8::MAX).map(source);
            search.busy(busy, Duration::from_secs(3600), others, 1.0, at);
            named = search.waiting.len() + search.later.len();
        }
        assert!(named <= MAX_SOURCES);
        assert!(search.next_deadline().unwrap() <= now + MAX_REST * 5);
    }
}
