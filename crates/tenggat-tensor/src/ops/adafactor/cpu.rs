//! CPU Adafactor.

use rayon::prelude::*;

use super::Hyper;
use crate::cpu::{Element, Mat, MatMut, Real, sum, vectorised};

/// Columns that one task sums; a constant, as are the rows that others take.
const COLUMNS: usize = 256;
const ROWS: usize = 16;

type State<'a, T> = (MatMut<'a, T>, MatMut<'a, T>, Option<(MatMut<'a, T>, f64)>);

pub fn step<T: Real>(
    mut parameter: MatMut<'_, T>,
    gradient: Mat<'_, T>,
    clip: Mat<'_, T>,
    (mut rows, mut columns, first): State<'_, T>,
    h: Hyper,
) {
    let factor = clip.row(0)[1];
    let (m, n) = (gradient.rows, gradient.cols);
    if m == 0 || n == 0 {
        return;
    }
    let lr = match h.scale_floor {
        Some(floor) => {
            let squares = by_rows(m, |i| squares(parameter.data, i * parameter.stride, n));
            h.lr * (squares / (m * n) as f64).sqrt().max(floor)
        }
        None => h.lr,
    };
    let (beta2, rest2) = (T::from_f64(h.beta2), T::from_f64(1.0 - h.beta2));
    let (eps, per_row, per_column) =
        (T::from_f64(h.eps), T::from_f64(1.0 / n as f64), T::from_f64(1.0 / m as f64));
    let square = |g: T| (g * factor) * (g * factor) + eps;
    rows.row_mut(0).par_iter_mut().enumerate().for_each(|(i, r)| {
        let g = gradient.row(i);
        let mean = per_row
            * vectorised(
                #[inline(always)]
                || sum(n, |j| square(g[j])),
            );
        *r = beta2 * *r + rest2 * mean;
    });
    columns.row_mut(0).par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, c)| {
        let mut sums = [T::ZERO; COLUMNS];
        let from = chunk * COLUMNS;
        for i in 0..m {
            let g = &gradient.row(i)[from..from + c.len()];
            sums.iter_mut().zip(g).for_each(|(sum, &g)| *sum += square(g));
        }
        c.iter_mut().zip(sums).for_each(|(c, sum)| *c = beta2 * *c + rest2 * (sum * per_column));
    });
    let (rows, columns) = (&*rows.row_mut(0), &*columns.row_mut(0));
    let mean = T::from_f64(rows.iter().map(|r| r.to_f64()).sum::<f64>() / m as f64);
    let of_row = |i: usize| factor * (mean / rows[i]).sqrt();
    let of_column: Vec<T> = columns.iter().map(|c| T::ONE / c.sqrt()).collect();
    let total = by_rows(m, |i| {
        let (g, row) = (gradient.row(i), of_row(i));
        let squares = vectorised(
            #[inline(always)]
            || {
                sum(n, |j| {
                    let u = g[j] * row * of_column[j];
                    u * u
                })
            },
        );
        Element::to_f64(squares)
    });
    let root = (total / (m * n) as f64).sqrt();
    let scale = T::from_f64(lr / (root / h.threshold).max(1.0));
    let decay = T::from_f64(1.0 - lr * h.weight_decay);
    let update = |p: &mut T, u: T| *p = *p * decay - u;
    match first {
        None => parameter.par_blocks(ROWS).for_each(|(from, mut block)| {
            for i in 0..block.rows {
                let (g, row) = (gradient.row(from + i), scale * of_row(from + i));
                let columns = g.iter().zip(&of_column);
                block.row_mut(i).iter_mut().zip(columns).for_each(|(p, (&g, &c))| update(p, g * row * c));
            }
        }),
        Some((mut first, beta1)) => {
            let (beta1, rest1) = (T::from_f64(beta1), T::from_f64(1.0 - beta1));
            parameter.par_blocks(ROWS).zip(first.par_blocks(ROWS)).for_each(
                |((from, mut block), (_, mut first))| {
                    for i in 0..block.rows {
                        let (g, row) = (gradient.row(from + i), scale * of_row(from + i));
                        let columns = g.iter().zip(&of_column).zip(first.row_mut(i));
                        block.row_mut(i).iter_mut().zip(columns).for_each(|(p, ((&g, &c), m))| {
                            *m = beta1 * *m + rest1 * (g * row * c);
                            update(p, *m);
                        });
                    }
                },
            );
        }
    }
}

/// Sum over rows, each by a task of its own, added in their order.
fn by_rows(m: usize, row: impl Fn(usize) -> f64 + Sync + Send) -> f64 {
    let parts: Vec<f64> = (0..m).into_par_iter().map(row).collect();
    parts.iter().sum()
}

fn squares<T: Real>(data: &[T], from: usize, n: usize) -> f64 {
    let row = &data[from..from + n];
    let squares = vectorised(
        #[inline(always)]
        || sum(n, |j| row[j] * row[j]),
    );
    Element::to_f64(squares)
}
