//! CPU softmax.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(x: Mat<'_, T>, mut y: MatMut<'_, T>) {
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let (x, y) = (x.row(first + i), block.row_mut(i));
                    let max = x.iter().fold(x[0], |m, &x| x.max(m));
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - max).exp());
                    let inverse = T::ONE / sum(y.len(), |j| y[j]);
                    y.iter_mut().for_each(|y| *y *= inverse);
                }
            },
        );
    });
}
