//! CPU attention on packed operands: scores come out of their product packed and go into the next one as they
//! lie; no buffer of sequence² elements.
//!
//! One task is a head of a sample (forward: or a group of its queries); K and V are packed once per task.
//! Letters as in `mod.rs`. Products that sum over queries run turned, `dVᵀ = dOᵀ·P`, `dKᵀ = Qᵀ·dS`, so that P
//! and dS stand on the right as they lie.

use rayon::prelude::*;

use super::Layout;
use super::cpu::Saved;
use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::gemm::Shared;
use crate::ops::gemm::strips::{
    Job, Lane, Scratch, Strips, Target, Term, WIDTH, pack, pack_transposed, packed_len,
};

/// Most queries of a task of the forward pass.
const GROUP: usize = 384;
/// Most queries whose scores live at the same time: fewer would visit dK and dV more often.
const MOST_QUERIES: usize = 168;
/// Fewest.
const LEAST_QUERIES: usize = 56;
/// Scores that live at the same time, about: with their gradients half of a second-level cache.
const SCORES: usize = 1 << 16;

/// Queries per block, in even shares.
fn block_rows(queries: usize, keys: usize) -> usize {
    let most = (SCORES / keys).clamp(LEAST_QUERIES, MOST_QUERIES);
    queries.div_ceil(queries.div_ceil(most))
}

/// Rows `from..from + n` of one head.
fn head(m: Mat<'_, f32>, from: usize, n: usize, h: usize, d: usize) -> Mat<'_, f32> {
    let start = from * m.stride + h * d;
    Mat { data: &m.data[start..start + (n - 1) * m.stride + d], rows: n, cols: d, stride: m.stride }
}

/// `a · b` on this thread.
///
/// # Safety
/// As [`Job::run_serial`].
unsafe fn product<E: Lane>(a: Strips<'_, E>, b: Strips<'_, E>, target: Target, add: bool, c: *mut f32) {
    let job = Job { base: &[Term { a, b }], extras: &[], start: None, target, add };
    // SAFETY: by the caller.
    unsafe { job.run_serial(c) }
}

/// Packs into the next piece of scratch.
fn packed<'a, E: Lane>(
    m: Mat<'_, f32>,
    alpha: f32,
    transposed: bool,
    scratch: &mut Scratch<'a>,
) -> Strips<'a, E> {
    let (rows, cols) = if transposed { (m.cols, m.rows) } else { (m.rows, m.cols) };
    let out = scratch.take::<E>(packed_len(rows, cols));
    if transposed {
        pack_transposed(m, alpha, out, false);
    } else {
        pack(m, alpha, out, false);
    }
    Strips::new(out, rows, cols)
}

fn cost<E>(rows: usize, cols: usize) -> usize {
    Scratch::cost::<E>(packed_len(rows, cols))
}

/// Attention with operands of products in E.
pub fn forward<E: Lane>(
    q: Mat<'_, f32>,
    k: Mat<'_, f32>,
    v: Mat<'_, f32>,
    layout: Layout<'_>,
    mut o: MatMut<'_, f32>,
    mut lse: MatMut<'_, f32>,
) {
    let (d, scale, heads, tokens) = (q.cols / layout.heads, layout.scale as f32, layout.heads, layout.tokens);
    let (o, lse) = (Shared::new(&mut o), Shared::new(&mut lse));
    let groups = tokens.div_ceil(GROUP);
    let group = tokens.div_ceil(groups.max(1));
    (0..layout.key_lens.len() * heads * groups).into_par_iter().for_each(|task| {
        let (sample, h, part) = (task / groups / heads, task / groups % heads, task % groups);
        let (first, keys) = (sample * tokens, layout.key_lens[sample]);
        let queries = first + part * group..first + tokens.min((part + 1) * group);
        if queries.is_empty() {
            return;
        }
        let block = block_rows(queries.len(), keys);
        let scores = packed_len(block, keys);
        let memory = cost::<E>(d, keys)
            + cost::<E>(keys, d)
            + cost::<E>(block, d)
            + Scratch::cost::<f32>(scores)
            + Scratch::cost::<E>(E::scratch_len(scores))
            + Scratch::cost::<f32>(block);
        f32::with_scratch(memory, |memory| {
            let mut scratch = Scratch::new(memory);
            let pk = packed::<E>(head(k, first, keys, h, d), 1.0, true, &mut scratch);
            let pv = packed::<E>(head(v, first, keys, h, d), 1.0, false, &mut scratch);
            let (pq, scores) = (scratch.take::<E>(packed_len(block, d)), scratch.take::<f32>(scores));
            let (scratch_p, totals) =
                (scratch.take::<E>(E::scratch_len(scores.len())), scratch.take::<f32>(block));
            for from in queries.clone().step_by(block) {
                let rows = block.min(queries.end - from);
                pack(head(q, from, rows, h, d), scale, pq, false);
                let scores = &mut scores[..packed_len(rows, keys)];
                // SAFETY: the scores are whole strips of these rows, borrowed exclusively.
                unsafe {
                    let pq = Strips::new(&*pq, rows, d);
                    product(pq, pk, Target::Strips(rows), false, scores.as_mut_ptr());
                }
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, total) in totals[..rows].iter_mut().enumerate() {
                            let (max, sum) = exponentials(scores, rows, i, keys);
                            *total = sum;
                            // SAFETY: this task alone writes the rows of its queries in the columns of its
                            // head.
                            unsafe { *lse.at(from + i, h) = max + sum.ln() }
                        }
                    },
                );
                let p = Strips::new(
                    E::operand(scores, 0, &mut scratch_p[..E::scratch_len(scores.len())]),
                    rows,
                    keys,
                );
                // SAFETY: this task alone writes the rows of its queries in the columns of its head.
                unsafe {
                    product(p, pv, Target::Rows(o.stride), false, o.at(from, h * d));
                    for (i, &total) in totals[..rows].iter().enumerate() {
                        let row = std::slice::from_raw_parts_mut(o.at(from + i, h * d), d);
                        let inverse = 1.0 / total;
                        vectorised(
                            #[inline(always)]
                            || row.iter_mut().for_each(|x| *x *= inverse),
                        );
                    }
                }
            }
        });
    });
}

/// Turns row i of packed scores into exp(s − max), zeros in the padding; returns max and the sum. The
/// exponential is [`Real`]'s: the method of f32 itself is a call of libm for every score.
#[inline(always)]
fn exponentials(scores: &mut [f32], rows: usize, i: usize, keys: usize) -> (f32, f32) {
    let at = |strip: usize| (strip * rows + i) * WIDTH;
    let (whole, rest) = (keys / WIDTH, keys % WIDTH);
    let mut largest = [f32::NEG_INFINITY; WIDTH];
    for strip in 0..whole {
        for (m, &s) in largest.iter_mut().zip(&scores[at(strip)..][..WIDTH]) {
            *m = s.max(*m);
        }
    }
    if rest > 0 {
        for (m, &s) in largest.iter_mut().zip(&scores[at(whole)..][..rest]) {
            *m = s.max(*m);
        }
    }
    let max = largest.iter().fold(f32::NEG_INFINITY, |m, &s| s.max(m));
    let mut total = [0.0f32; WIDTH];
    for strip in 0..whole {
        for (t, s) in total.iter_mut().zip(&mut scores[at(strip)..][..WIDTH]) {
            *s = Real::exp(*s - max);
            *t += *s;
        }
    }
    if rest > 0 {
        let last = &mut scores[at(whole)..][..WIDTH];
        for (t, s) in total.iter_mut().zip(&mut last[..rest]) {
            *s = Real::exp(*s - max);
            *t += *s;
        }
        last[rest..].fill(0.0);
    }
    (max, sum(WIDTH, |j| total[j]))
}

/// Backward of [`forward`].
pub fn backward<E: Lane>(
    s: Saved<'_, f32>,
    layout: Layout<'_>,
    d_o: Mat<'_, f32>,
    [mut dq, mut dk, mut dv]: [MatMut<'_, f32>; 3],
) {
    let (d, scale, heads, tokens) =
        (s.q.cols / layout.heads, layout.scale as f32, layout.heads, layout.tokens);
    for gradient in [&mut dk, &mut dv] {
        for (sample, &keys) in layout.key_lens.iter().enumerate() {
            for row in sample * tokens + keys..(sample + 1) * tokens {
                gradient.row_mut(row).fill(0.0);
            }
        }
    }
    let [dq, dk, dv] = [Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv)];
    (0..layout.key_lens.len() * heads).into_par_iter().for_each(|task| {
        let (sample, h) = (task / heads, task % heads);
        let (first, keys) = (sample * tokens, layout.key_lens[sample]);
        let block = block_rows(tokens, keys);
        let scores = packed_len(block, keys);
        let memory = 2 * cost::<E>(d, keys)
            + cost::<E>(keys, d)
            + 2 * cost::<E>(block, d)
            + 2 * cost::<E>(d, block)
            + 2 * (Scratch::cost::<f32>(scores) + Scratch::cost::<E>(E::scratch_len(scores)));
        f32::with_scratch(memory, |memory| {
            let mut kept = Scratch::new(memory);
            let (k, v) = (head(s.k, first, keys, h, d), head(s.v, first, keys, h, d));
            let pkt = packed::<E>(k, 1.0, true, &mut kept);
            let pvt = packed::<E>(v, 1.0, true, &mut kept);
            let pk = packed::<E>(k, scale, false, &mut kept);
            for from in (first..first + tokens).step_by(block) {
                let mut scratch = kept.reborrow();
                let rows = block.min(first + tokens - from);
                let (q, o) = (head(s.q, from, rows, h, d), head(s.o, from, rows, h, d));
                let d_o = head(d_o, from, rows, h, d);
                let pq = packed::<E>(q, scale, false, &mut scratch);
                let pd = packed::<E>(d_o, 1.0, false, &mut scratch);
                let pqt = packed::<E>(q, scale, true, &mut scratch);
                let pdt = packed::<E>(d_o, 1.0, true, &mut scratch);
                let len = packed_len(rows, keys);
                let (p, ds) = (scratch.take::<f32>(len), scratch.take::<f32>(len));
                // SAFETY: both are whole strips of these rows, borrowed exclusively.
                unsafe {
                    product(pq, pkt, Target::Strips(rows), false, p.as_mut_ptr());
                    product(pd, pvt, Target::Strips(rows), false, ds.as_mut_ptr());
                }
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..rows {
                            let (g, o) = (d_o.row(i), o.row(i));
                            let row_sum = sum(d, |j| g[j] * o[j]);
                            let log_sum = s.lse.row(from + i)[h];
                            for strip in 0..keys.div_ceil(WIDTH) {
                                let at = (strip * rows + i) * WIDTH;
                                let (p, ds) = (&mut p[at..at + WIDTH], &mut ds[at..at + WIDTH]);
                                for (p, ds) in p.iter_mut().zip(&mut *ds) {
                                    *p = Real::exp(*p - log_sum);
                                    *ds = *p * (*ds - row_sum);
                                }
                                // The padding must hold numbers, and exp(−L) times something may be none.
                                if keys < (strip + 1) * WIDTH {
                                    p[keys % WIDTH..].fill(0.0);
                                    ds[keys % WIDTH..].fill(0.0);
                                }
                            }
                        }
                    },
                );
                let (scratch_p, scratch_ds) =
                    (scratch.take::<E>(E::scratch_len(len)), scratch.take::<E>(E::scratch_len(len)));
                let p = Strips::new(E::operand(p, 0, scratch_p), rows, keys);
                let ds = Strips::new(E::operand(ds, 0, scratch_ds), rows, keys);
                let add = from != first;
                // SAFETY: this task alone writes the rows of its sample in the columns of its head.
                unsafe {
                    product(pdt, p, Target::Columns(dv.stride), add, dv.at(first, h * d));
                    // Q and K are scaled already.
                    product(pqt, ds, Target::Columns(dk.stride), add, dk.at(first, h * d));
                    product(ds, pk, Target::Rows(dq.stride), false, dq.at(from, h * d));
                }
            }
        });
    });
}
