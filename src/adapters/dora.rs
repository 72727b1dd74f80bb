//! Weight-decomposed adapters (<https://arxiv.org/abs/2402.09353>): each output of `W + s·B·A` is scaled to a trained
//! length, its magnitude. What that does to the base weight has full rank; a plain adapter comes near it.

use rayon::prelude::*;

use super::linalg::{LowRank, Matrix, add_scaled, low_rank};
use super::safetensors::Float;

/// One decomposed module, all in memory.
#[derive(Debug)]
pub(super) struct Decomposed {
    /// Of the base model: outputs by inputs.
    pub(super) weight: Matrix,
    /// Rank by inputs.
    pub(super) a: Matrix,
    /// Outputs by rank.
    pub(super) b: Matrix,
    /// One per output.
    pub(super) magnitude: Vec<f32>,
    /// What `B·A` is multiplied by.
    pub(super) scaling: f64,
}

/// What the approximation shall be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) rank: usize,
    /// What the engine will multiply `B·A` by.
    pub(super) scaling: f64,
    /// How its numbers are stored; the error counts what rounding loses.
    pub(super) float: Float,
}

/// A plain adapter, as it is stored, and how far it is from the exact one.
#[derive(Debug)]
pub(super) struct Approximation {
    pub(super) a: Vec<u8>,
    pub(super) b: Vec<u8>,
    /// Frobenius norm of the difference by that of the exact change.
    pub(super) error: f64,
    /// The same if the magnitudes were just dropped.
    pub(super) stripped_error: f64,
}

impl Decomposed {
    /// `W' - W`, where row i of `W'` is row i of `W + s·B·A` scaled to length `magnitude[i]`.
    fn change(self) -> Matrix {
        let Self { mut weight, a, b, magnitude, scaling } = self;
        let columns = weight.columns.max(1);
        weight.data.par_chunks_mut(columns).zip(&magnitude).enumerate().for_each(|(row, (base, magnitude))| {
            let mut moved = base.to_vec();
            for (factor, a) in b.row(row).iter().zip(a.data.chunks_exact(columns)) {
                add_scaled(&mut moved, (f64::from(*factor) * scaling) as f32, a);
            }
            let length = moved.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            // An output that is nothing has no direction to be scaled in.
            let factor = if length > 0.0 { f64::from(*magnitude) / length } else { 0.0 };
            for (base, moved) in base.iter_mut().zip(moved) {
                *base = (f64::from(moved) * factor - f64::from(*base)) as f32;
            }
        });
        weight
    }

    /// `seed` is any text that tells this module from others.
    pub(super) fn approximate(self, target: &Target, seed: &[u8]) -> Approximation {
        let Target { rank, scaling, float } = *target;
        let stripped = LowRank { left: scaled(&self.b, self.scaling), right: self.a.clone() };
        let exact = self.change();
        let LowRank { left, right } = low_rank(&exact, rank, seed);
        let (a, b) = (float.encode(&right.data), float.encode(&scaled(&left, 1.0 / scaling).data));
        let read = |bytes: &[u8], rows, columns| {
            let mut values = Vec::with_capacity(rows * columns);
            float.decode(bytes, &mut values);
            Matrix::new(rows, columns, values)
        };
        let stored = LowRank {
            left: scaled(&read(&b, left.rows, left.columns), scaling),
            right: read(&a, right.rows, right.columns),
        };
        let (error, stripped_error) = (relative_error(&exact, &stored), relative_error(&exact, &stripped));
        Approximation { a, b, error, stripped_error }
    }
}

fn scaled(m: &Matrix, factor: f64) -> Matrix {
    Matrix::new(m.rows, m.columns, m.data.iter().map(|value| (f64::from(*value) * factor) as f32).collect())
}

/// Not a number where the product is none; 0 where there is nothing to approximate and nothing was made.
fn relative_error(exact: &Matrix, found: &LowRank) -> f64 {
    let columns = exact.columns.max(1);
    let part = |(row, exact): (usize, &[f32])| {
        let mut sums = vec![0.0; columns];
        for (factor, right) in found.left.row(row).iter().zip(found.right.data.chunks_exact(columns)) {
            add_scaled(&mut sums, *factor, right);
        }
        let square = |value: f64| value * value;
        let lost = exact.iter().zip(sums).map(|(exact, sum)| square(f64::from(*exact) - f64::from(sum))).sum::<f64>();
        (lost, exact.iter().map(|value| square(f64::from(*value))).sum::<f64>())
    };
    // Summed in the order of the rows, whoever computed them.
    let parts: Vec<(f64, f64)> = exact.data.par_chunks(columns).enumerate().map(part).collect();
    let (lost, whole) = parts.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    if lost == 0.0 { 0.0 } else { (lost / whole).sqrt() }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::adapters::safetensors::{Limits, Weights};

    fn recorded(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(format!("{name}.safetensors"))
    }

    fn read(file: &str, name: &str) -> Matrix {
        let weights = Weights::open(&recorded(file), &Limits::BASE).unwrap();
        let tensor = weights.header().tensors().iter().find(|tensor| tensor.name == name).unwrap();
        let shape: Vec<usize> = tensor.shape.iter().map(|size| *size as usize).collect();
        Matrix::new(shape[0], *shape.get(1).unwrap_or(&1), weights.floats(tensor, 1 << 20).unwrap())
    }

    /// Of the adapters that the real library made.
    fn decomposed(adapter: &str, module: &str, scaling: f64) -> Decomposed {
        let part = |end: &str| read(&format!("{adapter}/adapter_model"), &format!("base_model.model.{module}.{end}"));
        Decomposed {
            weight: read("base/model", &format!("{module}.weight")),
            a: part("lora_A.weight"),
            b: part("lora_B.weight"),
            magnitude: part("lora_magnitude_vector").data,
            scaling,
        }
    }

    const MODULES: [(&str, &str, f64); 4] = [
        ("dora", "model.layers.0.self_attn.q_proj", 2.0),
        ("dora", "model.layers.0.self_attn.v_proj", 2.0),
        ("dora", "model.layers.0.mlp.down_proj", 2.0),
        ("dora-rslora", "model.layers.0.self_attn.k_proj", 4.0),
    ];

    #[test]
    fn the_change_is_what_the_training_library_merges() {
        for (adapter, module, scaling) in MODULES {
            let exact = read(&format!("exact/{adapter}"), &format!("{module}.weight"));
            let change = decomposed(adapter, module, scaling).change();
            let worst = change.data.iter().zip(&exact.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-7, "{module}: {worst}");
        }
    }

    #[test]
    fn an_approximation_of_full_rank_loses_nothing_and_one_of_low_rank_says_what() {
        for (adapter, module, scaling) in MODULES {
            let at = |rank, float| {
                let target = Target { rank, scaling: 0.5, float };
                decomposed(adapter, module, scaling).approximate(&target, module.as_bytes())
            };
            let whole = at(32, Float::F32);
            assert!(whole.error < 1e-5, "{module}: {}", whole.error);
            let (low, rounded) = (at(4, Float::F32), at(4, Float::Bf16));
            assert!(low.error > whole.error && low.error < low.stripped_error, "{module}: {low:?}");
            assert!(rounded.error >= low.error * 0.99 && rounded.error < low.error + 0.01);
        }
    }

    #[test]
    fn numbers_that_overflow_are_no_small_error() {
        let mut huge = decomposed("dora", "model.layers.0.self_attn.q_proj", 2.0);
        huge.magnitude[0] = f32::MAX;
        huge.weight.data[0] = f32::MAX;
        let found = huge.approximate(&Target { rank: 4, scaling: 1.0, float: Float::F16 }, b"x");
        assert!(found.error.is_nan() || found.error >= 0.5, "{}", found.error);
    }
}
