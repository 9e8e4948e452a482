//! Lion over flat parameter buffers.
//!
//! One step (Chen et al., arXiv:2302.06675; order of operations of lion-pytorch,
//! `lion_pytorch/lion_pytorch.py`): `p ← p·(1 − lr·wd)`, `p ← p − lr·sign(β₁m + (1 − β₁)g)`, `m ← β₂m + (1 −
//! β₂)g`; the sign of 0 is 0.

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
    /// Weight of the old momentum in the direction.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

/// Updates parameters and momentum in place; all `[1, n]`, `clip` as [`super::adamw::clip_factor`] wrote it.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn step(
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    m: ViewMut<'_>,
    hyper: Hyper,
) -> Result<()> {
    const OP: &str = "lion";
    expect_shape(OP, "gradient", &parameter.shape(), &gradient.shape())?;
    expect_shape(OP, "m", &parameter.shape(), &m.shape())?;
    expect_shape(OP, "clip", &[1, 2], &clip.shape())?;
    if parameter.on_gpu() {
        return cuda::step(OP, parameter, gradient, clip, m, hyper);
    }
    dispatch_real!(OP, parameter.dtype(), T => {
        cpu::step::<T>(parameter.cpu(OP)?, gradient.cpu(OP)?, clip.cpu(OP)?, m.cpu(OP)?, hyper);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::{adamw, check::*};
    use super::*;
    use crate::{DType, Tensor};

    const HYPER: Hyper = Hyper { lr: 0.01, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };

    /// The first direction is the sign of the gradient, whatever its size; a parameter without one only
    /// decays.
    #[test]
    fn the_first_step_moves_by_the_learning_rate() {
        let mut values = randn(DType::F64, &[1, 50_000], 2).to_f64().unwrap();
        values[7] = 0.0;
        let g = Tensor::from_f64(&crate::Device::cpu(), DType::F64, &values, &[1, 50_000]).unwrap();
        let run = |threads| {
            let (mut p, mut clip) = (randn(DType::F64, &[1, 50_000], 1), g.empty_like(&[1, 2]).unwrap());
            let mut m = Tensor::zeros(&p.device(), DType::F64, &[1, 50_000]).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                adamw::clip_factor(g.view(), Some(1.0), clip.view_mut()).unwrap();
                step(p.view_mut(), g.view(), clip.view(), m.view_mut(), HYPER).unwrap();
            });
            p.to_f64().unwrap()
        };
        let after = run(1);
        assert!(after == run(3));
        for ((after, before), g) in
            after.iter().zip(randn(DType::F64, &[1, 50_000], 1).to_f64().unwrap()).zip(values)
        {
            let sign = if g == 0.0 { 0.0 } else { g.signum() };
            assert!((after - (before * (1.0 - 1e-3) - 0.01 * sign)).abs() < 1e-12);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (mut p, g) = (randn(DType::F32, &[1, 30], 1), randn(DType::F32, &[1, 31], 2));
        let (clip, mut m) = (randn(DType::F32, &[1, 2], 3), randn(DType::F32, &[1, 30], 4));
        assert!(step(p.view_mut(), g.view(), clip.view(), m.view_mut(), HYPER).is_err());
    }

    #[test]
    fn gpus_agree() {
        for (n, at) in [(1000, 4), (1000, 1), (37, 0)] {
            against_cpu("lion", |on| {
                let (mut p, g) = (on.wide(&[n + 8], 1), on.wide(&[n + 8], 2));
                let (mut m, mut clip) = (on.wide(&[n + 8], 3), on.empty_wide(&[1, 2]));
                clip.fill(0.25).unwrap();
                let (to, m_to) = (p.matrix_mut(at, 1, n).unwrap(), m.matrix_mut(at, 1, n).unwrap());
                step(to, g.matrix(at, 1, n).unwrap(), clip.view(), m_to, HYPER).unwrap();
                vec![("p", p), ("m", m)]
            });
        }
    }
}
