//! Counts of installations, for `/metrics`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::EncodeLabelValue;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{InstallError, Installed, NegativeClass};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Installed,
    /// Everything was there already.
    Existing,
    NoneFound,
    Transient,
    NoSpace,
    Untrusted,
    Incompatible,
    Quarantined,
}

impl From<NegativeClass> for Outcome {
    fn from(class: NegativeClass) -> Self {
        match class {
            NegativeClass::NoneFound => Self::NoneFound,
            NegativeClass::Transient => Self::Transient,
            NegativeClass::NoSpace => Self::NoSpace,
            NegativeClass::Untrusted => Self::Untrusted,
            NegativeClass::Incompatible => Self::Incompatible,
            NegativeClass::Quarantined => Self::Quarantined,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Metrics {
    attempts: Family<OutcomeLabel, Counter>,
    files: Counter,
    bytes: Counter,
    corrupt: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            attempts: Family::default(),
            files: Counter::default(),
            bytes: Counter::default(),
            corrupt: Counter::default(),
        };
        registry.register("warmd_install_attempts", "Installations by how they ended", metrics.attempts.clone());
        registry.register("warmd_install_files", "Files made visible", metrics.files.clone());
        registry.register("warmd_install_bytes", "Bytes made visible", metrics.bytes.clone());
        registry.register(
            "warmd_install_corrupt_chunks",
            "Chunks or files whose digest was not the manifest's",
            metrics.corrupt.clone(),
        );
        metrics
    }

    /// Counts one attempt that came as far as [`Installation::begin`](super::Installation::begin).
    pub fn observe(&self, result: &Result<Installed, InstallError>) {
        let outcome = match result {
            Ok(done) => {
                self.files.inc_by(done.files);
                self.bytes.inc_by(done.bytes);
                if done.installed.is_empty() { Outcome::Existing } else { Outcome::Installed }
            }
            Err(error) => {
                if matches!(error, InstallError::Corrupt { .. } | InstallError::CorruptFile { .. }) {
                    self.corrupt.inc();
                }
                error.class().into()
            }
        };
        self.attempts.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
