//! Which adapters have a name in the metrics: those that are used most of late, and never more than so many. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::Alias;

/// The label of all adapters that have no name of their own; so one that is called like this has none.
pub(super) const OTHERS: &str = "other";

/// After this time, a use counts half.
const HALF_LIFE: Duration = Duration::from_secs(10 * 60);

/// For each name, so many adapters are watched.
const WATCHED: usize = 8;

#[derive(Debug)]
pub(super) struct Top {
    limit: usize,
    /// Of the adapters that are watched, how often each was used of late.
    uses: BTreeMap<Alias, f64>,
    named: BTreeSet<Alias>,
    halved: Instant,
}

impl Top {
    pub(super) fn new(limit: usize, now: Instant) -> Self {
        Self { limit, uses: BTreeMap::new(), named: BTreeSet::new(), halved: now }
    }

    /// What `alias` is called in the metrics.
    pub(super) fn name<'a>(&self, alias: &'a Alias) -> &'a str {
        if self.named.contains(alias) { alias.as_str() } else { OTHERS }
    }

    /// One more use. Returns who has lost its name by it: what was counted under that name has ended.
    pub(super) fn used(&mut self, alias: &Alias, now: Instant) -> Option<Alias> {
        if self.limit == 0 || alias.as_str() == OTHERS {
            return None;
        }
        self.fade(now);
        self.watch(alias);
        let uses = self.uses.get_mut(alias)?;
        *uses += 1.0;
        let uses = *uses;
        if self.named.contains(alias) {
            return None;
        }
        let least = match self.named.len() < self.limit {
            true => None,
            false => {
                let (least, theirs) = self.least(|alias| self.named.contains(alias))?;
                // Twice as many: two that are used alike do not take the name from each other again and again.
                if uses <= 2.0 * theirs {
                    return None;
                }
                Some(least)
            }
        };
        least.iter().for_each(|least| _ = self.named.remove(least));
        self.named.insert(alias.clone());
        least
    }

    fn watch(&mut self, alias: &Alias) {
        if self.uses.contains_key(alias) {
            return;
        }
        if self.uses.len() >= self.limit.saturating_mul(WATCHED)
            && let Some((least, _)) = self.least(|alias| !self.named.contains(alias))
        {
            self.uses.remove(&least);
        }
        self.uses.insert(alias.clone(), 0.0);
    }

    fn least(&self, among: impl Fn(&Alias) -> bool) -> Option<(Alias, f64)> {
        let among = self.uses.iter().filter(|(alias, _)| among(alias));
        among.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(alias, uses)| (alias.clone(), *uses))
    }

    fn fade(&mut self, now: Instant) {
        let lives = now.saturating_duration_since(self.halved).as_secs() / HALF_LIFE.as_secs();
        if lives == 0 {
            return;
        }
        self.halved = now;
        let left = 0.5f64.powi(i32::try_from(lives).unwrap_or(i32::MAX));
        self.uses.values_mut().for_each(|uses| *uses *= left);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alias(number: usize) -> Alias {
        format!("a{number}").parse().unwrap()
    }

    #[test]
    fn what_is_used_most_has_a_name_and_those_who_come_once_take_it_from_nobody() {
        let now = Instant::now();
        let mut top = Top::new(2, now);
        for number in 0..3 {
            assert_eq!(top.used(&alias(number), now), None);
        }
        assert_eq!([0, 1, 2].map(|number| top.name(&alias(number)).to_owned()), ["a0", "a1", "other"]);
        for _ in 0..9 {
            top.used(&alias(0), now);
        }
        assert_eq!(top.used(&alias(2), now), None);
        assert_eq!(top.used(&alias(2), now), Some(alias(1)), "three uses against one");
        for number in 10..1_000 {
            assert_eq!(top.used(&alias(number), now), None);
        }
        // What is not used any more gives way in time.
        let later = now + HALF_LIFE * 4;
        assert_eq!(top.used(&alias(7), later), Some(alias(2)));
    }

    #[test]
    fn an_adapter_that_is_called_like_the_others_is_one_of_them() {
        let now = Instant::now();
        let (mut top, other) = (Top::new(2, now), OTHERS.parse().unwrap());
        assert_eq!(top.used(&other, now), None);
        assert_eq!((top.name(&other), top.named.len()), (OTHERS, 0));
        assert_eq!(Top::new(0, now).used(&alias(1), now), None);
    }

    proptest! {
        #[test]
        fn there_are_never_more_names_and_whoever_loses_one_is_told(
            uses in proptest::collection::vec((0usize..50, 0u64..900), 1..500),
            limit in 0usize..5,
        ) {
            let mut now = Instant::now();
            let mut top = Top::new(limit, now);
            let mut named = BTreeSet::new();
            for (number, seconds) in uses {
                now += Duration::from_secs(seconds);
                if let Some(lost) = top.used(&alias(number), now) {
                    prop_assert!(named.remove(lost.as_str()));
                }
                let name = top.name(&alias(number)).to_owned();
                if name != OTHERS {
                    named.insert(name);
                }
                prop_assert!(named.len() <= limit && top.uses.len() <= limit * WATCHED);
                prop_assert!(top.named.iter().all(|alias| named.contains(alias.as_str())));
            }
        }
    }
}
