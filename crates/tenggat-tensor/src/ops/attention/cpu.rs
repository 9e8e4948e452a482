//! CPU attention, the readable reference: one query at a time.

use super::Layout;
use crate::cpu::{Mat, MatMut, Real, sum};

pub struct Saved<'a, T> {
    pub q: Mat<'a, T>,
    pub k: Mat<'a, T>,
    pub v: Mat<'a, T>,
    pub o: Mat<'a, T>,
    pub lse: Mat<'a, T>,
}

/// Channels of one head of one row.
fn head<'a, T>(m: Mat<'a, T>, row: usize, h: usize, d: usize) -> &'a [T] {
    &m.row(row)[h * d..(h + 1) * d]
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    sum(a.len(), |i| a[i] * b[i])
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
        for row in first..first + layout.tokens {
            for h in 0..layout.heads {
                let q = head(q, row, h, d);
                let scores: Vec<T> =
                    (first..first + keys).map(|j| dot(q, head(k, j, h, d)) * scale).collect();
                let max = scores.iter().fold(scores[0], |m, &s| m.max(s));
                let total = sum(keys, |j| (scores[j] - max).exp());
                let log_sum = max + total.ln();
                lse.row_mut(row)[h] = log_sum;
                let out = &mut o.row_mut(row)[h * d..(h + 1) * d];
                out.fill(T::ZERO);
                for (j, &score) in scores.iter().enumerate() {
                    let p = (score - log_sum).exp();
                    out.iter_mut().zip(head(v, first + j, h, d)).for_each(|(o, &v)| *o += p * v);
                }
            }
        }
    }
}

pub fn backward<T: Real>(
    s: Saved<'_, T>,
    layout: Layout<'_>,
    d_o: Mat<'_, T>,
    [mut dq, mut dk, mut dv]: [MatMut<'_, T>; 3],
) {
    let (d, scale) = (s.q.cols / layout.heads, T::from_f64(layout.scale));
    for row in 0..s.q.rows {
        [&mut dq, &mut dk, &mut dv].into_iter().for_each(|m| m.row_mut(row).fill(T::ZERO));
    }
    for (sample, &keys) in layout.key_lens.iter().enumerate() {
        let first = sample * layout.tokens;
        for row in first..first + layout.tokens {
            for h in 0..layout.heads {
                let columns = h * d..(h + 1) * d;
                let (q, d_o) = (head(s.q, row, h, d), head(d_o, row, h, d));
                let row_sum = dot(d_o, head(s.o, row, h, d));
                for j in first..first + keys {
                    let (k, v) = (head(s.k, j, h, d), head(s.v, j, h, d));
                    let p = (dot(q, k) * scale - s.lse.row(row)[h]).exp();
                    let ds = p * (dot(d_o, v) - row_sum) * scale;
                    dv.row_mut(j)[columns.clone()].iter_mut().zip(d_o).for_each(|(dv, &g)| *dv += p * g);
                    dq.row_mut(row)[columns.clone()].iter_mut().zip(k).for_each(|(dq, &k)| *dq += ds * k);
                    dk.row_mut(j)[columns.clone()].iter_mut().zip(q).for_each(|(dk, &q)| *dk += ds * q);
                }
            }
        }
    }
}
