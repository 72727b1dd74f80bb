//! What can be tuned.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A part of `[engine]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisionConfig {
    /// What there is to do before a start, such as installing caches. 10 min.
    #[serde(with = "humantime_serde")]
    pub prepare_timeout: Duration,
    /// From the start of the process until it serves; one that takes longer has crashed. 1 h.
    #[serde(with = "humantime_serde")]
    pub ready_timeout: Duration,
    /// Between two questions about a ready engine's health. 1 s.
    #[serde(with = "humantime_serde")]
    pub health_every: Duration,
    /// An engine that so many questions in a row found unhealthy is started again. 30.
    pub health_failures: u32,
    /// How long requests that are under way may take when the engine is to be stopped. 60 s.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// From SIGTERM to SIGKILL. 30 s.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Before a crashed engine is started again: at random up to this, doubled with each crash. 1 s.
    #[serde(with = "humantime_serde")]
    pub backoff_first: Duration,
    /// The longest of these waits. 5 min.
    #[serde(with = "humantime_serde")]
    pub backoff_most: Duration,
    /// This many crashes within `crash_loop_within` are a crash loop: each further start waits `backoff_most`. 5.
    pub crash_loop_crashes: usize,
    /// The window in which crashes are counted. 30 min.
    #[serde(with = "humantime_serde")]
    pub crash_loop_within: Duration,
    /// Crashes before an engine was ready for so long do not count any more. 10 min.
    #[serde(with = "humantime_serde")]
    pub healthy_after: Duration,
}

impl Default for SupervisionConfig {
    fn default() -> Self {
        Self {
            prepare_timeout: Duration::from_secs(600),
            ready_timeout: Duration::from_secs(3600),
            health_every: Duration::from_secs(1),
            health_failures: 30,
            drain: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            backoff_first: Duration::from_secs(1),
            backoff_most: Duration::from_secs(300),
            crash_loop_crashes: 5,
            crash_loop_within: Duration::from_secs(1800),
            healthy_after: Duration::from_secs(600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_option_is_refused_and_times_have_units() {
        let config: SupervisionConfig = toml::from_str("grace = \"15s\"\ncrash_loop_crashes = 3").unwrap();
        assert_eq!((config.grace, config.crash_loop_crashes), (Duration::from_secs(15), 3));
        assert!(toml::from_str::<SupervisionConfig>("backoff = \"30s\"").is_err());
    }
}
