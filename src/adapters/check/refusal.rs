//! Why an adapter is not served, and what is odd about one that is.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::super::BaseModel;
use super::super::json::shown;
use super::super::safetensors::Dtype;

/// What is wrong with an adapter. `Display` is the sentence that its owner reads: the thing, what was expected, a way out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("peft_type is `{0}`: only `LORA` can be served")]
    PeftType(String),
    #[error("rank {rank} is above the engine's {limit}: start it with --max-lora-rank {}, or train with a lower rank", served_rank(*.rank))]
    Rank { rank: u32, limit: u32 },
    #[error("`{module}` has tensors of rank {found}, adapter_config.json says {configured}")]
    RankOfTensor { module: String, found: u64, configured: u32 },
    #[error(
        "rank_pattern or alpha_pattern make modules differ, and this engine would scale them wrongly: train with one rank and alpha, or use vLLM 0.33 or newer"
    )]
    Patterns,
    #[error("modules_to_save has {}: whole modules cannot be served beside a base model; train without, or merge the adapter", listed(.0))]
    ModulesToSave(Vec<String>),
    #[error("bias is `{0}`: only `none` can be served")]
    Bias(String),
    #[error("`{0}` is set in adapter_config.json: no engine computes that; train without")]
    Setting(&'static str),
    #[error(
        "init_lora_weights is `{0}`, which changes the base weights: convert it to a plain LoRA with the library that trained it"
    )]
    ChangedBase(String),
    #[error("adapter_config.json says that the base model is `{adapter}`, the engine serves {}: use an engine of that model", models(.expected))]
    Base { adapter: BaseModel, expected: Vec<BaseModel> },
    #[error(
        "it is a DoRA adapter, which engines do not serve: allow `strip` (drops the magnitudes) or `svd` (approximates, needs the base weights on the node), or merge it"
    )]
    Dora,
    #[error(
        "it is a DoRA adapter, and `svd` needs the base model's weights in a local directory: name it, or allow `strip`"
    )]
    DoraWithoutBase,
    #[error(
        "`{0}` is decomposed and its neighbours or adapter_config.json are not, or the reverse: the export is damaged; export it again"
    )]
    HalfDora(String),
    #[error("`{0}` is stored transposed (fan_in_fan_out): `svd` cannot approximate it; merge the adapter")]
    Transposed(String),
    #[error("`{module}` has magnitudes of shape {found:?}, its lora_B has {outputs} outputs")]
    Magnitude { module: String, found: Vec<u64>, outputs: u64 },
    #[error(
        "tensor `{0}` is no part of a LoRA adapter: export it without (embeddings and heads cannot be served beside a base model)"
    )]
    Stray(String),
    #[error(
        "two tensors would be `{0}` in the engine: one of them is lost; export the adapter with one spelling of its keys"
    )]
    SameName(String),
    #[error("`{0}` lacks one of lora_A and lora_B: the file is cut or the export damaged")]
    Half(String),
    #[error("`{module}`: shapes {a:?} and {b:?} are no lora_A and lora_B")]
    Shape { module: String, a: Vec<u64>, b: Vec<u64> },
    #[error("tensor `{tensor}` is {dtype}: convert it to F32, F16 or BF16")]
    Dtype { tensor: String, dtype: Dtype },
    #[error("`{module}` cannot have an adapter: the engine serves {}", names(.served))]
    Module { module: String, served: BTreeSet<String> },
    #[error("no modules to serve{}", if *.vision > 0 { format!(": all {vision} are in the vision tower") } else { String::new() })]
    NoModules { vision: usize },
    #[error("`{module}` is {adapter:?} in the adapter and {base:?} in the base model: it was trained on another model")]
    ShapeOfBase { module: String, adapter: [u64; 2], base: [u64; 2] },
    #[error("{0}: it was trained on another model")]
    NotInBase(String),
    #[error("two modules would be called `{0}`: change the key template's prefixes")]
    OneName(String),
    #[error(
        "`{module}`: the vision tower was trained (L2 norm {norm} of lora_B, allowed are {threshold}), and engines do not serve that part: train the language model alone, or raise the threshold"
    )]
    VisionTrained { module: String, norm: f64, threshold: f64 },
    #[error("tensor `{0}` has numbers that are not finite: the training diverged or the file is damaged")]
    NotFinite(String),
    #[error("`{module}`: {} of what DoRA does to it is lost at rank {rank}, allowed are {}: raise the rank, raise max-error, or merge the adapter", percent(*.error), percent(*.limit))]
    Approximation { module: String, rank: u32, error: f64, limit: f64 },
}

/// What is odd about an adapter, or was said of it and is not so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Warning {
    #[error("adapter_config.json has no peft_type: taken for LORA")]
    NoPeftType,
    #[error("adapter_config.json names no base model: not checked against {}", models(.expected))]
    BaseUnsaid { expected: Vec<BaseModel> },
    #[error("the {by} says that the base model is `{claimed}`, {}", said(.adapter.as_ref()))]
    Disagrees { by: Claimant, claimed: BaseModel, adapter: Option<BaseModel> },
    #[error("target_modules names {}, which have no tensors", listed(.0))]
    TargetsWithoutTensors(Vec<String>),
    #[error("DoRA's magnitudes are dropped: what is served is not what was evaluated")]
    DoraStripped,
    #[error("{0}: its shape is not checked")]
    NotInBase(String),
}

/// Who claims something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Claimant {
    Registry,
    Request,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registry => "registry",
            Self::Request => "request",
        })
    }
}

/// The ranks that vLLM takes (`vllm/config/lora.py`).
const SERVED_RANKS: [u32; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// The lowest that can be asked for; the rank itself if there is none.
fn served_rank(rank: u32) -> u32 {
    SERVED_RANKS.into_iter().find(|served| *served >= rank).unwrap_or(rank)
}

fn models(models: &[BaseModel]) -> String {
    let quoted: Vec<String> = models.iter().map(|model| format!("`{model}`")).collect();
    quoted.join(" or ")
}

/// A stranger's names, the first of them.
fn listed(names: &[String]) -> String {
    const MOST: usize = 10;
    let told: Vec<String> = names.iter().take(MOST).map(|name| shown(name)).collect();
    let more = if names.len() > MOST { format!(" and {} more", names.len() - MOST) } else { String::new() };
    told.join(", ") + &more
}

fn names(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn said(adapter: Option<&BaseModel>) -> String {
    adapter.map_or_else(
        || "and the adapter names none".to_owned(),
        |own| format!("the adapter itself says `{own}`, which counts"),
    )
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}
