//! How long to wait after a crash.

use std::collections::VecDeque;
use std::time::Duration;

use rand::{Rng, RngExt};
use tokio::time::Instant;

use super::config::SupervisionConfig;

/// The crashes that still count.
#[derive(Debug, Default)]
pub(super) struct Crashes {
    /// Those within the window of a crash loop, the oldest first; never more than make one.
    recent: VecDeque<Instant>,
    /// Since the engine was last healthy for long.
    streak: u32,
}

impl Crashes {
    /// `ready_since`: when the engine that crashed became ready, if it did.
    pub(super) fn add(&mut self, ready_since: Option<Instant>, now: Instant, config: &SupervisionConfig) {
        if ready_since.is_some_and(|since| now.saturating_duration_since(since) >= config.healthy_after) {
            *self = Self::default();
        }
        self.recent.push_back(now);
        while self.recent.len() > config.crash_loop_crashes.max(1) {
            self.recent.pop_front();
        }
        self.streak = self.streak.saturating_add(1);
    }

    pub(super) fn is_loop(&self, now: Instant, config: &SupervisionConfig) -> bool {
        let full = self.recent.len() >= config.crash_loop_crashes.max(1);
        let oldest = self.recent.front().map(|oldest| now.saturating_duration_since(*oldest));
        full && oldest.is_some_and(|age| age <= config.crash_loop_within)
    }

    /// Up to twice as long with each crash, drawn evenly from zero on, so that engines that crashed together do not start
    /// together. In a crash loop it is the longest wait.
    pub(super) fn wait(&self, now: Instant, config: &SupervisionConfig, rng: &mut impl Rng) -> Duration {
        if self.is_loop(now, config) {
            return config.backoff_most;
        }
        let doublings = self.streak.saturating_sub(1).min(31);
        let longest = config.backoff_first.saturating_mul(1 << doublings).min(config.backoff_most);
        longest.mul_f64(rng.random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> SupervisionConfig {
        SupervisionConfig { crash_loop_crashes: 100, ..Default::default() }
    }

    /// The longest of many waits.
    fn longest(crashes: &Crashes, now: Instant) -> Duration {
        let mut rng = StdRng::seed_from_u64(7);
        (0..1000).map(|_| crashes.wait(now, &config(), &mut rng)).max().unwrap()
    }

    #[test]
    fn waits_are_drawn_from_zero_on_double_and_are_capped() {
        let (mut crashes, now) = (Crashes::default(), Instant::now());
        for doubled in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            crashes.add(None, now, &config());
            let longest = longest(&crashes, now);
            assert!(longest <= SECOND * doubled && longest > SECOND * doubled * 9 / 10, "{doubled}: {longest:?}");
        }
        let mut rng = StdRng::seed_from_u64(7);
        let shortest = (0..1000).map(|_| crashes.wait(now, &config(), &mut rng)).min().unwrap();
        assert!(shortest < SECOND * 3, "{shortest:?}");
        for _ in 0..1000 {
            crashes.add(None, now, &config());
        }
        assert!(longest(&crashes, now) <= config().backoff_most && crashes.recent.len() == 100);
    }

    #[test]
    fn crashes_are_a_loop_only_if_they_are_close_together() {
        let config = SupervisionConfig { crash_loop_crashes: 3, crash_loop_within: SECOND * 60, ..config() };
        let (mut crashes, start) = (Crashes::default(), Instant::now());
        for at in [0, 40, 80] {
            crashes.add(None, start + SECOND * at, &config);
            assert!(!crashes.is_loop(start + SECOND * at, &config), "at {at} s");
        }
        crashes.add(None, start + SECOND * 100, &config);
        assert!(crashes.is_loop(start + SECOND * 100, &config));
        let mut rng = StdRng::seed_from_u64(7);
        assert_eq!(crashes.wait(start + SECOND * 100, &config, &mut rng), config.backoff_most);
    }

    #[test]
    fn a_long_healthy_time_makes_up_for_crashes_and_a_short_one_does_not() {
        let (mut crashes, start) = (Crashes::default(), Instant::now());
        for _ in 0..5 {
            crashes.add(None, start, &config());
        }
        crashes.add(Some(start), start + config().healthy_after - SECOND, &config());
        assert_eq!(crashes.streak, 6);
        crashes.add(Some(start), start + config().healthy_after, &config());
        assert_eq!((crashes.streak, crashes.recent.len()), (1, 1));
    }
}
