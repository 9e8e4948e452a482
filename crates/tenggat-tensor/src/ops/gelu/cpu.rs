//! CPU GELU.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

/// √(2/π).
const SCALE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044715;

/// σ(2u) of the file `mod.rs`.
#[inline(always)]
fn gate<T: Real>(x: T) -> T {
    let minus_two_u = T::from_f64(-2.0 * SCALE) * (x + T::from_f64(CUBIC) * x * x * x);
    T::ONE / (T::ONE + minus_two_u.exp())
}

pub fn forward<T: Real>(x: Mat<'_, T>, mut y: MatMut<'_, T>) {
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    block.row_mut(i).iter_mut().zip(x.row(first + i)).for_each(|(y, &x)| *y = x * gate(x));
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
                        let s = gate(x);
                        let slope = T::from_f64(2.0 * SCALE) + T::from_f64(6.0 * SCALE * CUBIC) * x * x;
                        *d *= s + x * s * (T::ONE - s) * slope;
                    });
                }
            },
        );
    });
}
