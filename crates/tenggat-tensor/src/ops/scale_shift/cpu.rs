//! CPU scale and shift.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(x: Mat<'_, T>, scale: &[T], shift: &[T], mut y: MatMut<'_, T>) {
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let columns = x.row(first + i).iter().zip(scale).zip(shift);
                    block.row_mut(i).iter_mut().zip(columns).for_each(|(y, ((&x, &a), &b))| *y = x * a + b);
                }
            },
        );
    });
}
