//! Rotary position embedding that pairs channel `j` of a head with channel `j + d/2` (the "rotate half" form
//! of language models; the image transformer pairs neighbours, see `rms_norm_rope`):
//! `y_j = x_j cos_j − x_{j+d/2} sin_j`, `y_{j+d/2} = x_{j+d/2} cos_j + x_j sin_j`.
//!
//! Forward only: it belongs to the frozen text encoder.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Turns every head in place. table: `[m, d]` = d/2 cosines | d/2 sines, a row per token, in the type of sums
/// of x ([`DType::wide`](crate::DType::wide)); x: `[m, h·d]`.
///
/// # Errors
/// Shapes or types do not fit.
pub fn forward(table: View<'_>, heads: usize, x: ViewMut<'_>) -> Result<()> {
    const OP: &str = "rotary";
    let d = table.cols();
    expect_shape(OP, "head dimension, in pairs", &[d / 2 * 2], &[d])?;
    expect_shape(OP, "x", &[table.rows(), heads * d], &x.shape())?;
    if x.on_gpu() {
        return cuda::forward(OP, table, heads, x);
    }
    dispatch_real!(OP, x.dtype(), T => {
        cpu::forward::<T>(table.cpu(OP)?, x.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    #[test]
    fn turns_each_pair_by_its_angle() {
        let (m, heads, d) = (21, 3, 8);
        let angles = randn(DType::F64, &[m, d / 2], 1).to_f64().unwrap();
        let table: Vec<f64> = angles
            .chunks(d / 2)
            .flat_map(|row| {
                row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())).collect::<Vec<_>>()
            })
            .collect();
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            let x = randn(DType::F64, &[m, heads * d], 2).to_dtype(dtype).unwrap();
            let table = Tensor::from_f64(&x.device(), dtype, &table, &[m, d]).unwrap();
            let mut y = x.duplicate().unwrap();
            forward(table.view(), heads, y.view_mut()).unwrap();
            let (x, y) = (x.to_f64().unwrap(), y.to_f64().unwrap());
            for (token, head, j) in
                (0..m).flat_map(|t| (0..heads).flat_map(move |h| (0..d / 2).map(move |j| (t, h, j))))
            {
                let (a, at) = (angles[token * d / 2 + j], (token * heads + head) * d + j);
                // As a complex number: y = x · e^{ia}.
                let (re, im) = (x[at], x[at + d / 2]);
                assert!((y[at] - (re * a.cos() - im * a.sin())).abs() < tolerance);
                assert!((y[at + d / 2] - (re * a.sin() + im * a.cos())).abs() < tolerance);
            }
        }
    }

    #[test]
    fn gpus_agree() {
        for (heads, d, before) in [(3, 16, 0), (2, 16, 2), (3, 6, 0)] {
            against_cpu("rotary", |on| {
                let (table, mut x) = (on.wide(&[21, d], 1), on.randn(&[21, before + heads * d], 2));
                let turned = x.view_mut().columns(before..before + heads * d);
                forward(table.view(), heads, turned).unwrap();
                vec![("x", x)]
            });
        }
    }
}
