//! CPU mean squared error.

use crate::cpu::{Element, Mat, MatMut, Real, sum, vectorised};

pub fn forward_backward<T: Real>(
    pred: Mat<'_, T>,
    target: Mat<'_, T>,
    weights: &[f64],
    mut loss: MatMut<'_, T>,
    mut dpred: MatMut<'_, T>,
) {
    let rows = pred.rows / weights.len().max(1);
    let elements = (rows * pred.cols) as f64;
    for (sample, &weight) in weights.iter().enumerate() {
        let factor = T::from_f64(2.0 * weight / (weights.len() as f64 * elements));
        // Row sums are short enough for f32; their sum is taken in f64.
        let mut total = 0.0;
        for row in sample * rows..(sample + 1) * rows {
            let (p, t) = (pred.row(row), target.row(row));
            let squares = vectorised(
                #[inline(always)]
                || {
                    for ((d, &p), &t) in dpred.row_mut(row).iter_mut().zip(p).zip(t) {
                        *d = factor * (p - t);
                    }
                    sum(p.len(), |j| (p[j] - t[j]) * (p[j] - t[j]))
                },
            );
            total += Element::to_f64(squares);
        }
        loss.row_mut(sample)[0] = T::from_f64(total / elements);
    }
}
