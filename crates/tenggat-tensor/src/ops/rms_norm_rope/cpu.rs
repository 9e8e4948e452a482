//! CPU head norm and rotary embedding.

use rayon::prelude::*;

use super::{EPS, Segment};
use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(
    qkv: Mat<'_, T>,
    weights: Mat<'_, T>,
    rope: Mat<'_, T>,
    s: Segment,
    mut joint: [MatMut<'_, T>; 3],
    mut rstd: MatMut<'_, T>,
) {
    let inner = joint[0].cols;
    if s.tokens == 0 {
        return;
    }
    let [q, k, v] = &mut joint;
    let (q, k, v) =
        (q.par_blocks(s.joint_tokens), k.par_blocks(s.joint_tokens), v.par_blocks(s.joint_tokens));
    let samples = q.zip(k).zip(v).zip(rstd.par_blocks(s.tokens)).enumerate();
    samples.for_each(|(sample, ((((_, mut q), (_, mut k)), (_, mut v)), (_, mut rstd)))| {
        let (mut q, mut k, mut v) =
            (q.rows_mut(s.at, s.tokens), k.rows_mut(s.at, s.tokens), v.rows_mut(s.at, s.tokens));
        let outputs = q.par_blocks(ROW_BLOCK).zip(k.par_blocks(ROW_BLOCK)).zip(v.par_blocks(ROW_BLOCK));
        outputs.zip(rstd.par_blocks(ROW_BLOCK)).for_each(
            |((((first, mut q), (_, mut k)), (_, mut v)), (_, mut rstd))| {
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..q.rows {
                            let (x, table) = (qkv.row(sample * s.tokens + first + i), rope.row(first + i));
                            let (rstd_q, rstd_k) = rstd.row_mut(i).split_at_mut(s.heads);
                            head_rows(&x[..inner], weights.row(0), table, q.row_mut(i), rstd_q);
                            head_rows(&x[inner..2 * inner], weights.row(1), table, k.row_mut(i), rstd_k);
                            v.row_mut(i).copy_from_slice(&x[2 * inner..]);
                        }
                    },
                );
            },
        );
    });
}

/// One token: every head of `x` normed and turned into `y`.
#[inline(always)]
fn head_rows<T: Real>(x: &[T], weight: &[T], table: &[T], y: &mut [T], rstd: &mut [T]) {
    let d = weight.len();
    let (cos, sin) = table.split_at(d / 2);
    for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
        *rstd = T::ONE / (sum(d, |j| x[j] * x[j]) * T::from_f64(1.0 / d as f64) + T::from_f64(EPS)).sqrt();
        let pairs = y.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0).zip(weight.as_chunks().0);
        for ((([y0, y1], &[x0, x1]), &[w0, w1]), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
            let (a, b) = (x0 * *rstd * w0, x1 * *rstd * w1);
            *y0 = a * cos - b * sin;
            *y1 = a * sin + b * cos;
        }
    }
}

pub fn backward<T: Real>(
    qkv: Mat<'_, T>,
    (weights, rope, rstd): (Mat<'_, T>, Mat<'_, T>, Mat<'_, T>),
    s: Segment,
    [dq, dk, dv]: [Mat<'_, T>; 3],
    mut dqkv: MatMut<'_, T>,
) {
    let inner = dq.cols;
    dqkv.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let row = first + i;
                    let (sample, token) = (row / s.tokens, row % s.tokens);
                    let joint = sample * s.joint_tokens + s.at + token;
                    let (x, table) = (qkv.row(row), rope.row(token));
                    let (rstd_q, rstd_k) = rstd.row(row).split_at(s.heads);
                    let (out_q, rest) = block.row_mut(i).split_at_mut(inner);
                    let (out_k, out_v) = rest.split_at_mut(inner);
                    head_rows_backward(&x[..inner], weights.row(0), table, rstd_q, dq.row(joint), out_q);
                    head_rows_backward(
                        &x[inner..2 * inner],
                        weights.row(1),
                        table,
                        rstd_k,
                        dk.row(joint),
                        out_k,
                    );
                    out_v.copy_from_slice(dv.row(joint));
                }
            },
        );
    });
}

/// One token: the gradient of every head. `dx` holds `g` between its two passes.
#[inline(always)]
fn head_rows_backward<T: Real>(x: &[T], weight: &[T], table: &[T], rstd: &[T], dy: &[T], dx: &mut [T]) {
    let d = weight.len();
    let (cos, sin) = table.split_at(d / 2);
    for (((x, dy), dx), &rstd) in
        x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd)
    {
        let pairs = dx.as_chunks_mut().0.iter_mut().zip(dy.as_chunks().0).zip(weight.as_chunks().0);
        for ((([g0, g1], &[a, b]), &[w0, w1]), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
            *g0 = (a * cos + b * sin) * w0;
            *g1 = (b * cos - a * sin) * w1;
        }
        let mean = sum(d, |j| dx[j] * x[j]) * rstd * T::from_f64(1.0 / d as f64);
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = rstd * (*dx - x * rstd * mean);
        }
    }
}
