//! As much linear algebra as the approximation of one weight needs: products of large matrices in `f32` on all cores, and
//! a truncated singular value decomposition by random projection
//! (Halko, Martinsson, Tropp 2011, <https://arxiv.org/abs/0909.4061>, algorithms 4.4 and 5.1).
//!
//! Results do not depend on the number of threads: every element is summed by one of them, in one order. Nothing is
//! random but by its seed.

mod product;
mod svd;

pub(super) use product::{times, transposed_times};
pub(super) use svd::{LowRank, low_rank};

/// Row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) data: Vec<f32>,
}

impl Matrix {
    pub(super) fn zero(rows: usize, columns: usize) -> Self {
        Self { rows, columns, data: vec![0.0; rows * columns] }
    }

    /// `data` has `rows * columns` elements.
    pub(super) fn new(rows: usize, columns: usize, data: Vec<f32>) -> Self {
        debug_assert_eq!(data.len(), rows * columns);
        Self { rows, columns, data }
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.columns..][..self.columns]
    }
}

/// `to += factor * from`
pub(super) fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}
