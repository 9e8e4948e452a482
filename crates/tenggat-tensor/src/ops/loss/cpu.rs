//! CPU losses.

use super::Loss;
use crate::cpu::{Element, Mat, MatMut, Real, sum, vectorised};

pub fn forward_backward<T: Real>(
    kind: Loss,
    pred: Mat<'_, T>,
    target: Mat<'_, T>,
    mask: Option<Mat<'_, T>>,
    weights: &[f64],
    loss: MatMut<'_, T>,
    dpred: MatMut<'_, T>,
) {
    match kind {
        Loss::Squared => each(pred, target, mask, weights, loss, dpred, |e| (e * e, (T::ONE + T::ONE) * e)),
        Loss::Absolute => each(pred, target, mask, weights, loss, dpred, |e| {
            let zero = T::default();
            let sign = if e > zero { T::ONE } else { zero } - if e < zero { T::ONE } else { zero };
            (e * sign, sign)
        }),
        Loss::PseudoHuber { c } => {
            let (c, twice) = (T::from_f64(c), T::from_f64(2.0 * c));
            each(pred, target, mask, weights, loss, dpred, |e| {
                let root = (e * e + c * c).sqrt();
                (twice * (root - c), twice * e / root)
            });
        }
    }
}

/// `of` gives an element's loss and derivative from its error.
#[inline(always)]
fn each<T: Real>(
    pred: Mat<'_, T>,
    target: Mat<'_, T>,
    mask: Option<Mat<'_, T>>,
    weights: &[f64],
    mut loss: MatMut<'_, T>,
    mut dpred: MatMut<'_, T>,
    of: impl Fn(T) -> (T, T) + Copy,
) {
    let rows = pred.rows / weights.len().max(1);
    let elements = (rows * pred.cols) as f64;
    for (sample, &weight) in weights.iter().enumerate() {
        let factor = T::from_f64(weight / (weights.len() as f64 * elements));
        // Row sums are short enough for f32; their sum is taken in f64.
        let mut total = 0.0;
        for row in sample * rows..(sample + 1) * rows {
            let (p, t) = (pred.row(row), target.row(row));
            let losses = vectorised(
                #[inline(always)]
                || {
                    if let Some(mask) = mask {
                        let m = mask.row(row);
                        for (j, d) in dpred.row_mut(row).iter_mut().enumerate() {
                            *d = factor * m[j] * of(p[j] - t[j]).1;
                        }
                        return sum(p.len(), |j| m[j] * of(p[j] - t[j]).0);
                    }
                    for ((d, &p), &t) in dpred.row_mut(row).iter_mut().zip(p).zip(t) {
                        *d = factor * of(p - t).1;
                    }
                    sum(p.len(), |j| of(p[j] - t[j]).0)
                },
            );
            total += Element::to_f64(losses);
        }
        loss.row_mut(sample)[0] = T::from_f64(total / elements);
    }
}
