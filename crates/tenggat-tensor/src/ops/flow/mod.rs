//! The straight path from data to noise: `x_t = (1 − σ)·x₀ + σ·noise`, and its velocity `noise − x₀`, the
//! target of flow matching (Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003).
//!
//! Forward only: neither x₀ nor noise is trained.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Writes the noisy latents and the target. x0, noise, noisy, target: `[b·tokens, c]`; σ: one per sample.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(
    x0: View<'_>,
    noise: View<'_>,
    sigmas: &[f64],
    noisy: ViewMut<'_>,
    target: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "flow";
    let batch = sigmas.len().max(1);
    expect_shape(OP, "rows of x0, by samples", &[x0.rows() / batch * batch], &[x0.rows()])?;
    for (what, shape) in [("noise", noise.shape()), ("noisy", noisy.shape()), ("target", target.shape())] {
        expect_shape(OP, what, &x0.shape(), &shape)?;
    }
    if noisy.on_gpu() {
        return cuda::forward(OP, [x0, noise], sigmas, [noisy, target]);
    }
    dispatch_real!(OP, noisy.dtype(), T => {
        cpu::forward::<T>(x0.cpu(OP)?, noise.cpu(OP)?, sigmas, noisy.cpu(OP)?, target.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::DType;

    #[test]
    fn moves_each_sample_by_its_own_sigma() {
        let (x0, noise) = (randn(DType::F64, &[6, 4], 1), randn(DType::F64, &[6, 4], 2));
        let (mut noisy, mut target) = (x0.empty_like(&[6, 4]).unwrap(), x0.empty_like(&[6, 4]).unwrap());
        forward(x0.view(), noise.view(), &[0.25, 1.0], noisy.view_mut(), target.view_mut()).unwrap();
        let (x, e) = (x0.to_f64().unwrap(), noise.to_f64().unwrap());
        let (n, t) = (noisy.to_f64().unwrap(), target.to_f64().unwrap());
        for i in 0..24 {
            let expected = if i < 12 { 0.75 * x[i] + 0.25 * e[i] } else { e[i] };
            assert!((n[i] - expected).abs() < 1e-15 && t[i] == e[i] - x[i]);
        }
    }

    #[test]
    fn gpus_agree() {
        against_cpu("flow", |on| {
            let shape = [70 * 3, 8];
            let (x0, noise) = (on.wide(&shape, 1), on.wide(&shape, 2));
            let (mut noisy, mut target) = (on.empty(&shape), on.empty_wide(&shape));
            let sigmas: Vec<f64> = (0..70).map(|i| i as f64 / 128.0).collect();
            forward(x0.view(), noise.view(), &sigmas, noisy.view_mut(), target.view_mut()).unwrap();
            vec![("noisy", noisy), ("target", target)]
        });
    }
}
