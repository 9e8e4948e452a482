//! Scale and shift per column: `y = x · scale + shift`.
//!
//! Forward only: it maps latents to and from unit variance, outside of everything trained.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, Tensor, View, ViewMut};

/// `y = x · scale + shift`; x, y: `[m, n]`; scale, shift: `[n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, scale: &Tensor, shift: &Tensor, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "scale_shift";
    expect_shape(OP, "scale", &[x.cols()], scale.shape())?;
    expect_shape(OP, "shift", &[x.cols()], shift.shape())?;
    expect_shape(OP, "y", &x.shape(), &y.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, x, scale.view(), shift.view(), y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward::<T>(x.cpu(OP)?, scale.host()?, shift.host()?, y.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::DType;

    #[test]
    fn each_column_has_its_own_scale() {
        for dtype in [DType::F64, DType::F32] {
            let make = |shape: &[usize], seed| randn(dtype, shape, seed);
            let (x, scale, shift) = (make(&[40, 5], 1), make(&[3], 2), make(&[3], 3));
            let mut y = x.empty_like(&[40, 3]).unwrap();
            forward(x.view().columns(1..4), &scale, &shift, y.view_mut()).unwrap();
            let [x, scale, shift, y] = [x, scale, shift, y].map(|t| t.to_f64().unwrap());
            for (i, y) in y.iter().enumerate() {
                let expected = x[i / 3 * 5 + 1 + i % 3] * scale[i % 3] + shift[i % 3];
                assert!((y - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn gpus_agree() {
        for (m, n, from) in [(40, 16, 0), (40, 16, 1), (3, 5, 2)] {
            against_cpu("scale_shift", |on| {
                let (x, scale) = (on.randn(&[m, n + 8], 1), on.randn(&[n], 2));
                let (shift, mut y) = (on.randn(&[n], 3), on.empty(&[m, n]));
                forward(x.view().columns(from..from + n), &scale, &shift, y.view_mut()).unwrap();
                vec![("y", y)]
            });
        }
    }
}
