//! CPU products of the small factor with every row.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(alpha: T, w1: Mat<'_, T>, t: Mat<'_, T>, mut y: MatMut<'_, T>) {
    let k = t.cols / w1.cols.max(1);
    each_row(&mut y, |row, y| {
        let t = t.row(row);
        vectorised(
            #[inline(always)]
            || {
                for (i, y) in y.chunks_exact_mut(k.max(1)).enumerate() {
                    for (&w, t) in w1.row(i).iter().zip(t.chunks_exact(k.max(1))) {
                        let factor = alpha * w;
                        y.iter_mut().zip(t).for_each(|(y, &t)| *y += factor * t);
                    }
                }
            },
        );
    });
}

/// `dT = alpha · W₁ᵀ·dY`.
pub fn backward_t<T: Real>(alpha: T, w1: Mat<'_, T>, dy: Mat<'_, T>, mut dt: MatMut<'_, T>) {
    let k = dt.cols / w1.cols.max(1);
    each_row(&mut dt, |row, dt| {
        let dy = dy.row(row);
        vectorised(
            #[inline(always)]
            || {
                dt.fill(T::ZERO);
                for (i, dy) in dy.chunks_exact(k.max(1)).enumerate() {
                    for (&w, dt) in w1.row(i).iter().zip(dt.chunks_exact_mut(k.max(1))) {
                        let factor = alpha * w;
                        dt.iter_mut().zip(dy).for_each(|(d, &y)| *d += factor * y);
                    }
                }
            },
        );
    });
}

/// `dW₁ = beta · dW₁ + alpha · Σ dY·Tᵀ`; every row of dW₁ is one task, which goes through the rows in order.
pub fn backward_w1<T: Real>(alpha: T, t: Mat<'_, T>, dy: Mat<'_, T>, beta: T, mut dw1: MatMut<'_, T>) {
    let k = t.cols / dw1.cols.max(1);
    dw1.par_blocks(1).for_each(|(i, mut block)| {
        let out = block.row_mut(0);
        let mut total = vec![T::ZERO; out.len()];
        vectorised(
            #[inline(always)]
            || {
                for row in 0..t.rows {
                    let own = &dy.row(row)[i * k..(i + 1) * k];
                    for (total, t) in total.iter_mut().zip(t.row(row).chunks_exact(k.max(1))) {
                        *total += sum(k, |o| own[o] * t[o]);
                    }
                }
            },
        );
        for (d, total) in out.iter_mut().zip(total) {
            // With beta 0, what was there is not read.
            *d = if beta == T::ZERO { alpha * total } else { beta * *d + alpha * total };
        }
    });
}

fn each_row<T: Real>(to: &mut MatMut<'_, T>, row: impl Fn(usize, &mut [T]) + Sync) {
    to.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        for i in 0..block.rows {
            row(first + i, block.row_mut(i));
        }
    });
}
