//! CPU SwiGLU gate.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(x: Mat<'_, T>, mut y: MatMut<'_, T>) {
    let n = y.cols;
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let (gate, up) = x.row(first + i).split_at(n);
                    for ((y, &g), &u) in block.row_mut(i).iter_mut().zip(gate).zip(up) {
                        *y = g / (T::ONE + (-g).exp()) * u;
                    }
                }
            },
        );
    });
}
