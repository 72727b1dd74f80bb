//! A cap on bytes per second: a bucket that refills with time. Pure; the caller waits as long as it is told.

use std::time::{Duration, Instant};

/// Refills at `rate` bytes a second and holds at most a quarter of a second's worth. Debt is allowed, so that one large
/// chunk passes a small bucket and the next one waits longer.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes a second.
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// `rate` in bytes a second, at least 1.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        // Rates beyond 2^53 bytes a second are no caps.
        let rate = rate.max(1) as f64;
        Self { rate, level: rate / 4.0, at: now }
    }

    /// Takes `bytes` and tells how long to wait before sending them.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.level = (self.level + refill).min(self.rate / 4.0);
        self.at = now;
        self.level -= bytes as f64;
        if self.level >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.level / self.rate) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        assert_eq!(bucket.take(250, start), Duration::ZERO);
        assert_eq!(bucket.take(500, start), Duration::from_millis(500));
        assert_eq!(bucket.take(1, start + Duration::from_secs(60)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_rate_and_burst_pass(takes in prop::collection::vec((1u64..5000, 0u64..2000), 1..50)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(1000, start);
            let (mut now, mut sent) = (start, 0);
            for (bytes, pause_ms) in takes {
                now += bucket.take(bytes, now);
                sent += bytes;
                let allowed = 250.0 + now.duration_since(start).as_secs_f64() * 1000.0;
                prop_assert!(sent as f64 <= allowed + 1.0, "{sent} bytes after {allowed}");
                now += Duration::from_millis(pause_ms);
            }
        }
    }
}
