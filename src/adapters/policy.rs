//! What is made of an adapter before an engine sees it, and what the engine can serve.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::config::MAX_RANK;
use super::json::{canonical, shown};
use crate::digest::Digest;

/// Raised whenever the pipeline makes something else of the same input.
const PIPELINE: u32 = 1;

/// Where the rest of a key goes in a [`Template`].
const SUFFIX: &str = "{suffix}";

/// A setting that could never work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    #[error("adapters: `{0}` is no key template: expected a text that ends with `{SUFFIX}` and has it once")]
    Template(String),
    #[error("adapters: remapping needs at least one prefix, and none of them is empty")]
    Prefixes,
    #[error("adapters: the vision threshold is {0}, expected a number from 0 on")]
    Threshold(f64),
    #[error("adapters: the vision filter has no names: turn it off instead")]
    Names,
    #[error(
        "adapters: the largest error of an approximated DoRA adapter is {0}, expected a number above 0 and below 1"
    )]
    MaxError(f64),
    #[error("adapters: rank {0}, expected 1 to {MAX_RANK}")]
    Rank(u32),
    #[error("adapters: the engine serves no modules")]
    Modules,
}

/// How adapters are prepared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Absent: keys stay as they are.
    pub remap: Option<Remap>,
    pub vision: Vision,
    pub dora: Dora,
}

/// Names of tensors that the engine knows otherwise: what follows one of the prefixes goes into the template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Remap {
    /// With or without `base_model.model.` before them.
    #[serde(default = "Remap::usual_prefixes")]
    pub prefixes: Vec<String>,
    pub template: Template,
}

/// A key with a place for the rest of another one, such as `base_model.model.model.language_model.layers.{suffix}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

/// What becomes of tensors in the image encoder, which engines do not serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vision {
    /// False: such tensors are judged and kept as all others.
    pub filter: bool,
    /// Components of a module's path, each of which makes it one of the encoder.
    pub names: Vec<String>,
    /// L2 norm of a dropped `lora_B` above which the encoder counts as trained, and the adapter is refused.
    pub threshold: f64,
}

/// What becomes of weight-decomposed adapters, which engines do not serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "policy")]
pub enum Dora {
    #[default]
    Reject,
    /// Magnitudes are left out: another, untested adapter.
    Strip,
    /// The best approximation of what the adapter does to the base weights, which must be on this node.
    Svd {
        /// Absent: the adapter's own.
        #[serde(default)]
        rank: Option<u32>,
        /// Relative Frobenius error of a module, above which the adapter is refused.
        #[serde(default = "Dora::usual_error")]
        max_error: f64,
    },
}

/// What an engine serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Engine {
    /// As in `--max-lora-rank`.
    pub max_lora_rank: u32,
    /// Last components of the paths of modules that can have an adapter.
    pub modules: BTreeSet<String>,
    /// Whether it follows `rank_pattern` and `alpha_pattern`; vLLM does from 0.32 on, before it scales wrongly.
    pub follows_patterns: bool,
}

impl Policy {
    pub fn check(&self) -> Result<(), PolicyError> {
        if let Some(remap) = &self.remap
            && (remap.prefixes.is_empty() || remap.prefixes.iter().any(String::is_empty))
        {
            return Err(PolicyError::Prefixes);
        }
        let Vision { filter, names, threshold } = &self.vision;
        if !threshold.is_finite() || *threshold < 0.0 {
            return Err(PolicyError::Threshold(*threshold));
        }
        if *filter && names.is_empty() {
            return Err(PolicyError::Names);
        }
        match self.dora {
            Dora::Svd { max_error, .. } if !(max_error > 0.0 && max_error < 1.0) => {
                Err(PolicyError::MaxError(max_error))
            }
            Dora::Svd { rank: Some(rank), .. } if !(1..=MAX_RANK).contains(&rank) => Err(PolicyError::Rank(rank)),
            _ => Ok(()),
        }
    }

    /// Over all that decides what is made of an adapter; `base` is that of the weights that an approximation needs.
    pub(super) fn digest(&self, engine: &Engine, base: Option<&Digest>) -> Digest {
        let base = base.map(Digest::to_string);
        Digest::of(canonical(&serde_json::json!([PIPELINE, self, engine, base])).as_bytes())
    }

    pub fn needs_base(&self) -> bool {
        matches!(self.dora, Dora::Svd { .. })
    }
}

impl Engine {
    pub fn check(&self) -> Result<(), PolicyError> {
        if !(1..=MAX_RANK).contains(&self.max_lora_rank) {
            return Err(PolicyError::Rank(self.max_lora_rank));
        }
        if self.modules.is_empty() { Err(PolicyError::Modules) } else { Ok(()) }
    }
}

/// vLLM with its own default rank and the linear layers of a decoder.
impl Default for Engine {
    fn default() -> Self {
        let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self { max_lora_rank: 16, modules: modules.map(str::to_owned).into(), follows_patterns: false }
    }
}

impl Remap {
    fn usual_prefixes() -> Vec<String> {
        ["model.language_model.layers.", "model.layers."].map(str::to_owned).into()
    }

    pub fn to(template: Template) -> Self {
        Self { prefixes: Self::usual_prefixes(), template }
    }

    /// The name that a key gets; `None` if it stays as it is.
    pub(super) fn apply(&self, key: &str) -> Option<String> {
        let own = self.template.before();
        if key.starts_with(own) {
            return None;
        }
        let bare = key.strip_prefix(super::keys::WRAPPER).unwrap_or(key);
        let suffix = self.prefixes.iter().find_map(|prefix| bare.strip_prefix(prefix.as_str()))?;
        Some(format!("{own}{suffix}"))
    }
}

impl Template {
    fn before(&self) -> &str {
        self.0.strip_suffix(SUFFIX).unwrap_or(&self.0)
    }
}

impl Default for Vision {
    fn default() -> Self {
        let names = ["visual", "vision_tower", "vision_model", "merger"];
        Self { filter: true, names: names.map(str::to_owned).into(), threshold: 0.0 }
    }
}

impl Vision {
    /// Whether tensors of this module are dropped.
    pub(super) fn drops(&self, module: &str) -> bool {
        self.filter && module.split('.').any(|part| self.names.iter().any(|name| name == part))
    }
}

impl Dora {
    fn usual_error() -> f64 {
        0.1
    }
}

impl FromStr for Template {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let before = text.strip_suffix(SUFFIX).filter(|before| !before.is_empty());
        let fits = before.is_some_and(|before| !before.contains(['{', '}']) && !before.chars().any(char::is_control));
        if fits { Ok(Self(text.to_owned())) } else { Err(PolicyError::Template(shown(text))) }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn remap() -> Remap {
        Remap::to("base_model.model.model.language_model.layers.{suffix}".parse().unwrap())
    }

    #[test]
    fn keys_of_both_usual_forms_get_the_templates() {
        for key in ["model.layers.3.x", "model.language_model.layers.3.x", "base_model.model.model.layers.3.x"] {
            assert_eq!(remap().apply(key).unwrap(), "base_model.model.model.language_model.layers.3.x");
        }
        assert_eq!(remap().apply("base_model.model.lm_head.lora_A.weight"), None);
    }

    #[test]
    fn settings_that_can_never_work_are_refused() {
        for text in ["", "{suffix}", "layers.", "a.{suffix}.b", "{suffix}a{suffix}", "a.{x}.{suffix}"] {
            assert!(matches!(text.parse::<Template>(), Err(PolicyError::Template(_))), "{text}");
        }
        let with = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.check().unwrap_err()
        };
        assert!(matches!(with(|p| p.vision.threshold = f64::NAN), PolicyError::Threshold(_)));
        assert_eq!(with(|p| p.vision.threshold = -1.0), PolicyError::Threshold(-1.0));
        assert_eq!(with(|p| p.vision.names.clear()), PolicyError::Names);
        assert_eq!(with(|p| p.dora = Dora::Svd { rank: None, max_error: 1.0 }), PolicyError::MaxError(1.0));
        assert_eq!(with(|p| p.dora = Dora::Svd { rank: Some(0), max_error: 0.1 }), PolicyError::Rank(0));
        assert_eq!(Engine { max_lora_rank: 0, ..Engine::default() }.check(), Err(PolicyError::Rank(0)));
        assert_eq!((Policy::default().check(), Engine::default().check()), (Ok(()), Ok(())));
    }

    #[test]
    fn the_digest_covers_all_that_decides_what_is_made() {
        let (policy, engine) = (Policy::default(), Engine::default());
        let one = policy.digest(&engine, None);
        let strip = Policy { dora: Dora::Strip, ..policy.clone() };
        let remapped = Policy { remap: Some(remap()), ..policy.clone() };
        let other = Engine { max_lora_rank: 32, ..engine.clone() };
        let digests = [
            strip.digest(&engine, None),
            remapped.digest(&engine, None),
            policy.digest(&other, None),
            policy.digest(&engine, Some(&Digest::of(b"base"))),
        ];
        assert!(digests.iter().all(|digest| *digest != one));
        assert_eq!(one, Policy::default().digest(&Engine::default(), None));
    }

    #[test]
    fn policies_are_read_from_toml() {
        let text = "remap = { template = \"m.{suffix}\" }\nvision = { threshold = 0.5 }\ndora = { policy = \"svd\", rank = 32 }\n";
        let policy: Policy = toml::from_str(text).unwrap();
        assert_eq!(policy.remap.as_ref().unwrap().prefixes, Remap::usual_prefixes());
        assert_eq!(policy.dora, Dora::Svd { rank: Some(32), max_error: 0.1 });
        assert!(toml::from_str::<Policy>("dora = { policy = \"svd\", ranks = 3 }").is_err());
        assert!(toml::from_str::<Policy>("remap = { template = \"m.\" }").is_err());
    }

    proptest! {
        #[test]
        fn remapping_twice_is_remapping_once(key in "(base_model\\.model\\.)?(model\\.)?(language_model\\.)?(layers\\.)?[a-z0-9.]{0,9}") {
            if let Some(once) = remap().apply(&key) {
                prop_assert_eq!(remap().apply(&once), None);
            }
        }
    }
}
