//! General matrix product, `C = alpha · op(A) · op(B) + beta · C`.
//!
//! With `beta == 0`, C is not read. Backward of `C = A · B` is two more products:
//! `dA = dC · Bᵀ` ([`nt`]) and `dB = Aᵀ · dC` ([`tn`]).

mod cpu;
pub(crate) mod cuda;
pub(crate) mod strips;
pub(crate) use cpu::{Operand, Shared, kernel, product, product_serial};

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// `C = alpha · A · B + beta · C`; a: `[m, k]`, b: `[k, n]`, c: `[m, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn nn(alpha: f64, a: View<'_>, b: View<'_>, beta: f64, c: ViewMut<'_>) -> Result<()> {
    run("gemm nn", alpha, (a, false), (b, false), beta, c)
}

/// `C = alpha · A · Bᵀ + beta · C`; a: `[m, k]`, b: `[n, k]`, c: `[m, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn nt(alpha: f64, a: View<'_>, b: View<'_>, beta: f64, c: ViewMut<'_>) -> Result<()> {
    run("gemm nt", alpha, (a, false), (b, true), beta, c)
}

/// `C = alpha · Aᵀ · B + beta · C`; a: `[k, m]`, b: `[k, n]`, c: `[m, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn tn(alpha: f64, a: View<'_>, b: View<'_>, beta: f64, c: ViewMut<'_>) -> Result<()> {
    run("gemm tn", alpha, (a, true), (b, false), beta, c)
}

/// `n` products side by side: columns `i` of C, cut into n equal parts, become `alpha ·` columns i of A `·`
/// (rows i of B)`ᵀ + beta ·` what they were. a: `[m, n·k]`, b: `[n·p, k]`, c: `[m, n·p]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn nt_parts(n: usize, alpha: f64, a: View<'_>, b: View<'_>, beta: f64, c: ViewMut<'_>) -> Result<()> {
    const CUTS: [Cut; 3] = [Cut::Columns, Cut::Rows, Cut::Columns];
    parts("gemm nt in parts", n, alpha, (a, false), (b, true), beta, c, CUTS)
}

/// `n` products side by side: columns `i` of C become `alpha ·` columns i of A `·` rows i of B `+ beta ·`
/// what they were. a: `[m, n·k]`, b: `[n·k, p]`, c: `[m, n·p]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn nn_parts(n: usize, alpha: f64, a: View<'_>, b: View<'_>, beta: f64, c: ViewMut<'_>) -> Result<()> {
    const CUTS: [Cut; 3] = [Cut::Columns, Cut::Rows, Cut::Columns];
    parts("gemm nn in parts", n, alpha, (a, false), (b, false), beta, c, CUTS)
}

/// `n` products one below the other: rows `i` of C become `alpha ·` (columns i of A)`ᵀ ·` columns i of B `+
/// beta ·` what they were. a: `[m, n·k]`, b: `[m, n·p]`, c: `[n·k, p]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn tn_parts(n: usize, alpha: f64, a: View<'_>, b: View<'_>, beta: f64, c: ViewMut<'_>) -> Result<()> {
    const CUTS: [Cut; 3] = [Cut::Columns, Cut::Columns, Cut::Rows];
    parts("gemm tn in parts", n, alpha, (a, true), (b, false), beta, c, CUTS)
}

/// How a matrix is cut into equal parts.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Rows,
    Columns,
}

impl Cut {
    /// Shape of one of `n` parts of a matrix.
    fn part(self, n: usize, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            Cut::Rows => [rows / n, cols],
            Cut::Columns => [rows, cols / n],
        }
    }

    /// Part `i` of a matrix.
    fn of(self, n: usize, i: usize, whole: View<'_>) -> View<'_> {
        let [rows, cols] = self.part(n, whole.shape());
        match self {
            Cut::Rows => whole.row_range(i * rows..(i + 1) * rows),
            Cut::Columns => whole.columns(i * cols..(i + 1) * cols),
        }
    }

    /// The same to be written.
    fn of_mut(self, n: usize, i: usize, whole: ViewMut<'_>) -> ViewMut<'_> {
        let [rows, cols] = self.part(n, whole.shape());
        match self {
            Cut::Rows => whole.row_range(i * rows..(i + 1) * rows),
            Cut::Columns => whole.columns(i * cols..(i + 1) * cols),
        }
    }
}

/// Products of parts of matrices; a GPU takes them at once.
#[allow(clippy::too_many_arguments)] // those of `run`, and how operands are cut
fn parts(
    op: &'static str,
    n: usize,
    alpha: f64,
    (a, a_transposed): (View<'_>, bool),
    (b, b_transposed): (View<'_>, bool),
    beta: f64,
    mut c: ViewMut<'_>,
    cuts: [Cut; 3],
) -> Result<()> {
    for ((what, shape), cut) in [("a", a.shape()), ("b", b.shape()), ("c", c.shape())].into_iter().zip(cuts) {
        let part = cut.part(n.max(1), shape);
        let whole = match cut {
            Cut::Rows => [part[0] * n, part[1]],
            Cut::Columns => [part[0], part[1] * n],
        };
        expect_shape(op, what, &whole, &shape)?;
    }
    if n > 1 && c.on_gpu() {
        let shapes = [cuts[0].part(n, a.shape()), cuts[1].part(n, b.shape()), cuts[2].part(n, c.shape())];
        expect_product(op, (shapes[0], a_transposed), (shapes[1], b_transposed), shapes[2])?;
        let parts = [0, 1, 2].map(|i| (cuts[i], shapes[i]));
        return cuda::parts(op, n, alpha, (a, a_transposed), (b, b_transposed), beta, c, parts);
    }
    (0..n).try_for_each(|i| {
        let to = cuts[2].of_mut(n, i, c.reborrow());
        run(op, alpha, (cuts[0].of(n, i, a), a_transposed), (cuts[1].of(n, i, b), b_transposed), beta, to)
    })
}

/// `C = alpha · A · Bᵀ + bias + beta · C` on a GPU, the bias (`[1, n]`) added to every row.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub(crate) fn nt_with_bias(
    a: View<'_>,
    b: View<'_>,
    bias: View<'_>,
    beta: f64,
    c: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "gemm nt with bias";
    expect_shape(OP, "bias", &[1, c.cols()], &bias.shape())?;
    expect_product(OP, (a.shape(), false), (b.shape(), true), c.shape())?;
    cuda::product(OP, 1.0, (a, false), (b, true), beta, Some(bias), c)
}

/// Checks that shapes fit `C = op(A) · op(B)`.
fn expect_product(
    op: &'static str,
    (a, a_transposed): ([usize; 2], bool),
    (b, b_transposed): ([usize; 2], bool),
    c: [usize; 2],
) -> Result<()> {
    let (m, k) = if a_transposed { (a[1], a[0]) } else { (a[0], a[1]) };
    let (kb, n) = if b_transposed { (b[1], b[0]) } else { (b[0], b[1]) };
    expect_shape(op, "inner axis of b", &[k], &[kb])?;
    expect_shape(op, "c", &[m, n], &c)
}

pub(crate) fn run(
    op: &'static str,
    alpha: f64,
    (a, a_transposed): (View<'_>, bool),
    (b, b_transposed): (View<'_>, bool),
    beta: f64,
    c: ViewMut<'_>,
) -> Result<()> {
    expect_product(op, (a.shape(), a_transposed), (b.shape(), b_transposed), c.shape())?;
    if c.on_gpu() {
        return cuda::product(op, alpha, (a, a_transposed), (b, b_transposed), beta, None, c);
    }
    dispatch_real!(op, c.dtype(), T => {
        let a = Operand::new(a.cpu::<T>(op)?, a_transposed);
        let b = Operand::new(b.cpu::<T>(op)?, b_transposed);
        product(alpha as T, a, b, beta as T, c.cpu::<T>(op)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    fn naive(a: &Tensor, ta: bool, b: &Tensor, tb: bool, alpha: f64, beta: f64, c: &Tensor) -> Tensor {
        let at = |x: &Tensor, t: bool, i: usize, j: usize| {
            let (s, v) = (x.shape()[1], x.to_f64().unwrap());
            if t { v[j * s + i] } else { v[i * s + j] }
        };
        let (m, n) = (c.shape()[0], c.shape()[1]);
        let k = if ta { a.shape()[0] } else { a.shape()[1] };
        let old = c.to_f64().unwrap();
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|l| at(a, ta, i, l) * at(b, tb, l, j)).sum();
                out[i * n + j] = alpha * sum + if beta == 0.0 { 0.0 } else { beta * old[i * n + j] };
            }
        }
        Tensor::from_f64(&c.device(), DType::F64, &out, &[m, n]).unwrap()
    }

    #[test]
    fn agrees_with_three_loops_in_every_layout() {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
            for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 1, 9), (1, 33, 8), (40, 70, 30), (0, 4, 3)] {
                for (ta, tb) in [(false, false), (false, true), (true, false)] {
                    for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0), (-1.0, 0.25)] {
                        let a = randn(dtype, &if ta { [k, m] } else { [m, k] }, 1);
                        let b = randn(dtype, &if tb { [n, k] } else { [k, n] }, 2);
                        let mut c = if beta == 0.0 {
                            a.empty_like(&[m, n]).unwrap() // poisoned: beta = 0 must not read it
                        } else {
                            randn(dtype, &[m, n], 3)
                        };
                        let expected = naive(&a, ta, &b, tb, alpha, beta, &c);
                        run("gemm", alpha, (a.view(), ta), (b.view(), tb), beta, c.view_mut()).unwrap();
                        assert_close(&format!("{m}x{n}x{k} {ta} {tb}"), &c, &expected, tolerance);
                    }
                }
            }
        }
    }

    /// Each part is the product of the operands' parts, and nothing beside them is written.
    #[test]
    fn parts_are_products_of_parts() {
        let (n, m, k, p) = (3, 9, 5, 16);
        against_cpu("gemm in parts", |on| {
            let (a, b, bt) = (on.randn(&[m, n * k], 1), on.randn(&[n * k, p], 2), on.randn(&[n * p, k], 3));
            let wide = on.randn(&[m, n * p], 4);
            let (mut first, mut second, mut third) =
                (on.randn(&[m, n * p + 8], 5), on.empty(&[m, n * p]), on.wide(&[n * k, p], 6));
            nt_parts(n, 0.7, a.view(), bt.view(), 1.0, first.view_mut().columns(8..n * p + 8)).unwrap();
            nn_parts(n, -0.7, a.view(), b.view(), 0.0, second.view_mut()).unwrap();
            tn_parts(n, 1.0, a.view(), wide.view(), 0.5, third.view_mut()).unwrap();
            vec![("nt", first), ("nn", second), ("tn", third)]
        });
        let (a, b) = (randn(DType::F64, &[m, n * k], 1), randn(DType::F64, &[n * p, k], 2));
        let mut c = a.empty_like(&[m, n * p]).unwrap();
        nt_parts(n, 1.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap();
        for i in 0..n {
            let mut part = a.empty_like(&[m, p]).unwrap();
            let (a, b) = (a.view().columns(i * k..(i + 1) * k), b.view().row_range(i * p..(i + 1) * p));
            nt(1.0, a, b, 0.0, part.view_mut()).unwrap();
            let mut got = part.empty_like(&[m, p]).unwrap();
            super::super::copy::forward(c.view().columns(i * p..(i + 1) * p), got.view_mut()).unwrap();
            assert_eq!(got.to_f64().unwrap(), part.to_f64().unwrap());
        }
        let error = nt_parts(2, 1.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap_err().to_string();
        assert!(error.contains("gemm nt in parts"), "{error}");
    }

    #[test]
    fn works_on_column_slices() {
        let (a, b) = (randn(DType::F64, &[6, 10], 1), randn(DType::F64, &[4, 10], 2));
        let mut wide = Tensor::zeros(&a.device(), DType::F64, &[6, 9]).unwrap();
        nt(1.0, a.view().columns(2..9), b.view().columns(3..10), 0.0, wide.view_mut().columns(5..9)).unwrap();
        let values = wide.to_f64().unwrap();
        let (av, bv) = (a.to_f64().unwrap(), b.to_f64().unwrap());
        for i in 0..6 {
            for j in 0..9 {
                let expected: f64 = if j < 5 {
                    0.0
                } else {
                    (0..7).map(|l| av[i * 10 + 2 + l] * bv[(j - 5) * 10 + 3 + l]).sum()
                };
                assert!((values[i * 9 + j] - expected).abs() < 1e-12, "({i}, {j})");
            }
        }
    }

    #[test]
    fn any_thread_count_gives_the_same_bits() {
        let (a, b) = (randn(DType::F32, &[333, 257], 1), randn(DType::F32, &[515, 257], 2));
        let run_with = |threads: usize| {
            let mut c = a.empty_like(&[333, 515]).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| nt(1.0, a.view(), b.view(), 0.0, c.view_mut())).unwrap();
            c.to_f32().unwrap()
        };
        let one = run_with(1);
        assert!((2..6).all(|threads| run_with(threads) == one));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let a = randn(DType::F32, &[2, 3], 1);
        let mut c = a.empty_like(&[2, 2]).unwrap();
        let message = nn(1.0, a.view(), a.view(), 0.0, c.view_mut()).unwrap_err().to_string();
        assert!(message.contains("inner axis of b: expected [3], got [2]"), "{message}");
    }

    #[test]
    fn gpus_agree() {
        let (m, n, k) = (37, 24, 48);
        against_cpu("gemm", |on| {
            let (a, b, bt) = (on.randn(&[m, k], 1), on.randn(&[k, n], 2), on.randn(&[n, k], 3));
            let (at, bias) = (on.randn(&[k, m], 4), on.randn(&[1, n], 5));
            let (mut first, mut second, mut third) =
                (on.empty(&[m, n]), on.randn(&[m, 2 * n], 6), on.wide(&[m, n], 7));
            let mut fourth = on.randn(&[m, n], 9);
            nn(0.7, a.view(), b.view(), 0.0, first.view_mut()).unwrap();
            nt(-0.7, a.view(), bt.view(), 1.0, second.view_mut().columns(n..2 * n)).unwrap();
            tn(1.0, at.view(), b.view(), 0.5, third.view_mut()).unwrap();
            if matches!(on.device(), crate::Device::Cuda(_)) {
                nt_with_bias(a.view(), bt.view(), bias.view(), 0.5, fourth.view_mut()).unwrap();
            } else {
                let mut sums = on.empty(&[m, n]);
                super::super::copy::broadcast_row(bias.view(), sums.view_mut()).unwrap();
                super::super::copy::add_scaled(0.5, fourth.view(), sums.view_mut()).unwrap();
                nt(1.0, a.view(), bt.view(), 1.0, sums.view_mut()).unwrap();
                fourth = sums;
            }
            // bf16 that lies at no multiple of 4 bytes, next to 32-bit numbers.
            let (odd, mut fifth) = (on.randn(&[m, k + 1], 8), on.empty_wide(&[m, n]));
            nn(1.0, odd.view().columns(1..k + 1), b.view(), 0.0, fifth.view_mut()).unwrap();
            vec![("nn", first), ("nt", second), ("tn", third), ("with bias", fourth), ("odd", fifth)]
        });
    }
}
