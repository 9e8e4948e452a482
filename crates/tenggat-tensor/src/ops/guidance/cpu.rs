//! CPU guidance.

use rayon::prelude::*;

use super::Norm;
use crate::cpu::{Mat, MatMut, Real, sum, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(mut conditional: MatMut<'_, T>, unconditional: Mat<'_, T>, scale: T, norm: Norm) {
    let n = conditional.cols;
    conditional.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let (c, u) = (block.row_mut(i), unconditional.row(first + i));
                    let conditional = sum(n, |j| c[j] * c[j]);
                    c.iter_mut().zip(u).for_each(|(c, &u)| *c = u + scale * (*c - u));
                    if norm == Norm::Guided {
                        continue;
                    }
                    let guided = sum(n, |j| c[j] * c[j]);
                    if guided > T::ZERO {
                        let factor = (conditional / guided).sqrt();
                        c.iter_mut().for_each(|c| *c *= factor);
                    }
                }
            },
        );
    });
}
