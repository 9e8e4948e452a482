//! CPU gated residual.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(
    x: Mat<'_, T>,
    gate: Mat<'_, T>,
    y: Mat<'_, T>,
    tokens: usize,
    mut out: MatMut<'_, T>,
) {
    out.par_blocks(ROW_BLOCK).for_each(|(first, mut out)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..out.rows {
                    let (x, y, gate) = (x.row(first + i), y.row(first + i), gate.row((first + i) / tokens));
                    for (((out, &x), &y), &gate) in out.row_mut(i).iter_mut().zip(x).zip(y).zip(gate) {
                        *out = x + gate * y;
                    }
                }
            },
        );
    });
}

pub fn backward_input<T: Real>(gate: Mat<'_, T>, dout: Mat<'_, T>, tokens: usize, mut dy: MatMut<'_, T>) {
    dy.par_blocks(ROW_BLOCK).for_each(|(first, mut dy)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..dy.rows {
                    let (dout, gate) = (dout.row(first + i), gate.row((first + i) / tokens));
                    for ((dy, &dout), &gate) in dy.row_mut(i).iter_mut().zip(dout).zip(gate) {
                        *dy = gate * dout;
                    }
                }
            },
        );
    });
}

/// Columns that one task sums over all tokens.
const COLUMN_BLOCK: usize = 256;

pub fn backward_gate<T: Real>(y: Mat<'_, T>, dout: Mat<'_, T>, tokens: usize, mut dgate: MatMut<'_, T>) {
    dgate.par_blocks(1).for_each(|(sample, mut dgate)| {
        dgate.row_mut(0).par_chunks_mut(COLUMN_BLOCK).enumerate().for_each(|(block, dgate)| {
            let columns = block * COLUMN_BLOCK..block * COLUMN_BLOCK + dgate.len();
            vectorised(
                #[inline(always)]
                || {
                    dgate.fill(T::ZERO);
                    for row in sample * tokens..(sample + 1) * tokens {
                        let (y, dout) = (&y.row(row)[columns.clone()], &dout.row(row)[columns.clone()]);
                        for ((dg, &y), &dout) in dgate.iter_mut().zip(y).zip(dout) {
                            *dg += dout * y;
                        }
                    }
                },
            );
        });
    });
}
