//! How fast something goes, as somebody who looks now and then sees it. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Two looks that are nearer are one: a rate of a few milliseconds is noise.
const APART: Duration = Duration::from_millis(500);

/// The rate is that of the time since the look that is at least this old.
const WINDOW: Duration = Duration::from_secs(5);

/// Bytes at some moments.
#[derive(Debug)]
pub(super) struct Meter {
    looks: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Nothing is there yet at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { looks: VecDeque::from([(now, 0)]) }
    }

    /// Bytes a second; `None` until there was time to tell.
    pub(super) fn rate(&mut self, bytes: u64, now: Instant) -> Option<u64> {
        while self.looks.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.looks.pop_front();
        }
        let (at, before) = *self.looks.front()?;
        if self.looks.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= APART) {
            self.looks.push_back((now, bytes));
        }
        let passed = now.saturating_duration_since(at);
        if passed.is_zero() {
            return None;
        }
        // Bytes of one transfer are far below 2^53.
        Some((bytes.saturating_sub(before) as f64 / passed.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut meter = Meter::new(begin);
        assert_eq!(meter.rate(0, begin), None);
        assert_eq!(meter.rate(2 * MIB, at(1_000)), Some(2 * MIB));
        for second in 2..=20 {
            meter.rate(2 * MIB * second, at(1_000 * second));
        }
        assert_eq!(meter.rate(40 * MIB, at(30_000)), Some(0), "it has stalled");
        for look in 0..1_000 {
            meter.rate(40 * MIB, at(30_000 + look));
        }
        assert!(meter.looks.len() < 16, "looks are bounded: {}", meter.looks.len());
    }

    #[test]
    fn of_a_look_after_long_silence_the_average_is_told() {
        let begin = Instant::now();
        let mut meter = Meter::new(begin);
        assert_eq!(meter.rate(100 * MIB, begin + Duration::from_secs(100)), Some(MIB));
    }
}
