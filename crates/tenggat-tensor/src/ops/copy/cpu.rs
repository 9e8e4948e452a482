//! CPU copies.

use rayon::prelude::*;

use crate::cpu::{Element, Mat, MatMut, Real};
use crate::ops::ROW_BLOCK;

fn for_each_row<T: Element>(to: &mut MatMut<'_, T>, row: impl Fn(usize, &mut [T]) + Sync) {
    to.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        for i in 0..block.rows {
            row(first + i, block.row_mut(i));
        }
    });
}

pub fn copy<T: Element>(from: Mat<'_, T>, mut to: MatMut<'_, T>) {
    for_each_row(&mut to, |i, row| row.copy_from_slice(from.row(i)));
}

pub fn zero<T: Real>(mut to: MatMut<'_, T>) {
    for_each_row(&mut to, |_, row| row.fill(T::ZERO));
}

pub fn add_scaled<T: Real>(alpha: T, from: Mat<'_, T>, mut to: MatMut<'_, T>) {
    for_each_row(&mut to, |i, row| row.iter_mut().zip(from.row(i)).for_each(|(d, &s)| *d += alpha * s));
}

pub fn multiply<T: Real>(from: Mat<'_, T>, mut to: MatMut<'_, T>) {
    for_each_row(&mut to, |i, row| row.iter_mut().zip(from.row(i)).for_each(|(d, &s)| *d *= s));
}

pub fn broadcast_row<T: Real>(from: Mat<'_, T>, mut to: MatMut<'_, T>) {
    for_each_row(&mut to, |_, row| row.copy_from_slice(from.row(0)));
}

pub fn lerp<T: Real>(weight: T, from: Mat<'_, T>, mut to: MatMut<'_, T>) {
    for_each_row(&mut to, |i, row| {
        row.iter_mut().zip(from.row(i)).for_each(|(d, &s)| *d += weight * (s - *d))
    });
}
