//! CPU group norm.

use std::ops::Range;

use rayon::prelude::*;

use super::Norm;
use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

/// Pixels that one task sums: a constant, so that sums are grouped alike whatever the number of threads.
const CHUNK: usize = 1024;

/// Of one picture, per channel: the mean, and ρ times the weight.
struct Statistics<T> {
    mean: Vec<T>,
    scale: Vec<T>,
}

pub fn forward<T: Real>(
    x: Mat<'_, T>,
    pixels: usize,
    norm: Norm<'_>,
    (weight, bias): (&[T], &[T]),
    mut y: MatMut<'_, T>,
) {
    let pictures = 0..x.rows / pixels.max(1);
    let of = |picture| statistics(x, picture * pixels..(picture + 1) * pixels, norm, weight);
    let pictures: Vec<Statistics<T>> = pictures.map(of).collect();
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let of = &pictures[(first + i) / pixels];
                    let columns = x.row(first + i).iter().zip(&of.mean).zip(&of.scale).zip(bias);
                    let y = block.row_mut(i).iter_mut().zip(columns);
                    y.for_each(|(y, (((&x, &mean), &scale), &bias))| *y = (x - mean) * scale + bias);
                    if norm.silu {
                        block.row_mut(i).iter_mut().for_each(|y| *y = *y / (T::ONE + (-*y).exp()));
                    }
                }
            },
        );
    });
}

fn statistics<T: Real>(x: Mat<'_, T>, rows: Range<usize>, norm: Norm<'_>, weight: &[T]) -> Statistics<T> {
    let per_group = x.cols / norm.groups;
    let inverse = T::from_f64(1.0 / (rows.len() * per_group) as f64);
    // The mean over each group, in the place of each of its channels.
    let grouped = |columns: Vec<T>| -> Vec<T> {
        let mean = |group: &[T]| group.iter().fold(T::ZERO, |sum, &v| sum + v) * inverse;
        columns.chunks(per_group).flat_map(|group| vec![mean(group); per_group]).collect()
    };
    let zero = vec![T::ZERO; x.cols];
    let mean = grouped(column_sums(x, rows.clone(), &zero, |d| d));
    let variance = grouped(column_sums(x, rows, &mean, |d| d * d));
    let scale = |(&variance, &w): (&T, &T)| w / (variance + T::from_f64(norm.eps)).sqrt();
    Statistics { scale: variance.iter().zip(weight).map(scale).collect(), mean }
}

/// Σ f(x − offset) over some rows, column by column.
fn column_sums<T: Real>(
    x: Mat<'_, T>,
    rows: Range<usize>,
    offset: &[T],
    f: impl Fn(T) -> T + Sync,
) -> Vec<T> {
    let chunks: Vec<usize> = rows.clone().step_by(CHUNK).collect();
    let sums: Vec<Vec<T>> = chunks
        .into_par_iter()
        .map(|from| {
            let mut sums = vec![T::ZERO; x.cols];
            vectorised(
                #[inline(always)]
                || {
                    for row in from..(from + CHUNK).min(rows.end) {
                        let columns = sums.iter_mut().zip(x.row(row)).zip(offset);
                        columns.for_each(|((sum, &x), &offset)| *sum += f(x - offset));
                    }
                },
            );
            sums
        })
        .collect();
    let mut total = vec![T::ZERO; x.cols];
    for sums in sums {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    total
}
