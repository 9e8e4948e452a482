//! SwiGLU gate: `y = silu(g) · u` with `silu(g) = g / (1 + e^−g)`.
//!
//! Forward only: it belongs to the frozen text encoder.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Gates. x: `[m, 2n]` = g | u; y: `[m, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "swiglu";
    expect_shape(OP, "x", &[y.rows(), 2 * y.cols()], &x.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, x, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward::<T>(x.cpu(OP)?, y.cpu(OP)?);
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
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 3e-6)] {
            let x = randn(DType::F64, &[20, 14], 1).to_dtype(dtype).unwrap();
            let mut y = x.empty_like(&[20, 7]).unwrap();
            forward(x.view(), y.view_mut()).unwrap();
            let (x, y) = (x.to_f64().unwrap(), y.to_f64().unwrap());
            for (x, y) in x.chunks(14).zip(y.chunks(7)) {
                for j in 0..7 {
                    assert!((y[j] - x[j] / (1.0 + (-x[j]).exp()) * x[7 + j]).abs() < tolerance);
                }
            }
        }
    }

    #[test]
    fn gpus_agree() {
        for (m, n) in [(20, 16), (5, 7), (33, 136)] {
            against_cpu("swiglu", |on| {
                let (x, mut y) = (on.randn(&[m, 2 * n], 1), on.empty(&[m, n]));
                forward(x.view(), y.view_mut()).unwrap();
                vec![("y", y)]
            });
        }
    }
}
