//! The best approximation of a matrix by one of low rank.

use super::{Matrix, times, transposed_times};

/// More directions than asked for, and refinements of them: both make the projection find what it must not miss.
const OVERSAMPLING: usize = 8;
const REFINEMENTS: usize = 2;

/// One-sided Jacobi converges in about ten sweeps.
const MAX_SWEEPS: usize = 60;
const ORTHOGONAL: f64 = 1e-14;

/// A direction this much shorter than it was has nothing of its own left.
const DEPENDENT: f64 = 1e-12;

/// `left · right`, each with the root of the singular values.
#[derive(Debug)]
pub(in crate::adapters) struct LowRank {
    /// Rows by rank.
    pub(in crate::adapters) left: Matrix,
    /// Rank by columns.
    pub(in crate::adapters) right: Matrix,
}

/// Vectors as they stand side by side in a matrix.
type Columns = Vec<Vec<f64>>;

/// Where `rank` is more than the matrix can have, the rest is zero.
pub(in crate::adapters) fn low_rank(d: &Matrix, rank: usize, seed: &[u8]) -> LowRank {
    let most = d.rows.min(d.columns);
    let width = (rank + OVERSAMPLING).min(most);
    let mut directions = orthogonal(columns(&times(d, &noise(d.columns, width, seed)))).0;
    for _ in 0..REFINEMENTS {
        let back = orthogonal(columns(&transposed_times(d, &matrix(&directions)))).0;
        directions = orthogonal(columns(&times(d, &matrix(&back)))).0;
    }
    // d ≈ Q Bᵀ with B = dᵀ Q = P R, and Rᵀ = U S Vᵀ is small.
    let (p, r) = orthogonal(columns(&transposed_times(d, &matrix(&directions))));
    let (u_scaled, v) = jacobi(transposed(&r));
    let mut order: Vec<usize> = (0..width).collect();
    let values: Vec<f64> = u_scaled.iter().map(|column| norm(column)).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let mut found = LowRank { left: Matrix::zero(d.rows, rank), right: Matrix::zero(rank, d.columns) };
    for (to, from) in order.into_iter().take(rank).enumerate().filter(|(_, from)| values[*from] > 0.0) {
        let root = values[from].sqrt();
        for (row, value) in combined(&directions, &u_scaled[from]).into_iter().enumerate() {
            found.left.data[row * rank + to] = (value / root) as f32;
        }
        for (column, value) in combined(&p, &v[from]).into_iter().enumerate() {
            found.right.data[to * d.columns + column] = (value * root) as f32;
        }
    }
    found
}

/// Numbers from -1 to 1 that depend on the seed alone.
fn noise(rows: usize, columns: usize, seed: &[u8]) -> Matrix {
    let mut stream = blake3::Hasher::new().update(b"warmd/noise/1").update(seed).finalize_xof();
    let mut bytes = vec![0; rows * columns * 4];
    stream.fill(&mut bytes);
    let number = |four: &[u8; 4]| i32::from_le_bytes(*four) as f32 / 2_147_483_648.0;
    Matrix::new(rows, columns, bytes.as_chunks::<4>().0.iter().map(number).collect())
}

fn columns(m: &Matrix) -> Columns {
    (0..m.columns)
        .map(|column| m.data.iter().skip(column).step_by(m.columns).map(|x| f64::from(*x)).collect())
        .collect()
}

fn matrix(columns: &Columns) -> Matrix {
    let rows = columns.first().map_or(0, Vec::len);
    let mut m = Matrix::zero(rows, columns.len());
    for (at, column) in columns.iter().enumerate() {
        for (row, value) in column.iter().enumerate() {
            m.data[row * columns.len() + at] = *value as f32;
        }
    }
    m
}

fn transposed(columns: &Columns) -> Columns {
    let rows = columns.first().map_or(0, Vec::len);
    (0..rows).map(|row| columns.iter().map(|column| column[row]).collect()).collect()
}

/// The sum of `columns`, each by its factor.
fn combined(columns: &Columns, factors: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; columns.first().map_or(0, Vec::len)];
    for (column, factor) in columns.iter().zip(factors) {
        add(&mut sum, *factor, column);
    }
    sum
}

fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(column: &[f64]) -> f64 {
    dot(column, column).sqrt()
}

/// Orthonormal columns `q` and the triangle `r` with `q · r` = the columns, by Gram-Schmidt, twice for its accuracy. A
/// column that depends on those before it becomes zero.
fn orthogonal(mut columns: Columns) -> (Columns, Columns) {
    let mut r: Columns = vec![vec![0.0; columns.len()]; columns.len()];
    for (at, factors) in r.iter_mut().enumerate() {
        let (before, rest) = columns.split_at_mut(at);
        let column = &mut rest[0];
        let length = norm(column);
        for _ in 0..2 {
            for (factor, q) in factors.iter_mut().zip(before.iter()) {
                let along = dot(q, column);
                *factor += along;
                add(column, -along, q);
            }
        }
        let left = norm(column);
        if left <= length * DEPENDENT {
            column.fill(0.0);
            continue;
        }
        factors[at] = left;
        column.iter_mut().for_each(|value| *value /= left);
    }
    (columns, r)
}

/// Rotates the columns of a square matrix until they are orthogonal: `m · v = u · s`. Gives `u · s` and `v`.
fn jacobi(mut m: Columns) -> (Columns, Columns) {
    let count = m.len();
    let mut v: Columns = (0..count).map(|at| (0..count).map(|row| f64::from(u8::from(row == at))).collect()).collect();
    for _ in 0..MAX_SWEEPS {
        let mut rotated = false;
        for i in 0..count {
            for j in i + 1..count {
                let (a, b, along) = (dot(&m[i], &m[i]), dot(&m[j], &m[j]), dot(&m[i], &m[j]));
                if along.abs() <= ORTHOGONAL * (a * b).sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (b - a) / (2.0 * along);
                let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                rotate(&mut m, i, j, cosine, cosine * tangent);
                rotate(&mut v, i, j, cosine, cosine * tangent);
            }
        }
        if !rotated {
            break;
        }
    }
    (m, v)
}

fn rotate(columns: &mut Columns, i: usize, j: usize, cosine: f64, sine: f64) {
    let (head, tail) = columns.split_at_mut(j);
    for (a, b) in head[i].iter_mut().zip(&mut tail[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn product(found: &LowRank) -> Matrix {
        times(&found.left, &found.right)
    }

    fn distance(a: &Matrix, b: &Matrix) -> f64 {
        a.data.iter().zip(&b.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    }

    fn size(m: &Matrix) -> f64 {
        distance(m, &Matrix::zero(m.rows, m.columns))
    }

    /// With these singular values.
    fn made(rows: usize, columns_: usize, values: &[f64]) -> Matrix {
        let basis = |length, seed: &[u8]| orthogonal(columns(&noise(length, values.len(), seed))).0;
        let (u, v) = (basis(rows, b"u"), basis(columns_, b"v"));
        let mut m = Matrix::zero(rows, columns_);
        for ((u, v), value) in u.iter().zip(&v).zip(values) {
            for (row, u) in u.iter().enumerate() {
                for (column, v) in v.iter().enumerate() {
                    m.data[row * columns_ + column] += (u * v * value) as f32;
                }
            }
        }
        m
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_exactly() {
        let m = made(120, 70, &[9.0, 4.0, 1.0, 0.25]);
        let found = low_rank(&m, 4, b"seed");
        assert!(distance(&product(&found), &m) < 1e-5 * size(&m));
    }

    #[test]
    fn what_is_lost_is_what_the_smaller_singular_values_hold() {
        let values: Vec<f64> = (0..60).map(|at| 0.8f64.powi(at)).collect();
        let m = made(80, 90, &values);
        for rank in [1, 5, 16] {
            let best = values[rank..].iter().map(|value| value * value).sum::<f64>().sqrt();
            let lost = distance(&product(&low_rank(&m, rank, b"seed")), &m);
            assert!(lost >= best * 0.999 && lost <= best * 1.01, "rank {rank}: {lost} of {best}");
        }
    }

    #[test]
    fn a_rank_beyond_the_matrix_is_padded_with_zeros() {
        let m = made(6, 3, &[2.0, 1.0, 0.5]);
        let found = low_rank(&m, 8, b"seed");
        assert_eq!((found.left.columns, found.right.rows), (8, 8));
        assert!(distance(&product(&found), &m) < 1e-5);
        let none = low_rank(&Matrix::zero(6, 3), 2, b"seed");
        assert_eq!(size(&product(&none)), 0.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_one_thread_and_on_many() {
        let m = made(200, 300, &[5.0, 3.0, 2.0, 1.0, 0.5, 0.1]);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| low_rank(&m, 3, b"seed"))
        };
        let (one, many) = (on(1), on(4));
        assert_eq!((one.left, one.right), (many.left, many.right));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_whole_rank_gives_the_whole_matrix(
            (n, m) in (1usize..12, 1usize..12),
            values in prop::collection::vec(prop_oneof![1 => Just(0.0f32), 4 => -9f32..9.0], 144),
        ) {
            let d = Matrix::new(n, m, values[..n * m].to_vec());
            let found = low_rank(&d, n.min(m), b"seed");
            prop_assert!(distance(&product(&found), &d) <= 1e-4 * size(&d).max(1.0));
        }

        #[test]
        fn orthogonal_columns_are_so_and_span_what_they_were_made_of(values in prop::collection::vec(-9f64..9.0, 40)) {
            let given: Columns = values.chunks(10).map(<[f64]>::to_vec).collect();
            let (q, r) = orthogonal(given.clone());
            for (i, a) in q.iter().enumerate() {
                for (j, b) in q.iter().enumerate() {
                    let expected = f64::from(u8::from(i == j && norm(a) > 0.0));
                    prop_assert!((dot(a, b) - expected).abs() < 1e-10);
                }
            }
            for (given, factors) in given.iter().zip(&r) {
                let back = combined(&q, factors);
                prop_assert!(given.iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }

        #[test]
        fn jacobi_makes_columns_orthogonal_by_rotations(values in prop::collection::vec(-9f64..9.0, 36)) {
            let m: Columns = values.chunks(6).map(<[f64]>::to_vec).collect();
            let (u, v) = jacobi(m.clone());
            for i in 0..6 {
                prop_assert!(u.iter().skip(i + 1).all(|b| dot(&u[i], b).abs() < 1e-8));
                prop_assert!((norm(&v[i]) - 1.0).abs() < 1e-10);
                let moved = combined(&m, &v[i]);
                prop_assert!(moved.iter().zip(&u[i]).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }
    }
}
