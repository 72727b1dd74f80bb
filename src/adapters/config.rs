//! `adapter_config.json`, as the PEFT library writes it
//! (<https://huggingface.co/docs/peft/package_reference/lora#peft.LoraConfig>): what we judge is typed and bounded, all
//! else is kept as it is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::BaseModel;
use super::json::{self, JsonError, shown};

/// Bytes of the longest file.
pub const MAX_CONFIG: u64 = 1 << 20;

/// No engine serves more, and no model has use for it.
pub const MAX_RANK: u32 = 16_384;

const MAX_NAMES: usize = 65_536;
const MAX_TEXT: usize = 4096;

/// Settings that change the computation in ways that no engine of ours follows: absent, `null`, false or empty.
const UNSUPPORTED: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Ways to initialise that leave the base weights as they are.
const INITS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// The file is no configuration of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("adapter_config.json: {0}")]
    Json(#[from] JsonError),
    #[error("adapter_config.json: {found} bytes, allowed are {MAX_CONFIG}")]
    TooLarge { found: u64 },
    #[error("adapter_config.json: is not an object")]
    NotAnObject,
    #[error("adapter_config.json: has no `{0}`")]
    Missing(&'static str),
    /// A value is not what the key stands for.
    #[error("adapter_config.json: `{key}` is {found}, expected {expected}")]
    Value { key: String, found: String, expected: &'static str },
}

/// Which modules were trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Names, or ends of paths.
    Names(BTreeSet<String>),
    /// A regular expression over paths.
    Pattern(String),
    AllLinear,
    Unsaid,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    pub rank: u32,
    /// Finite and above zero.
    pub alpha: f64,
    pub base_model: Option<BaseModel>,
    pub peft_type: Option<String>,
    pub task_type: Option<String>,
    pub target_modules: TargetModules,
    pub modules_to_save: Vec<String>,
    pub use_dora: bool,
    pub use_rslora: bool,
    pub fan_in_fan_out: bool,
    /// `none`, `all` or `lora_only`.
    pub bias: String,
    pub rank_pattern: BTreeMap<String, u32>,
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Layers that were trained; empty if all were.
    pub layers_to_transform: Vec<u64>,
    /// A way to initialise that changed the base weights, so that the adapter fits others than the published ones.
    pub changes_base: Option<String>,
    /// Keys of other settings that change the computation.
    pub unsupported: Vec<&'static str>,
    raw: Map<String, Value>,
}

impl AdapterConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(ConfigError::TooLarge { found: bytes.len() as u64 });
        }
        let Value::Object(raw) = json::parse(bytes)? else { return Err(ConfigError::NotAnObject) };
        let fields = Fields(&raw);
        Ok(Self {
            rank: fields.rank("r", fields.present("r").ok_or(ConfigError::Missing("r"))?)?,
            alpha: fields.alpha()?,
            base_model: fields.base_model()?,
            peft_type: fields.text("peft_type")?,
            task_type: fields.text("task_type")?,
            target_modules: fields.target_modules()?,
            modules_to_save: fields.names("modules_to_save")?,
            use_dora: fields.flag("use_dora")?,
            use_rslora: fields.flag("use_rslora")?,
            fan_in_fan_out: fields.flag("fan_in_fan_out")?,
            bias: fields.bias()?,
            rank_pattern: fields.pattern("rank_pattern", Fields::rank)?,
            alpha_pattern: fields.pattern("alpha_pattern", Fields::scale)?,
            layers_to_transform: fields.layers()?,
            changes_base: fields.changes_base()?,
            unsupported: UNSUPPORTED.into_iter().filter(|key| fields.is_on(key)).collect(),
            raw,
        })
    }

    /// Everything that the file says, as it says it.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// What `B·A` is multiplied by; rank-stabilised adapters divide by the root.
    pub fn scaling(&self) -> f64 {
        scaling(self.alpha, self.rank, self.use_rslora)
    }

    /// Whether ranks or scalings differ between modules.
    pub fn is_uneven(&self) -> bool {
        self.rank_pattern.values().any(|rank| *rank != self.rank)
            || self.alpha_pattern.values().any(|alpha| *alpha != self.alpha)
    }
}

pub(super) fn scaling(alpha: f64, rank: u32, rslora: bool) -> f64 {
    let rank = f64::from(rank);
    alpha / if rslora { rank.sqrt() } else { rank }
}

/// Values by key; `null` counts as absent.
struct Fields<'v>(&'v Map<String, Value>);

impl Fields<'_> {
    fn present(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn rank(&self, key: &str, value: &Value) -> Result<u32, ConfigError> {
        let whole = value.as_u64().and_then(|rank| u32::try_from(rank).ok());
        whole
            .filter(|rank| (1..=MAX_RANK).contains(rank))
            .ok_or_else(|| wrong(key, value, "a whole number from 1 to 16384"))
    }

    fn scale(&self, key: &str, value: &Value) -> Result<f64, ConfigError> {
        let fits = |alpha: &f64| *alpha > 0.0 && *alpha <= 1e6;
        value.as_f64().filter(fits).ok_or_else(|| wrong(key, value, "a number above 0 and up to 1000000"))
    }

    /// 8 if it is absent, as in the library.
    fn alpha(&self) -> Result<f64, ConfigError> {
        self.present("lora_alpha").map_or(Ok(8.0), |value| self.scale("lora_alpha", value))
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        let Some(value) = self.present(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(key, value, "true or false"))
    }

    fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        let Some(value) = self.present(key) else { return Ok(None) };
        checked_text(key, value).map(Some)
    }

    fn bias(&self) -> Result<String, ConfigError> {
        let bias = self.text("bias")?.unwrap_or_else(|| "none".to_owned());
        if ["none", "all", "lora_only"].contains(&bias.as_str()) {
            return Ok(bias);
        }
        Err(wrong("bias", &Value::String(bias), "`none`, `all` or `lora_only`"))
    }

    fn base_model(&self) -> Result<Option<BaseModel>, ConfigError> {
        const KEY: &str = "base_model_name_or_path";
        let Some(value) = self.present(KEY).filter(|value| value.as_str() != Some("")) else { return Ok(None) };
        let name = value.as_str().and_then(|text| text.parse().ok());
        name.map(Some).ok_or_else(|| wrong(KEY, value, "the name of a model"))
    }

    /// One text counts as a list of one.
    fn names(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.present(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= MAX_NAMES => {
                list.iter().map(|item| checked_text(key, item)).collect()
            }
            Some(value @ Value::String(_)) => Ok(vec![checked_text(key, value)?]),
            Some(value) => Err(wrong(key, value, "a list of names")),
        }
    }

    fn target_modules(&self) -> Result<TargetModules, ConfigError> {
        const KEY: &str = "target_modules";
        Ok(match self.present(KEY) {
            None => TargetModules::Unsaid,
            Some(Value::String(text)) if text == "all-linear" => TargetModules::AllLinear,
            Some(value @ Value::String(_)) => TargetModules::Pattern(checked_text(KEY, value)?),
            Some(_) => TargetModules::Names(self.names(KEY)?.into_iter().collect()),
        })
    }

    fn layers(&self) -> Result<Vec<u64>, ConfigError> {
        const KEY: &str = "layers_to_transform";
        let wrong = |value| wrong(KEY, value, "a number or a list of numbers");
        match self.present(KEY) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= MAX_NAMES => {
                list.iter().map(|layer| layer.as_u64().ok_or_else(|| wrong(layer))).collect()
            }
            Some(value) => value.as_u64().map(|layer| vec![layer]).ok_or_else(|| wrong(value)),
        }
    }

    fn pattern<T>(
        &self,
        key: &str,
        read: impl Fn(&Self, &str, &Value) -> Result<T, ConfigError>,
    ) -> Result<BTreeMap<String, T>, ConfigError> {
        match self.present(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) if map.len() <= MAX_NAMES => {
                map.iter().map(|(name, value)| Ok((name.clone(), read(self, key, value)?))).collect()
            }
            Some(value) => Err(wrong(key, value, "an object from modules to numbers")),
        }
    }

    fn changes_base(&self) -> Result<Option<String>, ConfigError> {
        const KEY: &str = "init_lora_weights";
        match self.present(KEY) {
            None | Some(Value::Bool(_)) => Ok(None),
            Some(value) => {
                let way = checked_text(KEY, value)?;
                Ok((!INITS.contains(&way.as_str())).then_some(way))
            }
        }
    }

    fn is_on(&self, key: &str) -> bool {
        match self.0.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        }
    }
}

fn checked_text(key: &str, value: &Value) -> Result<String, ConfigError> {
    let fits = |text: &&str| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    let text = value.as_str().filter(fits);
    text.map(str::to_owned).ok_or_else(|| wrong(key, value, "a text of at most 4096 bytes without control characters"))
}

fn wrong(key: &str, value: &Value, expected: &'static str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), found: shown(&value.to_string()), expected }
}

#[cfg(test)]
mod tests;
