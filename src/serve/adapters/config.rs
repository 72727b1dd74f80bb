//! What can be tuned.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptersConfig {
    /// A file that says which adapters to have: TOML, or JSON if its name ends so. None.
    pub desired: Option<PathBuf>,
    /// How often that file is looked at. 2 s.
    #[serde(with = "humantime_serde")]
    pub desired_every: Duration,
    /// Adapters that are fetched and prepared at a time. 4.
    pub max_loading: usize,
    /// Of those, how many are checked or prepared at a time. 1.
    pub max_preparing: usize,
    /// Threads that check and prepare. 2.
    pub prepare_threads: usize,
    /// Loads that the engine is asked for at a time; each of them holds up what it computes. 1.
    pub max_registering: usize,
    /// As in the engine's `--max-cpu-loras`: so many are registered again when it has started again. 32.
    pub max_cpu_loras: usize,
    /// Adapters that are known, wherever they are. 4096.
    pub max_adapters: usize,
    /// Adapters that have a name in the metrics: those that are used most. 20.
    pub named_in_metrics: usize,
    /// Names that are being looked up or were not found. 1024.
    pub max_unknown: usize,
    /// Bytes of all prepared adapters and of those that are being fetched. 100 GiB.
    pub quota_bytes: u64,
    /// Adapters that nobody asked for leave the engine and the disk, if another node or the origin has them; 0 s turns this
    /// off. 1 h.
    #[serde(with = "humantime_serde")]
    pub offload_after: Duration,
    /// From an adapter's end in the engine to the removal of its files. 60 s.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long a version that cannot be served is not tried again. 10 min.
    #[serde(with = "humantime_serde")]
    pub refused_for: Duration,
    /// How long a version is not tried again that did not come, or that the engine keeps losing. 30 s.
    #[serde(with = "humantime_serde")]
    pub failed_for: Duration,
    /// How long a name is unknown that the fleet does not have. 5 s.
    #[serde(with = "humantime_serde")]
    pub unknown_for: Duration,
    /// How often new versions are looked for. 10 s.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// How often the engine's own list is compared. 60 s.
    #[serde(with = "humantime_serde")]
    pub reconcile: Duration,
    /// How long a request for a new name waits to hear whether there is such an adapter. 500 ms.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// For one look-up. 5 s.
    #[serde(with = "humantime_serde")]
    pub look: Duration,
    /// For one transfer. 30 min.
    #[serde(with = "humantime_serde")]
    pub fetch: Duration,
    /// For one preparation. 30 min.
    #[serde(with = "humantime_serde")]
    pub prepare: Duration,
    /// For one answer of the engine. 60 s.
    #[serde(with = "humantime_serde")]
    pub register: Duration,
    /// When to come again, while an adapter is loading. 5 s.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
}

impl Default for AdaptersConfig {
    fn default() -> Self {
        Self {
            desired: None,
            desired_every: Duration::from_secs(2),
            max_loading: 4,
            max_preparing: 1,
            prepare_threads: 2,
            max_registering: 1,
            max_cpu_loras: 32,
            max_adapters: 4096,
            named_in_metrics: 20,
            max_unknown: 1024,
            quota_bytes: 100 << 30,
            offload_after: Duration::from_secs(60 * 60),
            grace: Duration::from_secs(60),
            refused_for: Duration::from_secs(10 * 60),
            failed_for: Duration::from_secs(30),
            unknown_for: Duration::from_secs(5),
            refresh: Duration::from_secs(10),
            reconcile: Duration::from_secs(60),
            patience: Duration::from_millis(500),
            look: Duration::from_secs(5),
            fetch: Duration::from_secs(30 * 60),
            prepare: Duration::from_secs(30 * 60),
            register: Duration::from_secs(60),
            retry_after: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_option_is_refused_and_times_have_units() {
        let config: AdaptersConfig = toml::from_str("grace = \"5s\"\nmax_loading = 2").unwrap();
        assert_eq!((config.grace, config.max_loading), (Duration::from_secs(5), 2));
        assert!(toml::from_str::<AdaptersConfig>("offload_minutes = 5").is_err());
    }
}
