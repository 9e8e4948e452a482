//! CPU Prodigy.

use rayon::prelude::*;

use super::{Accumulate, Update};
use crate::cpu::{Element, Mat, MatMut, Real, sum, vectorised};

/// Elements that one task takes; a constant, so that sums are grouped alike on any number of threads.
const CHUNK: usize = 1 << 14;

pub fn accumulate<T: Real>(
    parameter: Mat<'_, T>,
    gradient: Mat<'_, T>,
    clip: Mat<'_, T>,
    start: Mat<'_, T>,
    [m, v, s]: [MatMut<'_, T>; 3],
    h: Accumulate,
) -> (f64, f64) {
    let factor = clip.row(0)[1];
    let (beta1, beta2, beta3) = (T::from_f64(h.beta1), T::from_f64(h.beta2), T::from_f64(h.beta3));
    let l2 = T::from_f64(h.l2);
    let first = T::from_f64(h.d * (1.0 - h.beta1));
    let second = T::from_f64(h.d * h.d * (1.0 - h.beta2));
    let third = T::from_f64(h.sum_weight);
    let inputs = parameter.data.par_chunks(CHUNK).zip(gradient.data.par_chunks(CHUNK));
    let moments = m.data.par_chunks_mut(CHUNK).zip(v.data.par_chunks_mut(CHUNK));
    let sums = start.data.par_chunks(CHUNK).zip(s.data.par_chunks_mut(CHUNK));
    let parts: Vec<(f64, f64)> = inputs
        .zip(moments)
        .zip(sums)
        .map(|(((p, g), (m, v)), (p0, s))| {
            vectorised(
                #[inline(always)]
                || {
                    for ((((&p, &g), m), v), s) in p.iter().zip(g).zip(m).zip(v).zip(s.iter_mut()) {
                        let g = g * factor + l2 * p;
                        *m = beta1 * *m + first * g;
                        *v = beta2 * *v + second * g * g;
                        *s = beta3 * *s + third * g;
                    }
                    let s = &*s;
                    let distance = sum(p.len(), |i| (g[i] * factor + l2 * p[i]) * (p0[i] - p[i]));
                    let size = sum(s.len(), |i| if s[i] < T::ZERO { -s[i] } else { s[i] });
                    (Element::to_f64(distance), Element::to_f64(size))
                },
            )
        })
        .collect();
    let (distance, size) = parts.into_iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    (h.distance_weight * distance, size)
}

pub fn update<T: Real>(parameter: MatMut<'_, T>, m: Mat<'_, T>, v: Mat<'_, T>, h: Update) {
    let (step_size, eps) = (T::from_f64(h.step_size), T::from_f64(h.eps));
    let decay = T::from_f64(1.0 - h.step_size * h.weight_decay);
    let moments = m.data.par_chunks(CHUNK).zip(v.data.par_chunks(CHUNK));
    parameter.data.par_chunks_mut(CHUNK).zip(moments).for_each(|(p, (m, v))| {
        vectorised(
            #[inline(always)]
            || {
                for ((p, &m), v) in p.iter_mut().zip(m).zip(v) {
                    *p = *p * decay - step_size * (m / (v.sqrt() + eps));
                }
            },
        );
    });
}
