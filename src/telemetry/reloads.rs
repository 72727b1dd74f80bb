//! How often this process was told to read its configuration again, and what came of it.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{Registry, label, labels};

label! {
    /// What became of a file.
    pub enum ReloadResult {
        /// All of it is in force.
        Taken,
        /// Nothing of it is: it is wrong, or needs a restart.
        Refused,
    }
}

labels! {
    struct ResultLabel {
        result: ReloadResult,
    }
}

/// One for the process, whose signal it is.
static RELOADS: LazyLock<Family<ResultLabel, Counter>> = LazyLock::new(Family::default);

pub(super) fn register(registry: &mut Registry) {
    let help = "Times that the configuration was read again, by what became of it";
    registry.insert("warmd_config_reloads_total", help, RELOADS.clone());
}

impl ReloadResult {
    pub fn count(self) {
        RELOADS.get_or_create(&ResultLabel { result: self }).inc();
    }
}
