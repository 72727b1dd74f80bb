//! What the metadata server said last, for the time in which it says nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::digest::IdentityId;
use crate::protocol::metadata::Offer;

/// Identities that are remembered; and for how long, which is as long as the server remembers a node.
const MAX_IDENTITIES: usize = 1_024;
const MAX_AGE: Duration = Duration::from_secs(3_600);

struct Answer {
    at: Instant,
    offers: Vec<Offer>,
}

#[derive(Default)]
pub(super) struct Mirror(Mutex<HashMap<IdentityId, Answer>>);

impl Mirror {
    /// In place of what was said of these identities before.
    pub(super) fn keep(&self, identities: &[IdentityId], offers: &[Offer], now: Instant) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for identity in identities {
            let of_it = offers.iter().filter(|offer| offer.artifact.identity == *identity);
            let answer = Answer { at: now, offers: of_it.cloned().collect() };
            if answer.offers.is_empty() {
                answers.remove(identity);
                continue;
            }
            if answers.len() >= MAX_IDENTITIES && !answers.contains_key(identity) {
                let oldest = answers.iter().min_by_key(|(_, answer)| answer.at).map(|(identity, _)| *identity);
                oldest.map(|oldest| answers.remove(&oldest));
            }
            answers.insert(*identity, answer);
        }
    }

    pub(super) fn recall(&self, identities: &[IdentityId], now: Instant) -> Vec<Offer> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |identity| answers.get(identity).filter(|answer| now.saturating_duration_since(answer.at) <= MAX_AGE);
        identities.iter().filter_map(of).flat_map(|answer| answer.offers.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{identity, offer};
    use super::*;

    #[test]
    fn the_last_answer_is_remembered_for_its_time() {
        let (mirror, now) = (Mirror::default(), Instant::now());
        let both = [identity(1), identity(2)];
        mirror.keep(&both, &[offer(1, &[1]), offer(2, &[2])], now);
        assert_eq!(mirror.recall(&both, now + MAX_AGE), [offer(1, &[1]), offer(2, &[2])]);
        assert_eq!(mirror.recall(&both, now + MAX_AGE + Duration::from_secs(1)), []);
        mirror.keep(&both, &[offer(2, &[3])], now);
        assert_eq!(mirror.recall(&both, now), [offer(2, &[3])]);
    }

    #[test]
    fn the_oldest_answer_makes_room() {
        let (mirror, start) = (Mirror::default(), Instant::now());
        let id = |n: usize| IdentityId::of(&n.to_be_bytes());
        for n in 0..=MAX_IDENTITIES {
            let mut one = offer(1, &[1]);
            std::sync::Arc::make_mut(&mut one.artifact).identity = id(n);
            mirror.keep(&[id(n)], &[one], start + Duration::from_millis(n as u64));
        }
        assert_eq!(mirror.recall(&[id(0)], start).len(), 0);
        assert_eq!(mirror.recall(&[id(1), id(MAX_IDENTITIES)], start).len(), 2);
    }
}
