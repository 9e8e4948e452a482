//! CPU AdamW.

use rayon::prelude::*;

use super::Hyper;
use crate::cpu::{Element, Mat, MatMut, Real, sum, vectorised};

/// Elements that one task takes; a constant, so that the norm is summed in the same groups on any number of
/// threads.
const CHUNK: usize = 1 << 14;

pub fn clip_factor<T: Real>(gradient: Mat<'_, T>, max_norm: Option<f64>, mut clip: MatMut<'_, T>) {
    let partial: Vec<f64> = gradient
        .data
        .par_chunks(CHUNK)
        .map(|g| {
            vectorised(
                #[inline(always)]
                || Element::to_f64(sum(g.len(), |i| g[i] * g[i])),
            )
        })
        .collect();
    let norm = partial.iter().sum::<f64>().sqrt();
    let factor = max_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
    clip.row_mut(0).copy_from_slice(&[T::from_f64(norm), T::from_f64(factor)]);
}

pub fn step<T: Real>(
    parameter: MatMut<'_, T>,
    gradient: Mat<'_, T>,
    clip: Mat<'_, T>,
    m: MatMut<'_, T>,
    v: MatMut<'_, T>,
    h: Hyper,
) {
    let factor = clip.row(0)[1];
    let steps = h.step.min(i32::MAX as u64) as i32;
    let decay = T::from_f64(1.0 - h.lr * h.weight_decay);
    let step_size = T::from_f64(h.lr / (1.0 - h.beta1.powi(steps)));
    let root_correction = T::from_f64((1.0 - h.beta2.powi(steps)).sqrt());
    let l2 = T::from_f64(h.l2);
    let (beta1, beta2) = (T::from_f64(h.beta1), T::from_f64(h.beta2));
    let (rest1, rest2, eps) = (T::from_f64(1.0 - h.beta1), T::from_f64(1.0 - h.beta2), T::from_f64(h.eps));
    let parameters = parameter.data.par_chunks_mut(CHUNK).zip(gradient.data.par_chunks(CHUNK));
    let moments = m.data.par_chunks_mut(CHUNK).zip(v.data.par_chunks_mut(CHUNK));
    parameters.zip(moments).for_each(|((p, g), (m, v))| {
        vectorised(
            #[inline(always)]
            || {
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * factor + l2 * *p;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * g * g;
                    *p = *p * decay - step_size * (*m / (v.sqrt() / root_correction + eps));
                }
            },
        );
    });
}
