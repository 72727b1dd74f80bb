//! How often a running role was told to read its configuration again, and what came of it.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReloadResult {
    /// All of it is in force.
    Taken,
    /// Nothing of it is: it is wrong, or needs a restart.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: ReloadResult,
}

/// `warmd_config_reloads_total`.
#[derive(Debug, Clone, Default)]
pub struct ReloadMetrics(Family<ResultLabel, Counter>);

impl ReloadMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Times that the configuration was read again, by what became of it";
        registry.register("warmd_config_reloads", help, metrics.0.clone());
        for result in [ReloadResult::Taken, ReloadResult::Refused] {
            drop(metrics.0.get_or_create(&ResultLabel { result }));
        }
        metrics
    }

    pub fn count(&self, result: ReloadResult) {
        self.0.get_or_create(&ResultLabel { result }).inc();
    }
}
