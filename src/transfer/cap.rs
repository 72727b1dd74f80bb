//! How fast this node may upload: a bucket that refills with time, at a rate that goes down while the engine beside it
//! answers more slowly than it does when nothing is uploaded. Callers wait as long as they are told.

mod yielding;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use yielding::{FORGOTTEN, Heard, MAX_ENGINES, Yielding};

use crate::artifact::MAX_CHUNK;

/// Another one for each engine of the node that is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineId(pub usize);

/// Of one node, over all peers.
#[derive(Debug)]
pub(super) struct Cap {
    inner: Mutex<Inner>,
    /// Whether the lock has to be taken at all.
    is_on: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    bucket: Bucket,
    yielding: Yielding,
    /// Bytes ever sent, and when, at the latest word of each engine.
    sent: HashMap<EngineId, (u64, Instant)>,
}

/// What became of the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ruled {
    /// Bytes a second; none: no cap.
    pub(super) rate: Option<u64>,
    pub(super) lowered: bool,
}

impl Cap {
    /// `most` is in bytes a second; none: as fast as it goes, unless the engine suffers.
    pub(super) fn new(most: Option<u64>, now: Instant) -> Self {
        let bucket = Bucket::new(most.unwrap_or(u64::MAX), now);
        let inner = Inner { bucket, yielding: Yielding::new(most), sent: HashMap::new() };
        Self { inner: Mutex::new(inner), is_on: AtomicBool::new(most.is_some()) }
    }

    /// As [`Cap::new`], from now on; what is known of the engine stays.
    pub(super) fn set_most(&self, most: Option<u64>, now: Instant) {
        let mut inner = self.lock();
        inner.yielding.set_most(most);
        let rate = inner.yielding.rate(now);
        self.is_on.store(rate.is_some(), Ordering::Relaxed);
    }

    /// Before `bytes` are sent.
    pub(super) fn wait(&self, bytes: u64, now: Instant) -> Duration {
        if !self.is_on.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let mut inner = self.lock();
        let Some(rate) = inner.yielding.rate(now) else {
            self.is_on.store(false, Ordering::Relaxed);
            return Duration::ZERO;
        };
        inner.bucket.set_rate(rate, now);
        inner.bucket.take(bytes, now)
    }

    /// How many uploads at a time: with more, a chunk would wait for longer than a second while others have their turn, and
    /// whoever asked for it gives up after a few.
    pub(super) fn at_once(&self, now: Instant) -> u32 {
        if !self.is_on.load(Ordering::Relaxed) {
            return u32::MAX;
        }
        let chunks = |rate: u64| u32::try_from(rate / MAX_CHUNK as u64).unwrap_or(u32::MAX);
        self.lock().yielding.rate(now).map_or(u32::MAX, chunks)
    }

    /// Clients of this engine waited `between` from one token to the next; `sent` bytes were ever uploaded.
    pub(super) fn hear(&self, engine: EngineId, between: Duration, sent: u64, now: Instant) -> Ruled {
        let mut inner = self.lock();
        inner.sent.retain(|_, (_, at)| now.saturating_duration_since(*at) < FORGOTTEN);
        let (before, at) = inner.sent.get(&engine).copied().unwrap_or((sent, now));
        if inner.sent.len() < MAX_ENGINES || inner.sent.contains_key(&engine) {
            inner.sent.insert(engine, (sent, now));
        }
        let heard = Heard { between, uploaded: sent.saturating_sub(before), during: now.duration_since(at) };
        let lowered = inner.yielding.hear(engine, heard, now);
        let rate = inner.yielding.rate(now);
        self.is_on.store(rate.is_some(), Ordering::Relaxed);
        Ruled { rate, lowered }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refills at `rate` bytes a second and holds at most a quarter of a second's worth. Debt is allowed, so that one large
/// chunk passes a small bucket and the next one waits longer.
#[derive(Debug)]
struct Bucket {
    /// Bytes a second.
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// `rate` in bytes a second, at least 1.
    fn new(rate: u64, now: Instant) -> Self {
        // Rates beyond 2^53 bytes a second are no caps.
        let rate = rate.max(1) as f64;
        Self { rate, level: rate / 4.0, at: now }
    }

    fn set_rate(&mut self, rate: u64, now: Instant) {
        self.refill(now);
        self.rate = rate.max(1) as f64;
        self.level = self.level.min(self.rate / 4.0);
    }

    fn refill(&mut self, now: Instant) {
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.level = (self.level + refill).min(self.rate / 4.0);
        self.at = now;
    }

    /// Takes `bytes` and tells how long to wait before sending them.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        self.refill(now);
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

    #[test]
    fn a_cap_that_is_set_later_holds_from_then_on_and_one_that_is_lifted_does_not() {
        let start = Instant::now();
        let cap = Cap::new(None, start);
        cap.set_most(Some(1000), start);
        cap.wait(1250, start);
        assert!(cap.wait(1000, start) >= Duration::from_secs(1));
        cap.set_most(None, start);
        assert_eq!(cap.wait(1 << 30, start), Duration::ZERO);
    }

    #[test]
    fn without_a_cap_nobody_waits_until_the_engine_suffers_and_again_when_it_is_silent() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let cap = Cap::new(None, start);
        assert_eq!(cap.wait(1 << 30, start), Duration::ZERO);
        let (quiet, slow) = (Duration::from_millis(10), Duration::from_millis(20));
        assert_eq!(cap.at_once(start), u32::MAX);
        assert_eq!(cap.hear(EngineId(1), quiet, 0, start + second), Ruled { rate: None, lowered: false });
        let ruled = cap.hear(EngineId(1), slow, 1_000_000_000, start + 2 * second);
        assert_eq!(ruled, Ruled { rate: Some(700_000_000), lowered: true });
        assert_eq!(cap.at_once(start + 2 * second), 667);
        cap.wait(700_000_000, start + 2 * second);
        assert!(cap.wait(700_000_000, start + 2 * second) >= second);
        assert_eq!(cap.wait(1 << 30, start + 60 * second), Duration::ZERO);
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
