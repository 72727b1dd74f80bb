//! Which traces are recorded: a share of those that begin here, and of those of others as many as this process may.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::config::TracingConfig;

/// Pure but for its random number.
#[derive(Debug)]
struct Sampler {
    sample: f64,
    remote_per_second: u32,
    /// Spans of others that may begin now.
    left: f64,
    at: Option<Instant>,
}

/// One for the process, like the subscriber.
static SAMPLER: Mutex<Sampler> = Mutex::new(Sampler { sample: 1.0, remote_per_second: 0, left: 0.0, at: None });

impl Sampler {
    fn begins(&self, random: f64) -> bool {
        random < self.sample
    }

    /// A bucket of one second's worth.
    fn takes_remote(&mut self, now: Instant) -> bool {
        let most = f64::from(self.remote_per_second);
        let since = self.at.map_or(1.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.at = Some(now);
        self.left = (self.left + since * most).min(most);
        let takes = self.left >= 1.0;
        self.left -= f64::from(u8::from(takes));
        takes
    }
}

/// Changes what is recorded from now on.
pub fn set_sampling(config: &TracingConfig) {
    let mut sampler = SAMPLER.lock().unwrap_or_else(PoisonError::into_inner);
    sampler.sample = config.sample;
    sampler.remote_per_second = config.remote_per_second;
}

/// Whether a trace that begins here is recorded.
pub(super) fn begins() -> bool {
    SAMPLER.lock().unwrap_or_else(PoisonError::into_inner).begins(rand::random())
}

/// Whether a span is recorded whose parent is another process's.
pub(super) fn takes_remote() -> bool {
    SAMPLER.lock().unwrap_or_else(PoisonError::into_inner).takes_remote(Instant::now())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn others_may_ask_for_so_many_spans_a_second_and_no_more() {
        let start = Instant::now();
        let mut sampler = Sampler { sample: 0.5, remote_per_second: 10, left: 0.0, at: None };
        let mut take = |at| (0..100).filter(|_| sampler.takes_remote(at)).count();
        assert_eq!(take(start), 10);
        assert_eq!(take(start + Duration::from_millis(500)), 5);
        assert_eq!(take(start + Duration::from_secs(60)), 10);
    }

    #[test]
    fn of_what_begins_here_the_share_is_recorded() {
        let sampler = Sampler { sample: 0.25, remote_per_second: 0, left: 0.0, at: None };
        assert!(sampler.begins(0.2) && !sampler.begins(0.3));
        assert!(!Sampler { sample: 0.0, ..sampler }.begins(0.0));
    }
}
