//! CPU layer norm.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(x: Mat<'_, T>, weight: Mat<'_, T>, bias: Mat<'_, T>, eps: f64, mut y: MatMut<'_, T>) {
    let (n, weight, bias) = (x.cols, weight.row(0), bias.row(0));
    let inverse = T::from_f64(1.0 / n as f64);
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let x = x.row(first + i);
                    let mean = sum(n, |j| x[j]) * inverse;
                    let variance = sum(n, |j| (x[j] - mean) * (x[j] - mean)) * inverse;
                    let rstd = T::ONE / (variance + T::from_f64(eps)).sqrt();
                    for (((y, &x), &w), &b) in block.row_mut(i).iter_mut().zip(x).zip(weight).zip(bias) {
                        *y = (x - mean) * rstd * w + b;
                    }
                }
            },
        );
    });
}
