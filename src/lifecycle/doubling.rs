//! Pauses that grow.

use std::time::Duration;

/// A pause that doubles each time, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubling {
    first: Duration,
    last: Duration,
    now: Duration,
}

impl Doubling {
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, now: first }
    }

    /// The pause now.
    pub fn pause(&self) -> Duration {
        self.now
    }

    /// The pause now; the next one is twice as long.
    pub fn step(&mut self) -> Duration {
        let now = self.now;
        self.now = now.saturating_mul(2).min(self.last);
        now
    }

    pub fn reset(&mut self) {
        self.now = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_last_and_begin_anew_after_a_reset() {
        let ms = Duration::from_millis;
        let mut doubling = Doubling::new(ms(10), ms(35));
        let pauses: Vec<Duration> = (0..4).map(|_| doubling.step()).collect();
        assert_eq!(pauses, [ms(10), ms(20), ms(35), ms(35)]);
        doubling.reset();
        assert_eq!(doubling.pause(), ms(10));
    }
}
