//! Products with a tall, thin matrix: the inner loops run over rows that lie in cache, so that the compiler vectorises
//! them without reordering a sum.

use rayon::prelude::*;

use super::{Matrix, add_scaled};

/// Columns of the large matrix that one task takes: a row of them is a few cache lines, and their sums stay in cache.
const BLOCK: usize = 128;

/// Rows of the large matrix that are summed at once, so that a sum is loaded and stored less often.
const ROWS: usize = 4;

/// `d · x`
pub(in crate::adapters) fn times(d: &Matrix, x: &Matrix) -> Matrix {
    let mut out = Matrix::zero(d.rows, x.columns);
    if x.columns == 0 || d.columns == 0 {
        return out;
    }
    out.data.par_chunks_mut(x.columns).enumerate().for_each(|(row, sums)| {
        let (fours, rest) = d.row(row).as_chunks::<ROWS>();
        let mut xs = x.data.chunks_exact(x.columns);
        for four in fours {
            add_four(sums, four, &mut xs);
        }
        for (factor, x) in rest.iter().zip(xs) {
            add_scaled(sums, *factor, x);
        }
    });
    out
}

/// `dᵀ · y`
pub(in crate::adapters) fn transposed_times(d: &Matrix, y: &Matrix) -> Matrix {
    let width = y.columns;
    let mut out = Matrix::zero(d.columns, width);
    if width == 0 {
        return out;
    }
    out.data.par_chunks_mut(BLOCK * width).enumerate().for_each(|(block, sums)| {
        let first = block * BLOCK;
        let past = (first + BLOCK).min(d.columns);
        let mut row = 0;
        while row < d.rows {
            let many = ROWS.min(d.rows - row);
            for (column, sums) in (first..past).zip(sums.chunks_exact_mut(width)) {
                let mut ys = (row..row + many).map(|row| y.row(row));
                if many == ROWS {
                    let four = std::array::from_fn(|at| d.data[(row + at) * d.columns + column]);
                    add_four(sums, &four, &mut ys);
                } else {
                    (row..row + many)
                        .zip(ys)
                        .for_each(|(row, y)| add_scaled(sums, d.data[row * d.columns + column], y));
                }
            }
            row += many;
        }
    });
    out
}

/// Adds four scaled rows, which `rows` has.
fn add_four<'r>(sums: &mut [f32], factors: &[f32; ROWS], rows: &mut impl Iterator<Item = &'r [f32]>) {
    let mut next = || rows.next().unwrap_or_default();
    let (a, b, c, d) = (next(), next(), next(), next());
    for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *sum += factors[0] * a + factors[1] * b + factors[2] * c + factors[3] * d;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transposed(m: &Matrix) -> Matrix {
        let at = |index: usize| m.data[index % m.rows * m.columns + index / m.rows];
        Matrix::new(m.columns, m.rows, (0..m.data.len()).map(at).collect())
    }

    fn naive(a: &Matrix, b: &Matrix) -> Vec<f64> {
        let cell = |row: usize, column: usize| -> f64 {
            (0..a.columns).map(|at| f64::from(a.row(row)[at]) * f64::from(b.row(at)[column])).sum()
        };
        (0..a.rows).flat_map(|row| (0..b.columns).map(move |column| (row, column))).map(|(r, c)| cell(r, c)).collect()
    }

    proptest! {
        #[test]
        fn products_are_those_of_the_definition(
            (n, m, k) in (1usize..12, 1usize..300, 1usize..9),
            values in prop::collection::vec(-4f32..4.0, 12 * 300 + 300 * 9),
        ) {
            let d = Matrix::new(n, m, values[..n * m].to_vec());
            let x = Matrix::new(m, k, values[3600..3600 + m * k].to_vec());
            let close = |found: &Matrix, expected: Vec<f64>| {
                found.data.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-2)
            };
            prop_assert!(close(&times(&d, &x), naive(&d, &x)));
            let back = transposed(&d);
            prop_assert!(close(&transposed_times(&back, &x), naive(&d, &x)));
        }
    }
}
