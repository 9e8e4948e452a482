//! CPU flow path.

use crate::cpu::{Mat, MatMut, Real, vectorised};

pub fn forward<T: Real>(
    x0: Mat<'_, T>,
    noise: Mat<'_, T>,
    sigmas: &[f64],
    mut noisy: MatMut<'_, T>,
    mut target: MatMut<'_, T>,
) {
    let tokens = x0.rows / sigmas.len().max(1);
    for row in 0..x0.rows {
        let sigma = sigmas[row / tokens];
        let (keep, mix) = (T::from_f64(1.0 - sigma), T::from_f64(sigma));
        vectorised(
            #[inline(always)]
            || {
                let inputs = x0.row(row).iter().zip(noise.row(row));
                let outputs = noisy.row_mut(row).iter_mut().zip(target.row_mut(row));
                for ((&x, &e), (n, t)) in inputs.zip(outputs) {
                    *n = keep * x + mix * e;
                    *t = e - x;
                }
            },
        );
    }
}
