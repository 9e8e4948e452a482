//! Softmax of each row: `y = exp(x − max x) / Σ exp(x − max x)`.
//!
//! For attention whose scores are laid out whole, because something is added to them. Forward only: it
//! belongs to frozen text encoders.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Scores to probabilities. x: `[m, n]` in the wide type of y, n at least 1; y: `[m, n]`.
///
/// # Errors
/// Shapes do not fit, or types are others.
pub fn forward(x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "softmax";
    expect_shape(OP, "x", &y.shape(), &x.shape())?;
    expect_shape(OP, "columns (at least one)", &[x.cols().max(1)], &[x.cols()])?;
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
    use crate::{DType, Device, Tensor};

    #[test]
    fn matches_the_definition() {
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            let x = randn(DType::F64, &[20, 33], 1).to_dtype(dtype).unwrap();
            let mut y = x.empty_like(&[20, 33]).unwrap();
            forward(x.view(), y.view_mut()).unwrap();
            let (x, y) = (x.to_f64().unwrap(), y.to_f64().unwrap());
            for (x, y) in x.chunks(33).zip(y.chunks(33)) {
                let total: f64 = x.iter().map(|v| v.exp()).sum();
                assert!(x.iter().zip(y).all(|(x, y)| (x.exp() / total - y).abs() < tolerance));
            }
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let x = Tensor::from_f64(&Device::cpu_poisoned(), DType::F32, &[1e4, -1e4, 1e4], &[1, 3]).unwrap();
        let mut y = x.empty_like(&[1, 3]).unwrap();
        forward(x.view(), y.view_mut()).unwrap();
        let y = y.to_f32().unwrap();
        assert!(y[0] == 0.5 && y[1] < 1e-37 && y[2] == 0.5, "{y:?}");
    }

    /// More columns than a warp takes at once, fewer, and one.
    #[test]
    fn gpus_agree() {
        for (m, n) in [(37, 300), (5, 7), (3, 1)] {
            against_cpu("softmax", |on| {
                let (x, mut y) = (on.wide(&[m, n], 1), on.empty(&[m, n]));
                forward(x.view(), y.view_mut()).unwrap();
                vec![("y", y)]
            });
        }
    }
}
