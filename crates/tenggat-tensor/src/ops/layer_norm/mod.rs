//! Layer norm of each row with a weight and a bias per column: `y = (x − μ)·ρ · w + b`,
//! `ρ = 1/√(var + eps)`.
//!
//! Forward only: it belongs to frozen text encoders, below which nothing is trained.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Norms each row. x, y: `[m, n]`; weight, bias: `[1, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, weight: View<'_>, bias: View<'_>, eps: f64, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "layer_norm";
    expect_shape(OP, "weight", &[1, x.cols()], &weight.shape())?;
    expect_shape(OP, "bias", &[1, x.cols()], &bias.shape())?;
    expect_shape(OP, "y", &x.shape(), &y.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, [x, weight, bias], eps, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward::<T>(x.cpu(OP)?, weight.cpu(OP)?, bias.cpu(OP)?, eps, y.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::DType;

    #[test]
    fn matches_the_definition() {
        // 20 and 33: several blocks of rows, and a ragged number of columns.
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
            let make = |shape: &[usize], seed| randn(DType::F64, shape, seed).to_dtype(dtype).unwrap();
            let (x, w, b) = (make(&[20, 33], 1), make(&[1, 33], 2), make(&[1, 33], 3));
            let mut y = x.empty_like(&[20, 33]).unwrap();
            forward(x.view(), w.view(), b.view(), 1e-5, y.view_mut()).unwrap();
            let [x, w, b, y] = [x, w, b, y].map(|t| t.to_f64().unwrap());
            for (row, out) in x.chunks(33).zip(y.chunks(33)) {
                let mean = row.iter().sum::<f64>() / 33.0;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 33.0;
                let rstd = 1.0 / (variance + 1e-5).sqrt();
                assert!((0..33).all(|j| (out[j] - ((row[j] - mean) * rstd * w[j] + b[j])).abs() < tolerance));
            }
        }
    }

    #[test]
    fn gpus_agree() {
        for shape in [[5, 3000], [3, 7]] {
            against_cpu("layer norm", |on| {
                let (x, mut y) = (on.randn(&shape, 1), on.empty(&shape));
                let (weight, bias) = (on.randn(&[1, shape[1]], 2), on.randn(&[1, shape[1]], 3));
                forward(x.view(), weight.view(), bias.view(), 1e-5, y.view_mut()).unwrap();
                vec![("y", y)]
            });
        }
    }
}
