//! The small factor of a Kronecker product applied to every row.
//!
//! A weight `W₁ ⊗ W₂` (`W₁: [l, q]`, `W₂: [k, n]`) turns x, seen as a matrix `X: [q, n]`, into `W₁·(X·W₂ᵀ)`.
//! `T = X·W₂ᵀ` is a plain product over all rows at once; this op is the rest: every row of t holds a `T: [q,
//! k]` and every row of y a `Y: [l, k]`, row-major. Forward: `Y += alpha · W₁·T`. Backward: `dT = alpha ·
//! W₁ᵀ·dY`, `dW₁ = beta · dW₁ + alpha · Σ_rows dY·Tᵀ`.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// `Y += alpha · W₁·T` in every row; w1: `[l, q]`, t: `[m, q·k]`, y: `[m, l·k]`. On a GPU w1 may have the
/// type of sums of the others ([`DType::wide`](crate::DType::wide)).
///
/// # Errors
/// Shapes or types do not fit.
pub fn forward(alpha: f64, w1: View<'_>, t: View<'_>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "kronecker";
    check_shapes(OP, w1, t, y.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, alpha, w1, t, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward::<T>(alpha as T, w1.cpu(OP)?, t.cpu(OP)?, y.cpu(OP)?);
        Ok(())
    })
}

/// Gradients of [`forward`]: dt (`[m, q·k]`) is written, dw1 (`[l, q]`, in the type of sums of the others)
/// becomes `beta · dw1` plus its gradient.
///
/// # Errors
/// As there.
#[allow(clippy::too_many_arguments)] // what forward takes, with its gradients
pub fn backward(
    alpha: f64,
    w1: View<'_>,
    t: View<'_>,
    dy: View<'_>,
    beta: f64,
    dw1: ViewMut<'_>,
    dt: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "kronecker backward";
    check_shapes(OP, w1, t, dy.shape())?;
    expect_shape(OP, "dw1", &w1.shape(), &dw1.shape())?;
    expect_shape(OP, "dt", &t.shape(), &dt.shape())?;
    if dt.on_gpu() {
        cuda::backward_t(OP, alpha, w1, dy, dt)?;
        return cuda::backward_w1(OP, alpha, t, dy, beta, dw1);
    }
    dispatch_real!(OP, dt.dtype(), T => {
        let (w1, dy) = (w1.cpu(OP)?, dy.cpu(OP)?);
        cpu::backward_t::<T>(alpha as T, w1, dy, dt.cpu(OP)?);
        cpu::backward_w1::<T>(alpha as T, t.cpu(OP)?, dy, beta as T, dw1.cpu(OP)?);
        Ok(())
    })
}

fn check_shapes(op: &'static str, w1: View<'_>, t: View<'_>, y: [usize; 2]) -> Result<()> {
    let [l, q] = w1.shape();
    let k = t.cols() / q.max(1);
    expect_shape(op, "t", &[t.rows(), q * k], &t.shape())?;
    expect_shape(op, "y", &[t.rows(), l * k], &y)
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const M: usize = 37;
    const L: usize = 3;
    const Q: usize = 4;
    const K: usize = 5;

    fn inputs() -> [Tensor; 3] {
        [(&[L, Q], 1), (&[M, Q * K], 2), (&[M, L * K], 3)].map(|(shape, seed)| randn(DType::F64, shape, seed))
    }

    fn run(w1: &Tensor, t: &Tensor) -> Tensor {
        let mut y = t.empty_like(&[M, L * K]).unwrap();
        y.fill(0.5).unwrap();
        forward(0.7, w1.view(), t.view(), y.view_mut()).unwrap();
        y
    }

    #[test]
    fn rows_are_products_of_matrices() {
        let [w1, t, _] = inputs();
        let (y, w, t) = (run(&w1, &t).to_f64().unwrap(), w1.to_f64().unwrap(), t.to_f64().unwrap());
        for (row, i, o) in [(0, 0, 0), (5, 2, 4), (M - 1, 1, 3)] {
            let sum: f64 = (0..Q).map(|j| w[i * Q + j] * t[row * Q * K + j * K + o]).sum();
            assert!((y[row * L * K + i * K + o] - 0.5 - 0.7 * sum).abs() < 1e-12);
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        let [w1, t, dy] = inputs();
        let weighed = |y: &Tensor| -> f64 {
            y.to_f64().unwrap().iter().zip(dy.to_f64().unwrap()).map(|(y, d)| y * d).sum()
        };
        let (mut dw1, mut dt) = (w1.empty_like(w1.shape()).unwrap(), t.empty_like(t.shape()).unwrap());
        let mut twice = w1.empty_like(w1.shape()).unwrap();
        let mut call = |beta, dw1: &mut Tensor| {
            let (w1, t, dt) = (w1.view(), t.view(), dt.view_mut());
            backward(0.7, w1, t, dy.view(), beta, dw1.view_mut(), dt).unwrap();
        };
        call(0.0, &mut dw1);
        call(0.0, &mut twice);
        call(1.0, &mut twice);
        finite_differences("dw1", &w1, &dw1, |w1| weighed(&run(w1, &t)));
        finite_differences("dt", &t, &dt, |t| weighed(&run(&w1, t)));
        for (a, b) in twice.to_f64().unwrap().iter().zip(dw1.to_f64().unwrap()) {
            assert!((a - 2.0 * b).abs() < 1e-12);
        }
    }

    /// Rows of one chunk and of several; small matrices that a pack fits into and ones that it does not, of
    /// whole groups of four rows and not; y as part of a wider matrix.
    #[test]
    fn gpus_agree() {
        for (m, l, q, k) in [(37, 3, 5, 8), (150, 4, 8, 16), (70, 9, 2, 5)] {
            against_cpu("kronecker", |on| {
                let (w1, t) = (on.wide(&[l, q], 1), on.randn(&[m, q * k], 2));
                let (narrow, mut y) = (on.randn(&[l, q], 3), on.randn(&[m, 2 * l * k], 4));
                forward(0.7, w1.view(), t.view(), y.view_mut().columns(l * k..2 * l * k)).unwrap();
                forward(-0.5, narrow.view(), t.view(), y.view_mut().columns(0..l * k)).unwrap();
                let dy = on.randn(&[m, 2 * l * k], 5);
                let dy = dy.view().columns(l * k..2 * l * k);
                let (mut fresh, mut more) = (on.empty_wide(&[l, q]), on.wide(&[l, q], 6));
                let mut dt = on.empty(&[m, q * k]);
                for (beta, dw1) in [(0.0, &mut fresh), (1.0, &mut more)] {
                    backward(0.7, w1.view(), t.view(), dy, beta, dw1.view_mut(), dt.view_mut()).unwrap();
                }
                vec![("y", y), ("dt", dt), ("dw1", fresh), ("added dw1", more)]
            });
        }
    }
}
