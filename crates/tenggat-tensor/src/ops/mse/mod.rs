//! Mean squared error with a weight per sample: `L_s = mean((pred − target)²)` of sample s and
//! `L = 1/b · Σ_s w_s · L_s`; `dpred = 2·w_s / (b·n) · (pred − target)` with n elements per sample.

mod cpu;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Writes each sample's unweighted loss to `loss` (`[b, 1]`) and the gradient of the weighted mean to `dpred`.
///
/// pred, target, dpred: `[b·tokens, c]`; weights: one per sample.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward_backward(
    pred: View<'_>,
    target: View<'_>,
    weights: &[f64],
    loss: ViewMut<'_>,
    dpred: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "mse";
    let batch = weights.len();
    expect_shape(OP, "rows of pred, by samples", &[pred.rows() / batch.max(1) * batch], &[pred.rows()])?;
    expect_shape(OP, "target", &pred.shape(), &target.shape())?;
    expect_shape(OP, "dpred", &pred.shape(), &dpred.shape())?;
    expect_shape(OP, "loss", &[batch, 1], &loss.shape())?;
    dispatch_real!(OP, dpred.dtype(), T => {
        cpu::forward_backward::<T>(pred.cpu(OP)?, target.cpu(OP)?, weights, loss.cpu(OP)?, dpred.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    fn run(pred: &Tensor, target: &Tensor, weights: &[f64]) -> (f64, Tensor) {
        let mut loss = pred.empty_like(&[weights.len(), 1]).unwrap();
        let mut d = pred.empty_like(pred.shape()).unwrap();
        forward_backward(pred.view(), target.view(), weights, loss.view_mut(), d.view_mut()).unwrap();
        let per_sample = loss.to_f64().unwrap();
        let mean = per_sample.iter().zip(weights).map(|(l, w)| l * w).sum::<f64>() / weights.len() as f64;
        (mean, d)
    }

    #[test]
    fn backward_is_the_derivative() {
        let (pred, target) = (randn(DType::F64, &[6, 5], 1), randn(DType::F64, &[6, 5], 2));
        let weights = [0.5, 2.0];
        let (loss, d) = run(&pred, &target, &weights);
        let by_hand: f64 = pred
            .to_f64()
            .unwrap()
            .iter()
            .zip(target.to_f64().unwrap())
            .enumerate()
            .map(|(i, (p, t))| weights[i / 15] * (p - t) * (p - t) / 30.0)
            .sum();
        assert!((loss - by_hand).abs() < 1e-12);
        finite_differences("dpred", &pred, &d, |p| run(p, &target, &weights).0);
    }

    #[test]
    fn f32_agrees_with_f64() {
        let (pred, target) = (randn(DType::F64, &[64, 64], 1), randn(DType::F64, &[64, 64], 2));
        let single = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let (l64, l32) = (run(&pred, &target, &[1.0]).0, run(&single(&pred), &single(&target), &[1.0]).0);
        assert!((l32 / l64 - 1.0).abs() < 1e-6, "{l32} {l64}");
    }
}
