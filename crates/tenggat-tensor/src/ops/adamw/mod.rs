//! AdamW with clipping by global norm, over flat parameter buffers.
//!
//! Step t (Loshchilov and Hutter, arXiv:1711.05101; order of operations of `torch.optim.AdamW`):
//! `p ← p·(1 − lr·wd)`, `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
//! `p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + eps)`.
//!
//! Adam (Kingma and Ba, arXiv:1412.6980; `torch.optim.Adam`) is the same with `g ← g + l2·p` in place of the
//! first.
//!
//! Clipping multiplies g by `min(1, max_norm / (‖g‖ + 1e-6))`, as `torch.nn.utils.clip_grad_norm_` does.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Settings of one step.
#[derive(Debug, Clone, Copy)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Coupled weight decay, Adam's: this multiple of the parameter is added to the gradient.
    pub l2: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

/// Writes to `clip` (`[1, 2]`) the norm of `gradient` and the factor that brings it down to `max_norm` (1 if
/// none).
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn clip_factor(gradient: View<'_>, max_norm: Option<f64>, clip: ViewMut<'_>) -> Result<()> {
    const OP: &str = "clip factor";
    expect_shape(OP, "clip", &[1, 2], &clip.shape())?;
    if clip.on_gpu() {
        return cuda::clip_factor(OP, gradient, max_norm, clip);
    }
    dispatch_real!(OP, clip.dtype(), T => {
        cpu::clip_factor::<T>(gradient.cpu(OP)?, max_norm, clip.cpu(OP)?);
        Ok(())
    })
}

/// Updates parameters and moments in place; all `[1, n]`, `clip` as [`clip_factor`] wrote it.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn step(
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    m: ViewMut<'_>,
    v: ViewMut<'_>,
    hyper: Hyper,
) -> Result<()> {
    const OP: &str = "adamw";
    for (what, shape) in [("gradient", gradient.shape()), ("m", m.shape()), ("v", v.shape())] {
        expect_shape(OP, what, &parameter.shape(), &shape)?;
    }
    expect_shape(OP, "clip", &[1, 2], &clip.shape())?;
    if parameter.on_gpu() {
        return cuda::step(OP, parameter, [gradient, clip], [m, v], hyper);
    }
    dispatch_real!(OP, parameter.dtype(), T => {
        cpu::step::<T>(parameter.cpu(OP)?, gradient.cpu(OP)?, clip.cpu(OP)?, m.cpu(OP)?, v.cpu(OP)?, hyper);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const HYPER: Hyper =
        Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, l2: 0.0, step: 1 };

    /// At step 1 with zero moments, m̂ = g and v̂ = g², so the step is lr·sign(g) after the decay.
    #[test]
    fn the_first_step_moves_by_the_learning_rate() {
        let (mut p, g) = (randn(DType::F64, &[1, 40], 1), randn(DType::F64, &[1, 40], 2));
        let before = p.to_f64().unwrap();
        let zeros = || Tensor::zeros(&p.device(), DType::F64, &[1, 40]).unwrap();
        let (mut m, mut v, mut clip) = (zeros(), zeros(), p.empty_like(&[1, 2]).unwrap());
        clip_factor(g.view(), None, clip.view_mut()).unwrap();
        step(p.view_mut(), g.view(), clip.view(), m.view_mut(), v.view_mut(), HYPER).unwrap();
        for ((after, before), g) in p.to_f64().unwrap().iter().zip(before).zip(g.to_f64().unwrap()) {
            assert!((after - (before * (1.0 - 1e-3) - 1e-2 * g.signum())).abs() < 1e-7);
        }
    }

    #[test]
    fn clips_to_the_norm() {
        let g = randn(DType::F32, &[1, 100_000], 3);
        let norm = g.to_f64().unwrap().iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut clip = g.empty_like(&[1, 2]).unwrap();
        for (limit, factor) in [(Some(1.0), 1.0 / (norm + 1e-6)), (Some(1e9), 1.0), (None, 1.0)] {
            clip_factor(g.view(), limit, clip.view_mut()).unwrap();
            let got = clip.to_f64().unwrap();
            assert!((got[0] / norm - 1.0).abs() < 1e-6, "{} {norm}", got[0]);
            assert!((got[1] / factor - 1.0).abs() < 1e-6, "{} {factor}", got[1]);
        }
    }

    #[test]
    fn gpus_agree() {
        for n in [3000, 77] {
            against_cpu("adamw", |on| {
                let (mut p, g) = (on.wide(&[1, n], 1), on.wide(&[1, n], 2));
                let (mut m, mut v) = (on.wide(&[1, n], 3), on.wide(&[1, n], 4));
                // Second moments are not negative.
                let root = v.duplicate().unwrap();
                crate::ops::copy::multiply(root.view(), v.view_mut()).unwrap();
                let mut clip = on.empty_wide(&[1, 2]);
                let hyper = Hyper { step: 3, l2: 0.01, ..HYPER };
                for (limit, step_number) in [(Some(1.0), 3), (None, 4)] {
                    clip_factor(g.view(), limit, clip.view_mut()).unwrap();
                    let hyper = Hyper { step: step_number, ..hyper };
                    step(p.view_mut(), g.view(), clip.view(), m.view_mut(), v.view_mut(), hyper).unwrap();
                }
                vec![("p", p), ("m", m), ("v", v), ("clip", clip)]
            });
        }
    }
}
