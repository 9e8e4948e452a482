//! CPU rotary embedding.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::ROW_BLOCK;

pub fn forward<T: Real>(table: Mat<'_, T>, mut x: MatMut<'_, T>) {
    let d = table.cols;
    x.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    let (cos, sin) = table.row(first + i).split_at(d / 2);
                    for head in block.row_mut(i).chunks_exact_mut(d) {
                        let (re, im) = head.split_at_mut(d / 2);
                        for (((re, im), &cos), &sin) in re.iter_mut().zip(im).zip(cos).zip(sin) {
                            (*re, *im) = (*re * cos - *im * sin, *im * cos + *re * sin);
                        }
                    }
                }
            },
        );
    });
}
