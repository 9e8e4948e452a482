//! Prodigy: Adam that finds its step size from how far the parameters have come, over flat parameter buffers.
//!
//! One step (Mishchenko and Defazio, arXiv:2306.06101, algorithm 4; order of operations of prodigyopt,
//! `prodigyopt/prodigy.py`) has two passes with a decision between them. With `e = d·lr·c`, where c is 1 or
//! Adam's bias correction, [`accumulate`] does `g ← g + l2·p`, `m ← β₁m + d(1 − β₁)g`, `v ← β₂v + d²(1 −
//! β₂)g²`, `s ← β₃s + (d/d₀)·w·g` with w = e (or d, to guard a warm-up), and returns `(d/d₀)·e·⟨g, p₀ − p⟩`
//! and `‖s‖₁`. The caller makes a new d of them, and [`update`] does `p ← p − e·wd·p`, `p ← p − e·m / (√v +
//! d·eps)` with the old e and the new d.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Settings of the first pass.
#[derive(Debug, Clone, Copy)]
pub struct Accumulate {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decay of the sum of gradients.
    pub beta3: f64,
    /// So many times the parameter is added to the gradient.
    pub l2: f64,
    /// The step size estimate d before this step.
    pub d: f64,
    /// Weight of the gradient in the sum, `(d/d₀)·w`.
    pub sum_weight: f64,
    /// Weight of the distance, `(d/d₀)·e`.
    pub distance_weight: f64,
}

/// Settings of the second pass.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Step size, e.
    pub step_size: f64,
    /// `d·eps` with the new d.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by e.
    pub weight_decay: f64,
}

/// The buffers of the first pass, all `[1, n]`.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// Where the parameters started.
    pub start: View<'a>,
    /// First moment.
    pub m: ViewMut<'a>,
    /// Second moment.
    pub v: ViewMut<'a>,
    /// Sum of gradients.
    pub s: ViewMut<'a>,
}

/// First pass; parameter and gradient `[1, n]`, `clip` as [`super::adamw::clip_factor`] wrote it. Returns the
/// weighted distance and the 1-norm of s, summed in an order that the number of threads does not change.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn accumulate(
    parameter: View<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    buffers: Buffers<'_>,
    hyper: Accumulate,
) -> Result<(f64, f64)> {
    const OP: &str = "prodigy, first pass";
    let Buffers { start, m, v, s } = buffers;
    let shapes = [("gradient", gradient.shape()), ("start", start.shape()), ("m", m.shape())];
    for (what, shape) in shapes.into_iter().chain([("v", v.shape()), ("s", s.shape())]) {
        expect_shape(OP, what, &parameter.shape(), &shape)?;
    }
    expect_shape(OP, "clip", &[1, 2], &clip.shape())?;
    if m.on_gpu() {
        return cuda::accumulate(OP, parameter, gradient, clip, Buffers { start, m, v, s }, hyper);
    }
    dispatch_real!(OP, parameter.dtype(), T => {
        let (parameter, gradient, start) = (parameter.cpu::<T>(OP)?, gradient.cpu(OP)?, start.cpu(OP)?);
        Ok(cpu::accumulate::<T>(parameter, gradient, clip.cpu(OP)?, start, [m.cpu(OP)?, v.cpu(OP)?, s.cpu(OP)?], hyper))
    })
}

/// Second pass; all `[1, n]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn update(parameter: ViewMut<'_>, m: View<'_>, v: View<'_>, hyper: Update) -> Result<()> {
    const OP: &str = "prodigy, second pass";
    expect_shape(OP, "m", &parameter.shape(), &m.shape())?;
    expect_shape(OP, "v", &parameter.shape(), &v.shape())?;
    if parameter.on_gpu() {
        return cuda::update(OP, parameter, m, v, hyper);
    }
    dispatch_real!(OP, parameter.dtype(), T => {
        cpu::update::<T>(parameter.cpu(OP)?, m.cpu(OP)?, v.cpu(OP)?, hyper);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::{adamw, check::*, copy};
    use super::*;
    use crate::{DType, Tensor};

    const N: usize = 50_000;
    const HYPER: Accumulate = Accumulate {
        beta1: 0.9,
        beta2: 0.999,
        beta3: 0.99,
        l2: 0.0,
        d: 0.5,
        sum_weight: 2.0,
        distance_weight: 3.0,
    };

    /// From zeros m = d(1 − β₁)g and v = d²(1 − β₂)g², so that with eps 0 the step is e·(1 − β₁)/√(1 −
    /// β₂)·sign(g). The sums are those of a plain loop, and the same on any number of threads.
    #[test]
    fn the_first_step_and_its_sums() {
        let (g, start) = (randn(DType::F64, &[1, N], 1), randn(DType::F64, &[1, N], 2));
        let before = randn(DType::F64, &[1, N], 3);
        let run = |threads| {
            let zeros = || Tensor::zeros(&g.device(), DType::F64, &[1, N]).unwrap();
            let (mut m, mut v, mut s, mut clip) = (zeros(), zeros(), zeros(), g.empty_like(&[1, 2]).unwrap());
            let mut p = before.duplicate().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sums = pool.install(|| {
                adamw::clip_factor(g.view(), None, clip.view_mut()).unwrap();
                let buffers =
                    Buffers { start: start.view(), m: m.view_mut(), v: v.view_mut(), s: s.view_mut() };
                accumulate(p.view(), g.view(), clip.view(), buffers, HYPER).unwrap()
            });
            let hyper = Update { step_size: 0.01, eps: 0.0, weight_decay: 0.1 };
            update(p.view_mut(), m.view(), v.view(), hyper).unwrap();
            (sums, p.to_f64().unwrap())
        };
        let (sums, after) = run(1);
        assert!((sums, after.clone()) == run(3));
        let (g, start, before) = (g.to_f64().unwrap(), start.to_f64().unwrap(), before.to_f64().unwrap());
        let distance: f64 = (0..N).map(|i| g[i] * (start[i] - before[i])).sum();
        let size: f64 = g.iter().map(|g| 2.0 * g.abs()).sum();
        assert!((sums.0 - 3.0 * distance).abs() < 1e-8 && (sums.1 / size - 1.0).abs() < 1e-12, "{sums:?}");
        let length = 0.01 * 0.1 / 0.001f64.sqrt();
        for i in 0..N {
            assert!((after[i] - (before[i] * 0.999 - length * g[i].signum())).abs() < 1e-12);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (mut p, short) = (randn(DType::F32, &[1, 30], 1), randn(DType::F32, &[1, 29], 2));
        let hyper = Update { step_size: 0.01, eps: 0.0, weight_decay: 0.0 };
        assert!(update(p.view_mut(), short.view(), short.view(), hyper).is_err());
    }

    /// Several chunks, the last of them short.
    #[test]
    fn gpus_agree() {
        for (n, at) in [(40_000, 4), (20_001, 1), (37, 0)] {
            against_cpu("prodigy", |on| {
                let [p, g, start, m, s] = [1, 2, 3, 4, 5].map(|seed| on.wide(&[n + 8], seed));
                let (mut p, mut m, mut s, mut v) = (p, m, s, on.wide(&[n + 8], 6));
                copy::multiply(v.duplicate().unwrap().view(), v.view_mut()).unwrap();
                let mut clip = on.empty_wide(&[1, 2]);
                clip.fill(0.25).unwrap();
                let buffers = Buffers {
                    start: start.matrix(at, 1, n).unwrap(),
                    m: m.matrix_mut(at, 1, n).unwrap(),
                    v: v.matrix_mut(at, 1, n).unwrap(),
                    s: s.matrix_mut(at, 1, n).unwrap(),
                };
                let hyper = Accumulate { l2: 0.1, ..HYPER };
                let (from, g) = (p.matrix(at, 1, n).unwrap(), g.matrix(at, 1, n).unwrap());
                let sums = accumulate(from, g, clip.view(), buffers, hyper).unwrap();
                let hyper = Update { step_size: 0.01, eps: 1e-3, weight_decay: 0.1 };
                let (m_from, v_from) = (m.matrix(at, 1, n).unwrap(), v.matrix(at, 1, n).unwrap());
                update(p.matrix_mut(at, 1, n).unwrap(), m_from, v_from, hyper).unwrap();
                let one = |x: f64| Tensor::from_f64(on.device(), DType::F64, &[x], &[1]).unwrap();
                vec![("distance", one(sums.0)), ("size", one(sums.1)), ("m", m), ("v", v), ("s", s), ("p", p)]
            });
        }
    }
}
