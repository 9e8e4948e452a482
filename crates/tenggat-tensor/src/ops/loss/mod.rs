//! Losses with a weight per sample: `L_s = mean(l(pred − target))` of sample s and `L = 1/b · Σ_s w_s · L_s`;
//! `dpred = w_s / (b·n) · l′(pred − target)` with n elements per sample.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// What is taken of each error e.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// `e²`; derivative `2e`.
    Squared,
    /// `|e|`; derivative the sign of e, 0 at 0.
    Absolute,
    /// `2c·(√(e² + c²) − c)`; derivative `2c·e / √(e² + c²)`. Quadratic near 0, straight far away.
    PseudoHuber {
        /// Where the one becomes the other, above 0.
        c: f64,
    },
}

/// Writes each sample's unweighted loss to `loss` (`[b, 1]`) and the gradient of the weighted mean to
/// `dpred`.
///
/// pred, dpred: `[b·tokens, c]`; target: the same in their wide type, as is `loss`; weights: one per sample.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward_backward(
    kind: Loss,
    pred: View<'_>,
    target: View<'_>,
    weights: &[f64],
    loss: ViewMut<'_>,
    dpred: ViewMut<'_>,
) -> Result<()> {
    masked_forward_backward(kind, pred, target, None, weights, loss, dpred)
}

/// The same with a weight for every element, `mask` of pred's shape: `L_s = mean(mask · l(pred − target))`.
///
/// # Errors
/// As there.
pub fn masked_forward_backward(
    kind: Loss,
    pred: View<'_>,
    target: View<'_>,
    mask: Option<View<'_>>,
    weights: &[f64],
    loss: ViewMut<'_>,
    dpred: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "loss";
    if let Some(mask) = mask {
        expect_shape(OP, "mask", &pred.shape(), &mask.shape())?;
    }
    let batch = weights.len();
    expect_shape(OP, "rows of pred, by samples", &[pred.rows() / batch.max(1) * batch], &[pred.rows()])?;
    expect_shape(OP, "target", &pred.shape(), &target.shape())?;
    expect_shape(OP, "dpred", &pred.shape(), &dpred.shape())?;
    expect_shape(OP, "loss", &[batch, 1], &loss.shape())?;
    if dpred.on_gpu() {
        return cuda::forward_backward(OP, kind, [pred, target], mask, weights, loss, dpred);
    }
    dispatch_real!(OP, dpred.dtype(), T => {
        let (pred, target) = (pred.cpu(OP)?, target.cpu(OP)?);
        let mask = mask.map(|mask| mask.cpu(OP)).transpose()?;
        cpu::forward_backward::<T>(kind, pred, target, mask, weights, loss.cpu(OP)?, dpred.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const KINDS: [Loss; 3] = [Loss::Squared, Loss::Absolute, Loss::PseudoHuber { c: 0.3 }];

    fn run(kind: Loss, pred: &Tensor, target: &Tensor, weights: &[f64]) -> (f64, Tensor) {
        let mut loss = pred.empty_like(&[weights.len(), 1]).unwrap();
        let mut d = pred.empty_like(pred.shape()).unwrap();
        forward_backward(kind, pred.view(), target.view(), weights, loss.view_mut(), d.view_mut()).unwrap();
        let per_sample = loss.to_f64().unwrap();
        let mean = per_sample.iter().zip(weights).map(|(l, w)| l * w).sum::<f64>() / weights.len() as f64;
        (mean, d)
    }

    #[test]
    fn backward_is_the_derivative() {
        let (pred, target) = (randn(DType::F64, &[6, 5], 1), randn(DType::F64, &[6, 5], 2));
        let weights = [0.5, 2.0];
        let by_hand: [fn(f64) -> f64; 3] =
            [|e| e * e, f64::abs, |e| 2.0 * 0.3 * ((e * e + 0.3f64.powi(2)).sqrt() - 0.3)];
        for (kind, one) in KINDS.into_iter().zip(by_hand) {
            let (loss, d) = run(kind, &pred, &target, &weights);
            let errors = pred.to_f64().unwrap().into_iter().zip(target.to_f64().unwrap());
            let expected: f64 =
                errors.enumerate().map(|(i, (p, t))| weights[i / 15] * one(p - t) / 30.0).sum();
            assert!((loss - expected).abs() < 1e-12, "{kind:?}");
            finite_differences("dpred", &pred, &d, |p| run(kind, p, &target, &weights).0);
        }
    }

    #[test]
    fn masks_weigh_every_element() {
        let (pred, target) = (randn(DType::F64, &[6, 5], 1), randn(DType::F64, &[6, 5], 2));
        let mask = randn(DType::F64, &[6, 5], 3);
        let weights = [0.5, 2.0];
        let run = |kind, pred: &Tensor| {
            let mut loss = pred.empty_like(&[2, 1]).unwrap();
            let mut d = pred.empty_like(pred.shape()).unwrap();
            let mask = Some(mask.view());
            let (losses, dpred) = (loss.view_mut(), d.view_mut());
            masked_forward_backward(kind, pred.view(), target.view(), mask, &weights, losses, dpred).unwrap();
            let mean = loss.to_f64().unwrap().iter().zip(weights).map(|(l, w)| l * w).sum::<f64>() / 2.0;
            (mean, d)
        };
        let (p, t, m) = (pred.to_f64().unwrap(), target.to_f64().unwrap(), mask.to_f64().unwrap());
        let expected: f64 = (0..30).map(|i| weights[i / 15] * m[i] * (p[i] - t[i]).powi(2) / 30.0).sum();
        assert!((run(Loss::Squared, &pred).0 - expected).abs() < 1e-12);
        for kind in KINDS {
            let (_, d) = run(kind, &pred);
            finite_differences("dpred", &pred, &d, |p| run(kind, p).0);
        }
    }

    #[test]
    fn no_error_has_no_gradient() {
        let pred = randn(DType::F32, &[3, 4], 1);
        for kind in KINDS {
            let (loss, d) = run(kind, &pred, &pred, &[1.0]);
            assert!(loss == 0.0 && d.to_f64().unwrap().iter().all(|&d| d == 0.0), "{kind:?}");
        }
    }

    #[test]
    fn f32_agrees_with_f64() {
        let (pred, target) = (randn(DType::F64, &[64, 64], 1), randn(DType::F64, &[64, 64], 2));
        let single = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        for kind in KINDS {
            let l64 = run(kind, &pred, &target, &[1.0]).0;
            let l32 = run(kind, &single(&pred), &single(&target), &[1.0]).0;
            assert!((l32 / l64 - 1.0).abs() < 1e-6, "{kind:?}: {l32} {l64}");
        }
    }

    #[test]
    fn a_gpu_takes_no_narrow_target() {
        let Some(gpu) = gpu() else { return };
        let narrow = || Tensor::zeros(&gpu, DType::BF16, &[4, 8]).unwrap();
        let (pred, target, mut dpred) = (narrow(), narrow(), narrow());
        let mut loss = pred.empty_wide(&[1, 1]).unwrap();
        let to = (loss.view_mut(), dpred.view_mut());
        let result = forward_backward(Loss::Squared, pred.view(), target.view(), &[1.0], to.0, to.1);
        assert!(matches!(result, Err(crate::Error::DType { .. })), "{result:?}");
    }

    #[test]
    fn gpus_agree() {
        for kind in KINDS {
            against_cpu("loss", |on| {
                let shape = [70 * 3, 8];
                let (pred, target, mask) = (on.randn(&shape, 1), on.wide(&shape, 2), on.wide(&shape, 3));
                let weights: Vec<f64> = (0..70).map(|i| f64::from(i) / 64.0).collect();
                let (mut loss, mut dpred) = (on.empty_wide(&[70, 1]), on.empty(&shape));
                let (mut plain, mut other) = (on.empty_wide(&[70, 1]), on.empty(&shape));
                let to = (loss.view_mut(), dpred.view_mut());
                let mask = Some(mask.view());
                masked_forward_backward(kind, pred.view(), target.view(), mask, &weights, to.0, to.1)
                    .unwrap();
                let to = (plain.view_mut(), other.view_mut());
                forward_backward(kind, pred.view(), target.view(), &weights, to.0, to.1).unwrap();
                vec![("masked loss", loss), ("dpred", dpred), ("loss", plain), ("its dpred", other)]
            });
        }
    }
}
