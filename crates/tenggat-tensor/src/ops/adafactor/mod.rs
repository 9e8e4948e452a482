//! Adafactor on one matrix: a second moment that is kept as one number per row and one per column.
//!
//! One step (Shazeer and Stern, arXiv:1804.04235; order of operations of transformers,
//! `src/transformers/optimization.py`, and of ai-toolkit's copy, `toolkit/optimizers/adafactor.py`), with `q
//! = g² + eps`: `r ← β₂r + (1 − β₂)·mean over columns of q`, `c ← β₂c + (1 − β₂)·mean over rows of q`,
//! `u = g / √(r/mean(r)) / √c`, `u ← lr·u / max(1, rms(u)/threshold)`; with a first moment `m ← β₁m + (1 −
//! β₁)u`, `u = m`; `p ← p − lr·wd·p`, `p ← p − u`. With `scale_floor`, lr is multiplied by `max(scale_floor,
//! rms(p))` beforehand.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Error, Result, View, ViewMut};

/// Settings of one step.
#[derive(Debug, Clone, Copy)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the second moment at this step.
    pub beta2: f64,
    /// Added to the square of the gradient.
    pub eps: f64,
    /// Root mean square of an update from which on it is scaled down.
    pub threshold: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Scales the learning rate by the root mean square of the parameters, but by no less than this.
    pub scale_floor: Option<f64>,
}

/// The state of one matrix of `[m, n]`.
#[derive(Debug)]
pub struct State<'a> {
    /// Second moment by row, `[1, m]`.
    pub rows: ViewMut<'a>,
    /// Second moment by column, `[1, n]`.
    pub columns: ViewMut<'a>,
    /// First moment, `[m, n]`, and its decay, if there is one.
    pub first: Option<(ViewMut<'a>, f64)>,
}

/// Updates parameters and state in place; parameter and gradient `[m, n]`, `clip` as
/// [`super::adamw::clip_factor`] wrote it. The results do not depend on the number of threads.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn step(
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    state: State<'_>,
    hyper: Hyper,
) -> Result<()> {
    const OP: &str = "adafactor";
    let [m, n] = parameter.shape();
    expect_shape(OP, "gradient", &[m, n], &gradient.shape())?;
    expect_shape(OP, "clip", &[1, 2], &clip.shape())?;
    expect_shape(OP, "rows", &[1, m], &state.rows.shape())?;
    expect_shape(OP, "columns", &[1, n], &state.columns.shape())?;
    if let Some((first, _)) = &state.first {
        expect_shape(OP, "first moment", &[m, n], &first.shape())?;
    }
    if parameter.on_gpu() {
        return cuda::step(OP, parameter, gradient, clip, state, hyper);
    }
    dispatch_real!(OP, parameter.dtype(), T => {
        let first = state.first.map(|(first, beta1)| Ok::<_, Error>((first.cpu::<T>(OP)?, beta1))).transpose()?;
        let (rows, columns) = (state.rows.cpu(OP)?, state.columns.cpu(OP)?);
        cpu::step::<T>(parameter.cpu(OP)?, gradient.cpu(OP)?, clip.cpu(OP)?, (rows, columns, first), hyper);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::{adamw, check::*, copy};
    use super::*;
    use crate::{DType, Tensor};

    const HYPER: Hyper =
        Hyper { lr: 0.1, beta2: 0.0, eps: 1e-30, threshold: 1.0, weight_decay: 0.0, scale_floor: None };

    fn run(g: &Tensor, threads: usize) -> (Vec<f64>, Vec<f64>) {
        let [m, n] = g.view().shape();
        let zeros = |n| Tensor::zeros(&g.device(), g.dtype(), &[1, n]).unwrap();
        let (mut rows, mut columns, mut clip) = (zeros(m), zeros(n), zeros(2));
        let mut p = Tensor::zeros(&g.device(), g.dtype(), &[m, n]).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            adamw::clip_factor(g.view(), None, clip.view_mut()).unwrap();
            let state = State { rows: rows.view_mut(), columns: columns.view_mut(), first: None };
            step(p.view_mut(), g.view(), clip.view(), state, HYPER).unwrap();
        });
        (p.to_f64().unwrap(), rows.to_f64().unwrap())
    }

    /// For a gradient of rank one in magnitude, |g| = a·bᵀ, rows and columns say everything: the first update
    /// is lr·sign(g).
    #[test]
    fn the_first_step_of_a_gradient_of_rank_one_is_its_sign() {
        let (m, n) = (37, 600);
        let value = |i: usize, j: usize| {
            let sign = if (i * 7 + j * 3) % 5 < 2 { -1.0 } else { 1.0 };
            sign * (1.0 + i as f64) * (0.5 + (j % 11) as f64)
        };
        let values: Vec<f64> = (0..m * n).map(|k| value(k / n, k % n)).collect();
        let g = Tensor::from_f64(&crate::Device::cpu_poisoned(), DType::F64, &values, &[m, n]).unwrap();
        let (p, rows) = run(&g, 2);
        assert!(p.iter().zip(&values).all(|(p, g)| (p + 0.1 * g.signum()).abs() < 1e-12));
        let mean = values[..n].iter().map(|g| g * g).sum::<f64>() / n as f64;
        assert!((rows[0] / mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let g = randn(DType::F32, &[500, 700], 1);
        assert!(run(&g, 1) == run(&g, 3));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (mut p, g, clip) =
            (randn(DType::F32, &[3, 4], 1), randn(DType::F32, &[3, 4], 2), randn(DType::F32, &[1, 2], 3));
        let (mut rows, mut columns) = (randn(DType::F32, &[1, 4], 4), randn(DType::F32, &[1, 3], 5));
        let state = State { rows: rows.view_mut(), columns: columns.view_mut(), first: None };
        assert!(step(p.view_mut(), g.view(), clip.view(), state, HYPER).is_err());
    }

    /// Rows shorter and longer than a block, with every part of a step and with none of those that may be
    /// left out, on matrices that can be read in packs and ones that cannot. The second step uses what
    /// the first one left.
    #[test]
    fn gpus_agree() {
        let full = Hyper {
            beta2: 0.7,
            eps: 1e-3,
            threshold: 0.5,
            weight_decay: 0.2,
            scale_floor: Some(1e-3),
            ..HYPER
        };
        for (m, n, beta1, hyper) in [
            (16, 1100, None, HYPER),
            (37, 16, Some(0.9), full),
            (5, 7, Some(0.5), full),
            (600, 3, None, full),
        ] {
            against_cpu("adafactor", |on| {
                let (mut p, g) = (on.wide(&[m, n], 1), on.wide(&[m, n], 2));
                let (mut rows, mut columns) = (on.wide(&[1, m], 3), on.wide(&[1, n], 4));
                for moment in [&mut rows, &mut columns] {
                    copy::multiply(moment.duplicate().unwrap().view(), moment.view_mut()).unwrap();
                }
                let (mut first, mut clip) = (on.wide(&[m, n], 5), on.empty_wide(&[1, 2]));
                clip.fill(0.25).unwrap();
                for hyper in [hyper, Hyper { threshold: 1e3, ..hyper }] {
                    let state = State {
                        rows: rows.view_mut(),
                        columns: columns.view_mut(),
                        first: beta1.map(|beta1| (first.view_mut(), beta1)),
                    };
                    step(p.view_mut(), g.view(), clip.view(), state, hyper).unwrap();
                }
                vec![("p", p), ("rows", rows), ("columns", columns), ("first", first)]
            });
        }
    }
}
