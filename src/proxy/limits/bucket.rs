//! A bucket of permissions that refills with time.

use std::time::{Duration, Instant};

/// No answer is a longer wait; a bucket that refills more slowly than that is as good as shut.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct Bucket {
    /// A second; above zero.
    rate: f64,
    /// Held at most; at least 1.
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// Full at first.
    pub(super) fn new(rate: f64, burst: f64, now: Instant) -> Self {
        let burst = burst.max(1.0);
        Self { rate, burst, level: burst, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.level = (self.level + passed.as_secs_f64() * self.rate).min(self.burst);
        // Callers' clocks may be read in another order than they come here.
        self.at = self.at.max(now);
    }

    /// Takes `amount` if there is so much; else takes nothing and tells how long it will be until there is.
    pub(super) fn take(&mut self, amount: f64, now: Instant) -> Duration {
        self.refill(now);
        let missing = amount.min(self.burst) - self.level;
        // What is lost in rounding is not worth a wait.
        if missing <= 1e-9 {
            self.level -= amount;
            return Duration::ZERO;
        }
        self.time_for(missing)
    }

    /// Takes `amount` whether it is there or not.
    pub(super) fn owe(&mut self, amount: f64, now: Instant) {
        self.refill(now);
        self.level -= amount;
    }

    /// How long until nothing is owed.
    pub(super) fn debt(&mut self, now: Instant) -> Duration {
        self.refill(now);
        if self.level >= 0.0 { Duration::ZERO } else { self.time_for(-self.level) }
    }

    fn time_for(&self, amount: f64) -> Duration {
        Duration::try_from_secs_f64(amount / self.rate).unwrap_or(LONGEST).clamp(Duration::from_nanos(1), LONGEST)
    }

    pub(super) fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.level + passed.as_secs_f64() * self.rate >= self.burst
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_a_refusal_says_when_to_come_back() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2.0, 3.0, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(1.0, start), Duration::ZERO);
        }
        assert_eq!(bucket.take(1.0, start), Duration::from_millis(500));
        assert_eq!(bucket.take(1.0, start), Duration::from_millis(500), "a refusal costs nothing");
        assert_eq!(bucket.take(1.0, start + Duration::from_millis(500)), Duration::ZERO);
    }

    #[test]
    fn what_was_used_beyond_the_level_is_made_up_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100.0, 100.0, start);
        bucket.owe(350.0, start);
        assert_eq!(bucket.debt(start), Duration::from_millis(2500));
        assert_eq!(bucket.debt(start + Duration::from_millis(2500)), Duration::ZERO);
        assert!(!bucket.is_full(start + Duration::from_millis(2500)));
        assert!(bucket.is_full(start + Duration::from_millis(3500)));
    }

    #[test]
    fn absurd_debts_and_clocks_that_go_back_do_no_harm() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1e-9, 1.0, start + Duration::from_secs(10));
        bucket.owe(1e300, start);
        assert_eq!(bucket.debt(start), LONGEST);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_rate_and_burst_pass(pauses in prop::collection::vec(0u64..400, 1..200)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(10.0, 5.0, start);
            let (mut now, mut passed) = (start, 0);
            for pause in pauses {
                now += Duration::from_millis(pause);
                let wait = bucket.take(1.0, now);
                if wait.is_zero() {
                    passed += 1;
                } else {
                    // Who waits as told is let in, and not before.
                    let early = now + wait - Duration::from_micros(1);
                    if early > now {
                        prop_assert!(!bucket.take(1.0, early).is_zero());
                        now = early;
                    }
                    now += wait;
                    prop_assert_eq!(bucket.take(1.0, now), Duration::ZERO);
                    passed += 1;
                }
                let allowed = 5.0 + now.duration_since(start).as_secs_f64() * 10.0;
                prop_assert!(f64::from(passed) <= allowed + 1e-6, "{} of {}", passed, allowed);
            }
        }
    }
}
