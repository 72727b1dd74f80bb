//! How fast a holder delivers.

use std::time::{Duration, Instant};

/// Time in which an older measurement loses half of its weight.
const HALF_WEIGHT: f64 = 0.1;

/// A measurement is folded into the average no more often than this.
const WINDOW: Duration = Duration::from_millis(10);

/// Less time than this says nothing about a pace, seconds.
const SHORTEST: f64 = 0.001;

/// Moving average of bytes per second over the time in which something was asked for. Silence counts as it passes, so a
/// holder that stalls gets slower without an event.
#[derive(Debug)]
pub(super) struct Rate {
    average: Option<f64>,
    /// Begin of the open window; `None` while nothing is asked for.
    since: Option<Instant>,
    bytes: u64,
}

impl Rate {
    pub(super) fn new() -> Self {
        Self { average: None, since: None, bytes: 0 }
    }

    /// Something is asked for.
    pub(super) fn start(&mut self, now: Instant) {
        if self.since.is_none() {
            self.since = Some(now);
            self.bytes = 0;
        }
    }

    /// Nothing is asked for any more.
    pub(super) fn stop(&mut self, now: Instant) {
        self.average = self.at(now);
        self.since = None;
    }

    /// The first byte came: how long it took is no part of the pace.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.average.is_none() && self.bytes == 0 {
            self.since = self.since.map(|_| now);
        }
    }

    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if self.since.is_some_and(|since| now.saturating_duration_since(since) >= WINDOW) {
            self.stop(now);
            self.start(now);
        }
    }

    /// Bytes per second; `None` until the first byte arrived.
    pub(super) fn at(&self, now: Instant) -> Option<f64> {
        let Some(since) = self.since else { return self.average };
        let elapsed = now.saturating_duration_since(since).as_secs_f64();
        let measured = self.bytes as f64 / elapsed.max(SHORTEST);
        match self.average {
            Some(average) => {
                let weight = elapsed / (elapsed + HALF_WEIGHT);
                Some(average + (measured - average) * weight)
            }
            None if self.bytes > 0 => Some(measured),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_holder_is_measured_at_its_pace() {
        let start = Instant::now();
        let mut rate = Rate::new();
        assert_eq!(rate.at(start), None);
        rate.start(start);
        (1..=100).for_each(|ms| rate.add(1000, start + Duration::from_millis(ms)));
        let measured = rate.at(start + Duration::from_millis(100)).unwrap();
        assert!((measured / 1e6 - 1.0).abs() < 0.01, "{measured}");
    }

    #[test]
    fn silence_slows_a_holder_down_but_idleness_does_not() {
        let start = Instant::now();
        let mut rate = Rate::new();
        rate.start(start);
        rate.add(20_000, start + Duration::from_millis(20));
        let before = rate.at(start + Duration::from_millis(20)).unwrap();
        assert!(rate.at(start + Duration::from_secs(2)).unwrap() < before / 10.0);
        rate.stop(start + Duration::from_millis(20));
        assert_eq!(rate.at(start + Duration::from_secs(2)), Some(before));
    }
}
