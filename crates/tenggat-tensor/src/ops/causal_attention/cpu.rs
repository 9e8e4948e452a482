//! CPU causal attention: blocks of queries against the keys before their end, by matrix products.

use rayon::prelude::*;

use super::Layout;
use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::gemm::{Operand, product_serial};

/// Queries per block.
const QUERIES: usize = 64;

/// Rows `from..from + n` of one head.
fn head<T>(m: Mat<'_, T>, from: usize, n: usize, h: usize, d: usize) -> Mat<'_, T> {
    let start = from * m.stride + h * d;
    Mat { data: &m.data[start..start + (n - 1) * m.stride + d], rows: n, cols: d, stride: m.stride }
}

pub fn forward<T: Real>(
    q: Mat<'_, T>,
    k: Mat<'_, T>,
    v: Mat<'_, T>,
    layout: Layout<'_>,
    mut o: MatMut<'_, T>,
) {
    let (d, group) = (q.cols / layout.heads.max(1), layout.heads / layout.kv_heads.max(1));
    let mut first = 0;
    for &len in layout.lens.iter().filter(|&&len| len > 0) {
        o.rows_mut(first, len).par_blocks(QUERIES).for_each_init(
            || vec![T::ZERO; QUERIES * len],
            |scores, (from, o)| {
                // The keys that the last query of the block sees.
                let (rows, keys) = (o.rows, from + o.rows);
                let scores = &mut scores[..rows * keys];
                for h in 0..layout.heads {
                    let q = Operand::new(head(q, first + from, rows, h, d), false);
                    let k = Operand::new(head(k, first, keys, h / group, d), true);
                    let mut s = MatMut { data: &mut *scores, rows, cols: keys, stride: keys };
                    product_serial(T::from_f64(layout.scale), q, k, T::ZERO, &mut s);
                    vectorised(
                        #[inline(always)]
                        || {
                            for (i, s) in scores.chunks_exact_mut(keys).enumerate() {
                                let (seen, unseen) = s.split_at_mut(from + i + 1);
                                softmax(seen);
                                unseen.fill(T::ZERO);
                            }
                        },
                    );
                    let p = Operand::new(Mat { data: scores, rows, cols: keys, stride: keys }, false);
                    let v = Operand::new(head(v, first, keys, h / group, d), false);
                    let (stride, end) = (o.stride, (rows - 1) * o.stride + (h + 1) * d);
                    let mut out = MatMut { data: &mut o.data[h * d..end], rows, cols: d, stride };
                    product_serial(T::ONE, p, v, T::ZERO, &mut out);
                }
            },
        );
        first += len;
    }
}

/// Turns scores into probabilities.
#[inline(always)]
fn softmax<T: Real>(s: &mut [T]) {
    let max = s.iter().fold(s[0], |m, &x| x.max(m));
    for x in s.iter_mut() {
        *x = (*x - max).exp();
    }
    let inverse = T::ONE / sum(s.len(), |j| s[j]);
    for x in s.iter_mut() {
        *x *= inverse;
    }
}
