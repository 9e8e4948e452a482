//! CPU attention, the fast path: blocks of queries against all keys of a head by matrix products; no buffer
//! of sequence² elements.

use rayon::prelude::*;

use super::Layout;
use super::cpu::Saved;
use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::gemm::{Operand, Shared, kernel, product_serial};

/// Queries per block: the block of scores stays in the second-level cache up to about 4000 keys.
const QUERIES: usize = 64;

/// Rows `from..from + n` of one head.
fn head<T>(m: Mat<'_, T>, from: usize, n: usize, h: usize, d: usize) -> Mat<'_, T> {
    let start = from * m.stride + h * d;
    Mat { data: &m.data[start..start + (n - 1) * m.stride + d], rows: n, cols: d, stride: m.stride }
}

fn scratch<T>(buffer: &mut [T], rows: usize, cols: usize) -> MatMut<'_, T> {
    MatMut { data: &mut buffer[..rows * cols], rows, cols, stride: cols }
}

fn whole<T>(buffer: &[T], rows: usize, cols: usize) -> Mat<'_, T> {
    Mat { data: &buffer[..rows * cols], rows, cols, stride: cols }
}

pub fn forward<T: Real>(
    q: Mat<'_, T>,
    k: Mat<'_, T>,
    v: Mat<'_, T>,
    layout: Layout<'_>,
    mut o: MatMut<'_, T>,
    mut lse: MatMut<'_, T>,
) {
    let (d, scale) = (q.cols / layout.heads, T::from_f64(layout.scale));
    for (sample, &keys) in layout.key_lens.iter().enumerate() {
        let first = sample * layout.tokens;
        let (mut o, mut lse) = (o.rows_mut(first, layout.tokens), lse.rows_mut(first, layout.tokens));
        o.par_blocks(QUERIES).zip(lse.par_blocks(QUERIES)).for_each_init(
            || vec![T::ZERO; QUERIES * keys],
            |scores, ((from, o), (_, mut lse))| {
                let rows = o.rows;
                for h in 0..layout.heads {
                    let q = Operand::new(head(q, first + from, rows, h, d), false);
                    let k = Operand::new(head(k, first, keys, h, d), true);
                    product_serial(scale, q, k, T::ZERO, &mut scratch(scores, rows, keys));
                    vectorised(
                        #[inline(always)]
                        || {
                            for (i, s) in scores.chunks_exact_mut(keys).take(rows).enumerate() {
                                lse.row_mut(i)[h] = softmax(s);
                            }
                        },
                    );
                    let p = Operand::new(whole(scores, rows, keys), false);
                    let v = Operand::new(head(v, first, keys, h, d), false);
                    let end = (rows - 1) * o.stride + (h + 1) * d;
                    let stride = o.stride;
                    let mut out = MatMut { data: &mut o.data[h * d..end], rows, cols: d, stride };
                    product_serial(T::ONE, p, v, T::ZERO, &mut out);
                }
            },
        );
    }
}

/// Turns scores into probabilities; returns their log-sum-exp.
#[inline(always)]
fn softmax<T: Real>(s: &mut [T]) -> T {
    let mut lanes = [s[0]; 16];
    for chunk in s.chunks_exact(16) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = x.max(*lane);
        }
    }
    let tail = s.chunks_exact(16).remainder();
    let max = lanes.iter().chain(tail).fold(s[0], |m, &x| x.max(m));
    for x in s.iter_mut() {
        *x = (*x - max).exp();
    }
    let total = sum(s.len(), |j| s[j]);
    let inverse = T::ONE / total;
    for x in s.iter_mut() {
        *x *= inverse;
    }
    max + total.ln()
}

pub fn backward<T: Real>(
    s: Saved<'_, T>,
    layout: Layout<'_>,
    d_o: Mat<'_, T>,
    [mut dq, mut dk, mut dv]: [MatMut<'_, T>; 3],
) {
    let (d, scale, tokens) = (s.q.cols / layout.heads, T::from_f64(layout.scale), layout.tokens);
    for gradient in [&mut dk, &mut dv] {
        for (sample, &keys) in layout.key_lens.iter().enumerate() {
            for row in sample * tokens + keys..(sample + 1) * tokens {
                gradient.row_mut(row).fill(T::ZERO);
            }
        }
    }
    let [dq, dk, dv] = [Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv)];
    let most = layout.key_lens.iter().copied().max().unwrap_or(0);
    (0..layout.key_lens.len() * layout.heads).into_par_iter().for_each_init(
        || (vec![T::ZERO; QUERIES * most], vec![T::ZERO; QUERIES * most]),
        |(p, ds), task| {
            let (sample, h) = (task / layout.heads, task % layout.heads);
            let (first, keys) = (sample * tokens, layout.key_lens[sample]);
            let (k, v) = (head(s.k, first, keys, h, d), head(s.v, first, keys, h, d));
            for from in (first..first + tokens).step_by(QUERIES) {
                let rows = QUERIES.min(first + tokens - from);
                let (q, d_o) = (head(s.q, from, rows, h, d), head(d_o, from, rows, h, d));
                let o = head(s.o, from, rows, h, d);
                product_serial(
                    scale,
                    Operand::new(q, false),
                    Operand::new(k, true),
                    T::ZERO,
                    &mut scratch(p, rows, keys),
                );
                product_serial(
                    T::ONE,
                    Operand::new(d_o, false),
                    Operand::new(v, true),
                    T::ZERO,
                    &mut scratch(ds, rows, keys),
                );
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..rows {
                            let (g, o) = (d_o.row(i), o.row(i));
                            let row_sum = sum(d, |j| g[j] * o[j]);
                            let log_sum = s.lse.row(from + i)[h];
                            let range = i * keys..(i + 1) * keys;
                            for (p, ds) in p[range.clone()].iter_mut().zip(&mut ds[range]) {
                                *p = (*p - log_sum).exp();
                                *ds = *p * (*ds - row_sum) * scale;
                            }
                        }
                    },
                );
                let beta = if from == first { T::ZERO } else { T::ONE };
                let (p, ds) = (whole(p, rows, keys), whole(ds, rows, keys));
                // SAFETY: this task alone writes the rows of its sample in the columns of its head.
                unsafe {
                    let (at_k, at_v) = (dk.at(first, h * d), dv.at(first, h * d));
                    kernel(T::ONE, Operand::new(p, true), Operand::new(d_o, false), beta, at_v, dv.stride);
                    kernel(T::ONE, Operand::new(ds, true), Operand::new(q, false), beta, at_k, dk.stride);
                    let at_q = dq.at(from, h * d);
                    kernel(T::ONE, Operand::new(ds, false), Operand::new(k, false), T::ZERO, at_q, dq.stride);
                }
            }
        },
    );
}
