//! CPU gather.

use rayon::prelude::*;

use crate::cpu::{Element, Mat, MatMut, Real};
use crate::ops::ROW_BLOCK;

pub fn gather<S: Element, T: Real>(ids: &[u32], table: Mat<'_, S>, mut y: MatMut<'_, T>) {
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        for i in 0..block.rows {
            let from = table.row(ids[first + i] as usize);
            block.row_mut(i).iter_mut().zip(from).for_each(|(d, s)| *d = T::from_f64(s.to_f64()));
        }
    });
}
