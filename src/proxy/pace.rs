//! How fast the engine answers now: a window of times between tokens, counted without a lock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets for each doubling: neighbours differ by 9 %.
const FINE: f64 = 8.0;
const BUCKETS: usize = 26 * FINE as usize;

/// Fewer say nothing.
const ENOUGH: u64 = 32;

/// From a microsecond to a minute.
#[derive(Debug)]
pub(super) struct Pace {
    counts: [AtomicU32; BUCKETS],
}

impl Default for Pace {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU32::new(0)) }
    }
}

impl Pace {
    pub(super) fn count(&self, between: Duration) {
        let bucket = (between.as_secs_f64() * 1e6).max(1.0).log2() * FINE;
        self.counts[(bucket as usize).min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// The median since the last call, if there was enough to tell.
    pub(super) fn take(&self) -> Option<Duration> {
        let counts: Vec<u64> = self.counts.iter().map(|count| u64::from(count.swap(0, Ordering::Relaxed))).collect();
        let all: u64 = counts.iter().sum();
        if all < ENOUGH {
            return None;
        }
        let mut below = 0;
        let median = counts.iter().position(|count| {
            below += count;
            below * 2 >= all
        })?;
        Some(Duration::from_secs_f64(((median as f64 + 0.5) / FINE).exp2() / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_told_once_and_to_a_tenth() {
        let pace = Pace::default();
        for ms in 1..=99 {
            pace.count(Duration::from_millis(ms));
        }
        let median = pace.take().unwrap().as_secs_f64();
        assert!((median / 0.050 - 1.0).abs() < 0.1, "{median}");
        assert_eq!(pace.take(), None);
    }

    #[test]
    fn times_out_of_range_count_as_the_ends_of_it() {
        let pace = Pace::default();
        (0..ENOUGH).for_each(|_| pace.count(Duration::ZERO));
        assert!(pace.take().unwrap() < Duration::from_micros(2));
        (0..ENOUGH).for_each(|_| pace.count(Duration::from_secs(86_400)));
        assert!(pace.take().unwrap() > Duration::from_secs(30));
    }
}
