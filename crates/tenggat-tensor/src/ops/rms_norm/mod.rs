//! RMS norm of each row with a weight per column: `y = x / √(mean(x²) + eps) · w`.
//!
//! Forward only: it stands in front of frozen layers (text embedding, text encoder), below which nothing is
//! trained.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Norms each row. x, y: `[m, n]`; weight: `[1, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, weight: View<'_>, eps: f64, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "rms_norm";
    expect_shape(OP, "weight", &[1, x.cols()], &weight.shape())?;
    expect_shape(OP, "y", &x.shape(), &y.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, x, weight, eps, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward::<T>(x.cpu(OP)?, weight.cpu(OP)?, eps, y.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::DType;

    #[test]
    fn divides_by_the_root_mean_square() {
        let (x, w) = (randn(DType::F64, &[20, 33], 1), randn(DType::F64, &[1, 33], 2));
        let (mut y, mut single) = (x.empty_like(&[20, 33]).unwrap(), randn(DType::F32, &[20, 33], 3));
        forward(x.view(), w.view(), 1e-6, y.view_mut()).unwrap();
        let cast = |t: &crate::Tensor| t.to_dtype(DType::F32).unwrap();
        forward(cast(&x).view(), cast(&w).view(), 1e-6, single.view_mut()).unwrap();
        let (xv, wv, yv) = (x.to_f64().unwrap(), w.to_f64().unwrap(), y.to_f64().unwrap());
        for (row, out) in xv.chunks(33).zip(yv.chunks(33)) {
            let rms = (row.iter().map(|v| v * v).sum::<f64>() / 33.0 + 1e-6).sqrt();
            assert!((0..33).all(|j| (out[j] - row[j] / rms * wv[j]).abs() < 1e-12));
        }
        assert_close("f32", &single, &y, 2e-6);
    }

    #[test]
    fn gpus_agree() {
        for shape in [[5, 3000], [3, 7]] {
            against_cpu("rms norm", |on| {
                let (x, weight, mut y) = (on.randn(&shape, 1), on.randn(&[1, shape[1]], 2), on.empty(&shape));
                forward(x.view(), weight.view(), 1e-6, y.view_mut()).unwrap();
                vec![("y", y)]
            });
        }
    }
}
