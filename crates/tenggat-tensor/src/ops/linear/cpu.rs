//! CPU linear layer whose weight is stored narrower than it computes.

use half::bf16;

use super::Write;
use crate::cpu::{Mat, MatMut, Real};
use crate::ops::gemm::{Operand, product};

/// Rows of W widened at once: the copy stays in the second-level cache for the usual widths.
const WEIGHT_ROWS: usize = 128;

/// Widens rows of `w` into `scratch` and hands each block on, with its first row.
fn widened<T: Real>(w: Mat<'_, bf16>, mut block: impl FnMut(usize, Mat<'_, T>)) {
    let mut scratch = vec![T::ZERO; WEIGHT_ROWS.min(w.rows) * w.cols];
    for from in (0..w.rows).step_by(WEIGHT_ROWS) {
        let rows = WEIGHT_ROWS.min(w.rows - from);
        for i in 0..rows {
            let wide = &mut scratch[i * w.cols..(i + 1) * w.cols];
            wide.iter_mut().zip(w.row(from + i)).for_each(|(d, s)| *d = T::from_f64(s.to_f64()));
        }
        block(from, Mat { data: &scratch[..rows * w.cols], rows, cols: w.cols, stride: w.cols });
    }
}

pub fn forward_widened<T: Real>(x: Mat<'_, T>, w: Mat<'_, bf16>, write: Write, y: MatMut<'_, T>) {
    let beta = T::from_f64(write.beta());
    let stride = y.stride;
    widened(w, |from, block| {
        let columns = MatMut { data: &mut y.data[from..], rows: y.rows, cols: block.rows, stride };
        product(T::ONE, Operand::new(x, false), Operand::new(block, true), beta, columns);
    });
}

pub fn backward_widened<T: Real>(dy: Mat<'_, T>, w: Mat<'_, bf16>, write: Write, dx: MatMut<'_, T>) {
    let (cols, stride) = (dx.cols, dx.stride);
    widened(w, |from, block| {
        // Later blocks add to what the first has written.
        let beta = if from == 0 { T::from_f64(write.beta()) } else { T::ONE };
        let part = Mat { data: &dy.data[from..], rows: dy.rows, cols: block.rows, stride: dy.stride };
        let out = MatMut { data: &mut *dx.data, rows: dx.rows, cols, stride };
        product(T::ONE, Operand::new(part, false), Operand::new(block, false), beta, out);
    });
}
