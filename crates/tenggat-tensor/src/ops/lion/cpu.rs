//! CPU Lion.

use rayon::prelude::*;

use super::Hyper;
use crate::cpu::{Mat, MatMut, Real, vectorised};

/// Elements that one task takes.
const CHUNK: usize = 1 << 14;

pub fn step<T: Real>(
    parameter: MatMut<'_, T>,
    gradient: Mat<'_, T>,
    clip: Mat<'_, T>,
    m: MatMut<'_, T>,
    h: Hyper,
) {
    let factor = clip.row(0)[1];
    let (lr, decay) = (T::from_f64(h.lr), T::from_f64(1.0 - h.lr * h.weight_decay));
    let (beta1, beta2) = (T::from_f64(h.beta1), T::from_f64(h.beta2));
    let (rest1, rest2) = (T::from_f64(1.0 - h.beta1), T::from_f64(1.0 - h.beta2));
    let parameters = parameter.data.par_chunks_mut(CHUNK).zip(gradient.data.par_chunks(CHUNK));
    parameters.zip(m.data.par_chunks_mut(CHUNK)).for_each(|((p, g), m)| {
        vectorised(
            #[inline(always)]
            || {
                for ((p, &g), m) in p.iter_mut().zip(g).zip(m) {
                    let g = g * factor;
                    let direction = beta1 * *m + rest1 * g;
                    let up = if direction > T::ZERO { lr } else { T::ZERO };
                    let down = if direction < T::ZERO { lr } else { T::ZERO };
                    *p = *p * decay - up + down;
                    *m = beta2 * *m + rest2 * g;
                }
            },
        );
    });
}
