//! What was done to an adapter, beside it.

use serde::{Deserialize, Serialize};

use super::super::safetensors::Tensor;
use super::super::{BaseModel, Template};
use crate::digest::{ContentId, Digest};

/// The report's file.
pub(super) const REPORT: &str = "warmd-report.json";
pub(super) const SCHEMA: u32 = 1;

/// Bytes of the longest report, and names that one lists.
pub(super) const MAX_REPORT: u64 = 4 << 20;
const MOST_NAMES: usize = 1000;

/// Everything that can be told of a preparation. It has no times: the same input gives the same report, but for warnings
/// about what others said of the adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub schema: u32,
    pub content: ContentId,
    pub policy: Digest,
    pub config: FileReport,
    pub weights: FileReport,
    /// As the adapter itself says it.
    pub base_model: Option<BaseModel>,
    pub served_base: Vec<BaseModel>,
    pub modules: usize,
    pub trained_rank: u32,
    pub rank: u32,
    pub alpha: f64,
    pub rslora: bool,
    /// As it was, and as it is.
    pub trained_target_modules: serde_json::Value,
    pub target_modules: Vec<String>,
    /// Keys of the configuration that are gone.
    pub removed_settings: Vec<String>,
    pub template: Option<Template>,
    /// Tensors that have another name.
    pub renamed: usize,
    pub dropped: Dropped,
    pub dora: Option<DoraReport>,
    pub warnings: Vec<String>,
}

/// A file that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileReport {
    pub bytes: u64,
    pub digest: Digest,
}

/// Tensors of the vision tower.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    pub tensors: usize,
    /// The first 1,000 of them.
    pub names: Vec<String>,
    /// L2 norm of the largest `lora_B` among them.
    pub largest_norm: f64,
    /// DoRA magnitudes among them: what those would do cannot be told without the encoder's own weights.
    pub magnitudes: usize,
}

/// What became of a DoRA adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "policy")]
pub enum DoraReport {
    Strip {
        modules: usize,
    },
    Svd {
        modules: usize,
        /// Over all modules.
        mean_error: f64,
        /// The module that lost most.
        worst: Loss,
    },
}

/// How far an approximation is from the exact change of a weight: the Frobenius norm of the difference by that of the
/// change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    pub module: String,
    pub error: f64,
    /// Had the magnitudes just been dropped.
    pub stripped_error: f64,
}

impl Dropped {
    pub(super) fn note(&mut self, tensor: &Tensor) {
        self.tensors += 1;
        if self.names.len() < MOST_NAMES {
            self.names.push(tensor.name.clone());
        }
    }
}

impl Report {
    pub(super) fn to_text(&self) -> String {
        // None of its types can fail to become JSON.
        serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default()
    }
}
