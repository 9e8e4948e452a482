//! CPU SiLU.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

pub fn forward<T: Real>(x: Mat<'_, T>, mut y: MatMut<'_, T>) {
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    block.row_mut(i).iter_mut().zip(x.row(first + i)).for_each(|(y, &x)| *y = x * sigmoid(x));
                }
            },
        );
    });
}

pub fn backward<T: Real>(x: Mat<'_, T>, mut d: MatMut<'_, T>) {
    d.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    block.row_mut(i).iter_mut().zip(x.row(first + i)).for_each(|(d, &x)| {
                        let s = sigmoid(x);
                        *d *= s + x * s * (T::ONE - s);
                    });
                }
            },
        );
    });
}
