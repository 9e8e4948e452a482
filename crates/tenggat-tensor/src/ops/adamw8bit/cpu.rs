//! CPU AdamW with 8-bit moments.

use rayon::prelude::*;

use super::map::{Map, SIGNED, UNSIGNED};
use super::{BLOCK, Hyper};
use crate::cpu::{Element, Mat, MatMut, Real, vectorised};

/// Blocks that one task takes.
const TASK: usize = 64;
/// Stands in for the scale of a block of zeros.
const LEAST_SCALE: f32 = 1e-38;

pub struct Moment<'a> {
    pub codes: MatMut<'a, u8>,
    pub scales: MatMut<'a, f32>,
}

pub fn step<T: Real>(
    parameter: MatMut<'_, T>,
    gradient: Mat<'_, T>,
    clip: Mat<'_, T>,
    m: Moment<'_>,
    v: Moment<'_>,
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
    let parameters = parameter.data.par_chunks_mut(TASK * BLOCK).zip(gradient.data.par_chunks(TASK * BLOCK));
    let codes = m.codes.data.par_chunks_mut(TASK * BLOCK).zip(v.codes.data.par_chunks_mut(TASK * BLOCK));
    let scales = m.scales.data.par_chunks_mut(TASK).zip(v.scales.data.par_chunks_mut(TASK));
    parameters.zip(codes).zip(scales).for_each(|(((p, g), (mc, vc)), (ms, vs))| {
        let parameters = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
        let codes = mc.chunks_mut(BLOCK).zip(vc.chunks_mut(BLOCK));
        let scales = ms.iter_mut().zip(vs);
        for (((p, g), (mc, vc)), (ms, vs)) in parameters.zip(codes).zip(scales) {
            let (mut m, mut v) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
            let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
            expand(&SIGNED, mc, *ms, m);
            expand(&UNSIGNED, vc, *vs, v);
            vectorised(
                #[inline(always)]
                || {
                    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                        let g = g * factor + l2 * *p;
                        *m = beta1 * *m + rest1 * g;
                        *v = beta2 * *v + rest2 * g * g;
                        *p = *p * decay - step_size * (*m / (v.sqrt() / root_correction + eps));
                    }
                },
            );
            *ms = shrink(&SIGNED, m, mc);
            *vs = shrink(&UNSIGNED, v, vc);
        }
    });
}

/// The numbers of one block.
pub fn expand<T: Element>(map: &Map, codes: &[u8], scale: f32, values: &mut [T]) {
    values.iter_mut().zip(codes).for_each(|(x, &code)| *x = T::from_f64((map.value(code) * scale).into()));
}

/// Writes the codes of one block and returns its scale, the largest magnitude.
pub fn shrink<T: Element>(map: &Map, values: &[T], codes: &mut [u8]) -> f32 {
    let single = |x: &T| x.to_f64() as f32;
    let scale = values.iter().fold(0.0f32, |most, x| {
        let size = single(x).abs();
        if size > most { size } else { most }
    });
    let divisor = scale.max(LEAST_SCALE);
    values.iter().zip(codes).for_each(|(x, code)| *code = map.code(single(x) / divisor));
    scale
}
