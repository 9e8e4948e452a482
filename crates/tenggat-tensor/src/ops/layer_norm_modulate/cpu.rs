//! CPU layer norm and modulation.

use rayon::prelude::*;

use super::EPS;
use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(
    x: Mat<'_, T>,
    modulation: Mat<'_, T>,
    tokens: usize,
    mut y: MatMut<'_, T>,
    mut stats: MatMut<'_, T>,
) {
    let c = x.cols;
    let inverse = T::from_f64(1.0 / c as f64);
    y.par_blocks(ROW_BLOCK).zip(stats.par_blocks(ROW_BLOCK)).for_each(|((first, mut y), (_, mut stats))| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..y.rows {
                    let x = x.row(first + i);
                    let mean = sum(c, |j| x[j]) * inverse;
                    let variance = sum(c, |j| (x[j] - mean) * (x[j] - mean)) * inverse;
                    let rstd = T::ONE / (variance + T::from_f64(EPS)).sqrt();
                    stats.row_mut(i).copy_from_slice(&[mean, rstd]);
                    let (shift, scale) = modulation.row((first + i) / tokens).split_at(c);
                    for (((y, &x), &shift), &scale) in y.row_mut(i).iter_mut().zip(x).zip(shift).zip(scale) {
                        *y = (x - mean) * rstd * (T::ONE + scale) + shift;
                    }
                }
            },
        );
    });
}

pub fn backward_input<T: Real>(
    x: Mat<'_, T>,
    modulation: Mat<'_, T>,
    stats: Mat<'_, T>,
    tokens: usize,
    dy: Mat<'_, T>,
    mut dx: MatMut<'_, T>,
) {
    let c = x.cols;
    let inverse = T::from_f64(1.0 / c as f64);
    dx.par_blocks(ROW_BLOCK).for_each(|(first, mut dx)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..dx.rows {
                    let row = first + i;
                    let (x, dy, scale) = (x.row(row), dy.row(row), &modulation.row(row / tokens)[c..]);
                    let (mean, rstd) = (stats.row(row)[0], stats.row(row)[1]);
                    let mean_g = sum(c, |j| dy[j] * (T::ONE + scale[j])) * inverse;
                    let mean_gn = sum(c, |j| dy[j] * (T::ONE + scale[j]) * ((x[j] - mean) * rstd)) * inverse;
                    for (((dx, &x), &dy), &scale) in dx.row_mut(i).iter_mut().zip(x).zip(dy).zip(scale) {
                        let n = (x - mean) * rstd;
                        *dx += rstd * (dy * (T::ONE + scale) - mean_g - n * mean_gn);
                    }
                }
            },
        );
    });
}

/// Columns that one task sums over all tokens.
const COLUMN_BLOCK: usize = 256;

pub fn backward_modulation<T: Real>(
    x: Mat<'_, T>,
    stats: Mat<'_, T>,
    tokens: usize,
    dy: Mat<'_, T>,
    mut dmodulation: MatMut<'_, T>,
) {
    let c = x.cols;
    dmodulation.par_blocks(1).for_each(|(sample, mut dmodulation)| {
        let (dshift, dscale) = dmodulation.row_mut(0).split_at_mut(c);
        let blocks = dshift.par_chunks_mut(COLUMN_BLOCK).zip(dscale.par_chunks_mut(COLUMN_BLOCK));
        blocks.enumerate().for_each(|(block, (dshift, dscale))| {
            let columns = block * COLUMN_BLOCK..block * COLUMN_BLOCK + dshift.len();
            vectorised(
                #[inline(always)]
                || {
                    dshift.fill(T::ZERO);
                    dscale.fill(T::ZERO);
                    for row in sample * tokens..(sample + 1) * tokens {
                        let (x, dy) = (&x.row(row)[columns.clone()], &dy.row(row)[columns.clone()]);
                        let (mean, rstd) = (stats.row(row)[0], stats.row(row)[1]);
                        for (((ds, dc), &x), &dy) in dshift.iter_mut().zip(&mut *dscale).zip(x).zip(dy) {
                            *ds += dy;
                            *dc += dy * ((x - mean) * rstd);
                        }
                    }
                },
            );
        });
    });
}
