//! Whether an engine can serve an adapter: everything that the configuration and the header of the weights can tell,
//! before a byte of the weights is looked at and long before an engine sees them.
//!
//! The adapter's own `adapter_config.json` says which model it is for. What a registry or a request says of that is
//! advice: it has been wrong, and the engine then failed with the shapes of some tensor.

mod refusal;

use std::collections::BTreeSet;

pub use refusal::{Claimant, Refusal, Warning};

use super::config::{AdapterConfig, TargetModules};
use super::keys::{Module, Modules};
use super::safetensors::Header;
use super::{BaseModel, BaseWeights, Dora, Engine, Policy, Release};

/// Reasons of each kind that are told: a file can be wrong in every one of its tensors.
const MOST_TOLD: usize = 20;

/// What an adapter is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Requirements<'a> {
    pub engine: &'a Engine,
    pub policy: &'a Policy,
    /// Names of the model that the engine serves; at least one.
    pub base: &'a [BaseModel],
    /// The model's weights, where they are on this node.
    pub weights: Option<&'a BaseWeights>,
}

/// What somebody says of an adapter's base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub by: Claimant,
    pub base: BaseModel,
}

/// Everything that is wrong with an adapter, and everything that is odd.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    pub refusals: Vec<Refusal>,
    pub warnings: Vec<Warning>,
}

impl Verdict {
    pub fn is_ok(&self) -> bool {
        self.refusals.is_empty()
    }

    fn refuse_if(&mut self, wrong: bool, refusal: impl FnOnce() -> Refusal) {
        if wrong {
            self.refusals.push(refusal());
        }
    }
}

/// Before anything is fetched: by what the publisher has signed.
pub fn check_release(release: &Release, required: &Requirements<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    check_base(Some(&release.base), &[], required, &mut verdict);
    check_rank(release.rank, release.dora, required, &mut verdict);
    check_dora_policy(release.dora, required, &mut verdict);
    verdict
}

/// By its two files.
pub fn check(config: &AdapterConfig, header: &Header, claims: &[Claim], required: &Requirements<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    check_settings(config, required, &mut verdict);
    check_base(config.base_model.as_ref(), claims, required, &mut verdict);
    check_rank(config.rank, config.use_dora, required, &mut verdict);
    check_tensors(config, header, required, &mut verdict);
    verdict.refusals.truncate(MOST_TOLD);
    verdict.warnings.truncate(MOST_TOLD);
    verdict
}

fn check_settings(config: &AdapterConfig, required: &Requirements<'_>, verdict: &mut Verdict) {
    match config.peft_type.as_deref() {
        Some("LORA") => {}
        Some(other) => verdict.refusals.push(Refusal::PeftType(other.to_owned())),
        None => verdict.warnings.push(Warning::NoPeftType),
    }
    let saved = &config.modules_to_save;
    verdict.refuse_if(!saved.is_empty(), || Refusal::ModulesToSave(saved.clone()));
    verdict.refuse_if(config.bias != "none", || Refusal::Bias(config.bias.clone()));
    verdict.refusals.extend(config.unsupported.iter().map(|key| Refusal::Setting(key)));
    verdict.refusals.extend(config.changes_base.iter().cloned().map(Refusal::ChangedBase));
    let approximated = config.use_dora && required.policy.needs_base();
    let even = !config.is_uneven() || (required.engine.follows_patterns && !approximated);
    verdict.refuse_if(!even, || Refusal::Patterns);
}

fn check_base(own: Option<&BaseModel>, claims: &[Claim], required: &Requirements<'_>, verdict: &mut Verdict) {
    let served = |model: &BaseModel| required.base.iter().any(|name| name.matches(model));
    let expected = required.base.to_vec();
    match own {
        Some(own) if !served(own) => {
            verdict.refusals.push(Refusal::Base { adapter: own.clone(), expected });
        }
        Some(_) => {}
        None => verdict.warnings.push(Warning::BaseUnsaid { expected }),
    }
    for claim in claims {
        let agrees = own.map_or_else(|| served(&claim.base), |own| own.matches(&claim.base));
        if !agrees {
            let (by, claimed) = (claim.by, claim.base.clone());
            verdict.warnings.push(Warning::Disagrees { by, claimed, adapter: own.cloned() });
        }
    }
}

/// An approximated adapter gets a rank of its own.
fn check_rank(rank: u32, dora: bool, required: &Requirements<'_>, verdict: &mut Verdict) {
    let rank = match required.policy.dora {
        Dora::Svd { rank: Some(other), .. } if dora => other,
        _ => rank,
    };
    let limit = required.engine.max_lora_rank;
    verdict.refuse_if(rank > limit, || Refusal::Rank { rank, limit });
}

fn check_dora_policy(is_dora: bool, required: &Requirements<'_>, verdict: &mut Verdict) {
    match required.policy.dora {
        _ if !is_dora => {}
        Dora::Reject => verdict.refusals.push(Refusal::Dora),
        Dora::Svd { .. } => verdict.refuse_if(required.weights.is_none(), || Refusal::DoraWithoutBase),
        Dora::Strip => verdict.warnings.push(Warning::DoraStripped),
    }
}

fn check_tensors(config: &AdapterConfig, header: &Header, required: &Requirements<'_>, verdict: &mut Verdict) {
    let Modules { modules, strays } = Modules::of(header);
    let (dropped, kept): (Vec<&Module<'_>>, Vec<&Module<'_>>) =
        modules.iter().partition(|module| required.policy.vision.drops(module.path));
    let stray = strays.iter().filter(|tensor| !required.policy.vision.drops(&tensor.name));
    verdict.refusals.extend(stray.map(|tensor| Refusal::Stray(tensor.name.clone())));
    verdict.refuse_if(kept.is_empty(), || Refusal::NoModules { vision: dropped.len() });
    let has_magnitude = kept.iter().any(|module| module.magnitude.is_some());
    check_dora_policy(config.use_dora || has_magnitude, required, verdict);
    check_targets(config, &kept, verdict);
    for module in &kept {
        check_module(module, config, required, verdict);
    }
    check_names(&modules, required.policy, verdict);
}

/// Names that were asked for and have nothing are a sign of a cut file.
fn check_targets(config: &AdapterConfig, kept: &[&Module<'_>], verdict: &mut Verdict) {
    let TargetModules::Names(names) = &config.target_modules else { return };
    let mut trained = BTreeSet::new();
    for module in kept {
        let ends = module.path.match_indices('.').map(|(at, _)| &module.path[at + 1..]);
        trained.extend(ends.chain([module.path]).filter(|end| names.contains(*end)));
    }
    let empty: Vec<String> = names.iter().filter(|name| !trained.contains(name.as_str())).cloned().collect();
    if !empty.is_empty() {
        verdict.warnings.push(Warning::TargetsWithoutTensors(empty));
    }
}

fn check_module(module: &Module<'_>, config: &AdapterConfig, required: &Requirements<'_>, verdict: &mut Verdict) {
    let path = || module.path.to_owned();
    let served = &required.engine.modules;
    verdict.refuse_if(!served.contains(module.name()), || Refusal::Module { module: path(), served: served.clone() });
    for tensor in module.tensors().filter(|tensor| tensor.dtype.float().is_none()) {
        verdict.refusals.push(Refusal::Dtype { tensor: tensor.name.clone(), dtype: tensor.dtype });
    }
    let (Some(a), Some(b)) = (module.a, module.b) else {
        verdict.refusals.push(Refusal::Half(path()));
        return;
    };
    let ([rank, inputs], [outputs, rank_b]) = (a.shape.as_slice(), b.shape.as_slice()) else {
        verdict.refusals.push(Refusal::Shape { module: path(), a: a.shape.clone(), b: b.shape.clone() });
        return;
    };
    let uneven = required.engine.follows_patterns && !config.rank_pattern.is_empty();
    let limit = u64::from(required.engine.max_lora_rank);
    if rank != rank_b || *inputs == 0 || *outputs == 0 || *rank == 0 {
        verdict.refusals.push(Refusal::Shape { module: path(), a: a.shape.clone(), b: b.shape.clone() });
    } else if *rank != u64::from(config.rank) && !(uneven && *rank <= limit) {
        verdict.refusals.push(Refusal::RankOfTensor { module: path(), found: *rank, configured: config.rank });
    }
    check_dora(module, *outputs, config, required, verdict);
    check_against_base(module, [*outputs, *inputs], required, verdict);
}

fn check_dora(
    module: &Module<'_>,
    outputs: u64,
    config: &AdapterConfig,
    required: &Requirements<'_>,
    verdict: &mut Verdict,
) {
    let path = || module.path.to_owned();
    match module.magnitude {
        Some(magnitude) if magnitude.len() / (magnitude.dtype.bits() / 8).max(1) != outputs => {
            verdict.refusals.push(Refusal::Magnitude { module: path(), found: magnitude.shape.clone(), outputs });
        }
        // An approximation changes the scaling of all modules, and must know what each of them does.
        found if matches!(required.policy.dora, Dora::Svd { .. }) => {
            verdict.refuse_if(found.is_some() != config.use_dora, || Refusal::HalfDora(path()));
            verdict.refuse_if(config.use_dora && config.fan_in_fan_out, || Refusal::Transposed(path()));
        }
        _ => {}
    }
}

/// Where the base is here, a module of another model is told by name and shape.
fn check_against_base(module: &Module<'_>, adapter: [u64; 2], required: &Requirements<'_>, verdict: &mut Verdict) {
    let Some(weights) = required.weights else { return };
    match weights.shape(module.in_model()) {
        Ok(base) => {
            let path = || module.path.to_owned();
            verdict.refuse_if(base != adapter, || Refusal::ShapeOfBase { module: path(), adapter, base });
        }
        Err(error) if required.policy.needs_base() => verdict.refusals.push(Refusal::NotInBase(error.to_string())),
        // Engines fuse and rename modules: only an approximation needs them one by one.
        Err(error) => verdict.warnings.push(Warning::NotInBase(error.to_string())),
    }
}

/// Two modules must not get one name.
fn check_names(modules: &[Module<'_>], policy: &Policy, verdict: &mut Verdict) {
    let Some(remap) = &policy.remap else { return };
    let mut names = BTreeSet::new();
    for module in modules.iter().filter(|module| !policy.vision.drops(module.path)) {
        let name = remap.apply(module.path).unwrap_or_else(|| module.path.to_owned());
        if let Some(name) = names.replace(name) {
            verdict.refusals.push(Refusal::OneName(name));
        }
    }
}

#[cfg(test)]
mod tests;
