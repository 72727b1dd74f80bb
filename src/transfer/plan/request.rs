//! One request in flight and its three deadlines.

use std::time::{Duration, Instant};

use super::PlanConfig;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) slot: usize,
    /// Asked for and still of use to us, in the order in which they come.
    pub(super) left: Vec<u32>,
    pub(super) bytes_left: u64,
    pub(super) sent_at: Instant,
    began: bool,
    /// When the open progress window began, and what arrived in it.
    window: Instant,
    window_bytes: u64,
    /// Bytes that were reported as they arrived, as whole chunks, and those already counted.
    arrived: u64,
    verified: u64,
    counted: u64,
}

impl Request {
    pub(super) fn new(slot: usize, indices: Vec<u32>, bytes: u64, now: Instant) -> Self {
        Self {
            slot,
            left: indices,
            bytes_left: bytes,
            sent_at: now,
            began: false,
            window: now,
            window_bytes: 0,
            arrived: 0,
            verified: 0,
            counted: 0,
        }
    }

    /// The time since it was sent, on its first byte only.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Duration> {
        let first = !std::mem::replace(&mut self.began, true);
        if first {
            self.window = now;
        }
        first.then(|| now.saturating_duration_since(self.sent_at))
    }

    pub(super) fn arrive(&mut self, bytes: u64, config: &PlanConfig, now: Instant) -> u64 {
        self.arrived += bytes;
        self.count(config, now)
    }

    /// A whole chunk; its bytes may or may not have been reported as they arrived.
    pub(super) fn verify(&mut self, bytes: u64, config: &PlanConfig, now: Instant) -> u64 {
        self.verified += bytes;
        self.count(config, now)
    }

    /// Returns the bytes that no earlier report covered.
    fn count(&mut self, config: &PlanConfig, now: Instant) -> u64 {
        let new = self.arrived.max(self.verified) - self.counted;
        self.counted += new;
        self.window_bytes += new;
        if self.window_bytes >= config.progress_bytes.min(self.bytes_left) {
            self.window = now;
            self.window_bytes = 0;
        }
        new
    }

    /// Bytes that arrived in chunks not reported whole.
    pub(super) fn arriving(&self) -> u64 {
        self.counted - self.verified
    }

    pub(super) fn deadline(&self, config: &PlanConfig) -> Instant {
        let next = match self.began {
            true => self.window + config.progress,
            false => self.sent_at + config.first_byte,
        };
        next.min(self.sent_at + config.total)
    }

    /// False if the chunk was not in it, or not any more.
    pub(super) fn remove(&mut self, index: u32, len: u32) -> bool {
        let place = self.left.iter().position(|left| *left == index);
        if let Some(place) = place {
            self.left.remove(place);
            self.bytes_left -= u64::from(len);
        }
        place.is_some()
    }
}
