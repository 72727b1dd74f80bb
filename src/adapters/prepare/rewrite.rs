//! The tensors and the configuration that the engine will read.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::config::scaling;
use super::super::dora::{Approximation, Decomposed, Target};
use super::super::keys::{Module, Modules};
use super::super::linalg::Matrix;
use super::super::safetensors::{Content, Outgoing, Tensor, Weights};
use super::super::{BaseWeights, Dora, Remap};
use super::report::{DoraReport, FileReport, Loss, Report, SCHEMA};
use super::{Dropped, PrepareError, Refusal, Settings, Source};
use crate::digest::Digest;

/// Keys that engines stumble over and that mean nothing once an adapter is trained.
const REMOVED: [&str; 3] = ["eva_config", "exclude_modules", "lora_bias"];

/// Elements of one factor: 1 GiB.
const MAX_FACTOR: u64 = 1 << 28;

pub(super) struct Rewritten<'s> {
    pub(super) tensors: Vec<Outgoing<'s>>,
    pub(super) config: String,
    /// A report of that alone.
    pub(super) changes: Report,
}

/// What an approximation makes of the whole adapter.
struct Approximated {
    rank: u32,
    losses: Vec<Loss>,
}

pub(super) fn rewrite<'s>(
    source: &'s Source,
    settings: &Settings,
    in_time: &dyn Fn() -> Result<(), PrepareError>,
) -> Result<Rewritten<'s>, PrepareError> {
    let all = Modules::of(source.weights.header()).modules;
    let modules: Vec<Module<'_>> =
        all.into_iter().filter(|module| !settings.policy.vision.drops(module.path)).collect();
    let decomposed = modules.iter().filter(|module| module.magnitude.is_some()).count();
    let (mut tensors, approximated) = match (settings.policy.dora, &settings.weights) {
        (Dora::Svd { rank, max_error }, Some(base)) if decomposed > 0 => {
            let rank = rank.unwrap_or(source.config.rank);
            let run = Run { source, base, rank, max_error };
            let (tensors, losses) = run.all(&modules, in_time)?;
            (tensors, Some(Approximated { rank, losses }))
        }
        _ => (copies(&source.weights, &modules), None),
    };
    let renamed = rename(&mut tensors, settings.policy.remap.as_ref())?;
    let names: BTreeSet<&str> = modules.iter().map(Module::name).collect();
    let mut changes = unchanged(source, modules.len());
    changes.renamed = renamed;
    changes.target_modules = names.into_iter().map(str::to_owned).collect();
    if let Some(Approximated { rank, losses }) = approximated {
        (changes.rank, changes.alpha) = (rank, f64::from(rank));
        changes.dora = summary(losses);
    } else if decomposed > 0 {
        changes.dora = Some(DoraReport::Strip { modules: decomposed });
    }
    let config = configuration(source, &mut changes);
    Ok(Rewritten { tensors, config, changes })
}

fn copies<'s>(weights: &'s Weights, modules: &[Module<'s>]) -> Vec<Outgoing<'s>> {
    let copy = |tensor: &'s Tensor| Outgoing {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        content: Content::Copy(weights, tensor),
    };
    modules.iter().flat_map(|module| [module.a, module.b]).flatten().map(copy).collect()
}

/// How many have another name now.
fn rename(tensors: &mut [Outgoing<'_>], remap: Option<&Remap>) -> Result<usize, PrepareError> {
    let Some(remap) = remap else { return Ok(0) };
    let mut renamed = 0;
    for tensor in tensors.iter_mut() {
        if let Some(name) = remap.apply(&tensor.name) {
            tensor.name = name;
            renamed += 1;
        }
    }
    let mut names = BTreeSet::new();
    match tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        Some(twice) => refused(Refusal::SameName(twice.name.clone())),
        None => Ok(renamed),
    }
}

/// Approximates all modules, one after the other, each on all cores.
struct Run<'s, 'b> {
    source: &'s Source,
    base: &'b BaseWeights,
    rank: u32,
    max_error: f64,
}

impl<'s> Run<'s, '_> {
    fn all(
        &self,
        modules: &[Module<'s>],
        in_time: &dyn Fn() -> Result<(), PrepareError>,
    ) -> Result<(Vec<Outgoing<'s>>, Vec<Loss>), PrepareError> {
        let (mut tensors, mut losses) = (Vec::with_capacity(2 * modules.len()), Vec::with_capacity(modules.len()));
        for module in modules {
            in_time()?;
            // Checked before: a decomposed adapter has all three parts in every module.
            let (Some(a), Some(b), Some(magnitude)) = (module.a, module.b, module.magnitude) else {
                return refused(Refusal::HalfDora(module.path.to_owned()));
            };
            let found = self.one(module, a, b, magnitude)?;
            losses.push(self.judge(module, &found)?);
            let rank = u64::from(self.rank);
            let made = |of: &Tensor, shape, bytes| {
                let content = Content::Bytes(bytes);
                Outgoing { name: of.name.clone(), dtype: a.dtype, shape, content }
            };
            tensors.push(made(a, vec![rank, a.shape[1]], found.a));
            tensors.push(made(b, vec![b.shape[0], rank], found.b));
        }
        Ok((tensors, losses))
    }

    fn one(
        &self,
        module: &Module<'_>,
        a: &Tensor,
        b: &Tensor,
        magnitude: &Tensor,
    ) -> Result<Approximation, PrepareError> {
        let (weights, config) = (&self.source.weights, &self.source.config);
        let matrix = |tensor: &Tensor| -> Result<Matrix, PrepareError> {
            let values = weights.floats(tensor, MAX_FACTOR)?;
            Ok(Matrix::new(tensor.shape[0] as usize, tensor.shape[1] as usize, values))
        };
        let [outputs, inputs] = self.base.shape(module.in_model())?;
        let decomposed = Decomposed {
            weight: Matrix::new(outputs as usize, inputs as usize, self.base.read(module.in_model())?),
            a: matrix(a)?,
            b: matrix(b)?,
            magnitude: weights.floats(magnitude, MAX_FACTOR)?,
            scaling: config.scaling(),
        };
        let target = Target {
            rank: self.rank as usize,
            scaling: scaling(f64::from(self.rank), self.rank, config.use_rslora),
            float: weights.float(a)?,
        };
        Ok(decomposed.approximate(&target, module.in_model().as_bytes()))
    }

    /// An error that is not a number is above every limit.
    fn judge(&self, module: &Module<'_>, found: &Approximation) -> Result<Loss, PrepareError> {
        let (rank, limit) = (self.rank, self.max_error);
        if found.error <= limit {
            let (error, stripped_error) = (found.error, found.stripped_error);
            return Ok(Loss { module: module.in_model().to_owned(), error, stripped_error });
        }
        refused(Refusal::Approximation { module: module.path.to_owned(), rank, error: found.error, limit })
    }
}

fn refused<T>(refusal: Refusal) -> Result<T, PrepareError> {
    Err(PrepareError::Refused(vec![refusal]))
}

fn summary(losses: Vec<Loss>) -> Option<DoraReport> {
    let modules = losses.len();
    let mean_error = losses.iter().map(|loss| loss.error).sum::<f64>() / modules.max(1) as f64;
    let worst = losses.into_iter().max_by(|a, b| a.error.total_cmp(&b.error))?;
    Some(DoraReport::Svd { modules, mean_error, worst })
}

/// The report of a preparation that changed nothing; what the caller knows better is filled in by it.
fn unchanged(source: &Source, modules: usize) -> Report {
    let config = source.config();
    let file = FileReport { bytes: 0, digest: Digest::of(b"") };
    Report {
        schema: SCHEMA,
        content: source.content(),
        policy: file.digest,
        config: file,
        weights: file,
        base_model: None,
        served_base: Vec::new(),
        modules,
        trained_rank: config.rank,
        rank: config.rank,
        alpha: config.alpha,
        rslora: config.use_rslora,
        trained_target_modules: config.raw().get("target_modules").cloned().unwrap_or(Value::Null),
        target_modules: Vec::new(),
        removed_settings: Vec::new(),
        template: None,
        renamed: 0,
        dropped: Dropped::default(),
        dora: None,
        warnings: Vec::new(),
    }
}

fn configuration(source: &Source, changes: &mut Report) -> String {
    let mut config = source.config().raw().clone();
    for key in REMOVED {
        if config.remove(key).is_some() {
            changes.removed_settings.push(key.to_owned());
        }
    }
    if matches!(changes.dora, Some(DoraReport::Svd { .. })) {
        config.insert("r".to_owned(), json!(changes.rank));
        config.insert("lora_alpha".to_owned(), json!(changes.rank));
    }
    config.insert("peft_type".to_owned(), json!("LORA"));
    config.insert("use_dora".to_owned(), json!(false));
    config.insert("target_modules".to_owned(), json!(changes.target_modules));
    super::super::json::pretty(&Value::Object(config))
}

#[cfg(test)]
mod tests {
    use super::super::super::safetensors::Dtype;
    use super::*;

    #[test]
    fn tensors_that_would_have_one_name_are_refused() {
        let remap = Remap::to("base_model.model.model.language_model.layers.{suffix}".parse().unwrap());
        let tensor = |name: &str| {
            let content = Content::Bytes(vec![0; 2]);
            Outgoing { name: name.to_owned(), dtype: Dtype::F16, shape: vec![1], content }
        };
        let mut apart = [tensor("model.layers.0.q"), tensor("model.layers.1.q")];
        assert_eq!(rename(&mut apart, Some(&remap)).unwrap(), 2);
        for other in ["model.language_model.layers.0.q", "base_model.model.model.language_model.layers.0.q"] {
            let refusal = rename(&mut [tensor("model.layers.0.q"), tensor(other)], Some(&remap)).unwrap_err();
            let PrepareError::Refused(refusals) = refusal else { panic!("{refusal}") };
            let name = "base_model.model.model.language_model.layers.0.q".to_owned();
            assert_eq!(refusals, [Refusal::SameName(name)], "{other}");
        }
    }
}
