//! Looks at every number of the weights before anything is made of them.

use rayon::prelude::*;

use super::super::keys::{Module, Modules};
use super::super::safetensors::{SafetensorsError, Tensor, Weights};
use super::{Dropped, Policy, PrepareError, Refusal};

/// What was found.
pub(super) struct Inspected {
    pub(super) dropped: Dropped,
}

/// Refuses numbers that are not finite, and a vision tower that was trained.
pub(super) fn inspect(
    weights: &Weights,
    policy: &Policy,
    in_time: &(dyn Fn() -> Result<(), PrepareError> + Sync),
) -> Result<Inspected, PrepareError> {
    let Modules { modules, strays } = Modules::of(weights.header());
    let (vision, kept): (Vec<&Module<'_>>, Vec<&Module<'_>>) =
        modules.iter().partition(|module| policy.vision.drops(module.path));
    kept.par_iter().flat_map_iter(|module| module.tensors()).try_for_each(|tensor| {
        in_time()?;
        let squares = squares(weights, tensor)?;
        if squares.is_finite() { Ok(()) } else { refused(Refusal::NotFinite(tensor.name.clone())) }
    })?;
    let mut dropped = Dropped::default();
    let stray = strays.into_iter().filter(|tensor| policy.vision.drops(&tensor.name));
    for tensor in stray {
        // Nobody knows what it would do.
        gate(squares(weights, tensor)?, &tensor.name, policy, &mut dropped)?;
        dropped.note(tensor);
    }
    for module in vision {
        in_time()?;
        check_vision(weights, module, policy, &mut dropped)?;
    }
    Ok(Inspected { dropped })
}

fn check_vision(
    weights: &Weights,
    module: &Module<'_>,
    policy: &Policy,
    dropped: &mut Dropped,
) -> Result<(), PrepareError> {
    if let Some(b) = module.b {
        gate(squares(weights, b)?, module.path, policy, dropped)?;
    }
    dropped.magnitudes += usize::from(module.magnitude.is_some());
    module.tensors().for_each(|tensor| dropped.note(tensor));
    Ok(())
}

/// A norm that is not a number is above every threshold.
fn gate(squares: f64, name: &str, policy: &Policy, dropped: &mut Dropped) -> Result<(), PrepareError> {
    let (norm, threshold) = (squares.sqrt(), policy.vision.threshold);
    if norm <= threshold {
        dropped.largest_norm = dropped.largest_norm.max(norm);
        return Ok(());
    }
    refused(Refusal::VisionTrained { module: name.to_owned(), norm, threshold })
}

fn refused<T>(refusal: Refusal) -> Result<T, PrepareError> {
    Err(PrepareError::Refused(vec![refusal]))
}

/// The sum of the squares of all elements; not finite if one of them is not. Squares of `f32` do not overflow an `f64`.
fn squares(weights: &Weights, tensor: &Tensor) -> Result<f64, SafetensorsError> {
    let float = weights.float(tensor)?;
    let (mut sum, mut values) = (0.0, Vec::new());
    weights.pieces(tensor, |piece| {
        values.clear();
        float.decode(piece, &mut values);
        sum += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        Ok(())
    })?;
    Ok(sum)
}
