//! CPU linear layer whose weight is stored narrower than it computes.
//!
//! Every task widens its own part of the weight into scratch that it owns and multiplies it at once: no
//! barrier between the two, each weight is widened once per pass, and the copy stays in the cache of the core
//! that made it.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Write;
use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::gemm::{Operand, Shared, kernel};
use crate::weight::Quantised;

/// Fewest and most outputs (forward) or inputs (backward) that a task takes: multiples of the micro-kernels'
/// edges, and for the inputs of the groups of quantised formats.
const FEWEST: usize = 64;
const MOST: usize = 192;
/// Tasks that a layer is cut into if it is large enough.
const TASKS: usize = 64;
/// Weights along the inner axis that are widened at once; a multiple of every group. With [`MOST`] the copy
/// is 1.5 MB in f32.
const INNER: usize = 2048;

/// A weight `[out, in]` that widens in rectangles.
pub trait Widen<T>: Sync {
    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];
    /// Writes the weights of a rectangle, row-major. Column ranges start and end at multiples of 64, or at
    /// the end.
    fn widen(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [T]);
}

impl<T: Real> Widen<T> for Mat<'_, bf16> {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn widen(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [T]) {
        let width = cols.len();
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in rows.enumerate() {
                    let wide = &mut out[i * width..(i + 1) * width];
                    let narrow = &self.row(row)[cols.clone()];
                    wide.iter_mut().zip(narrow).for_each(|(d, s)| {
                        *d = T::from_f64(f64::from(f32::from_bits(u32::from(s.to_bits()) << 16)))
                    });
                }
            },
        );
    }
}

impl<T: Real> Widen<T> for Quantised {
    fn shape(&self) -> [usize; 2] {
        Quantised::shape(self)
    }

    fn widen(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [T]) {
        Quantised::dequantise_part(self, rows, cols, out);
    }
}

/// Size of the parts that `len` is cut into; depends on the shape alone.
fn part(len: usize) -> usize {
    (len / TASKS).next_multiple_of(FEWEST).clamp(FEWEST, MOST)
}

fn pieces(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |from| from..len.min(from + size))
}

/// `y = x · Wᵀ`, or added to `y`.
pub fn forward<T: Real>(x: Mat<'_, T>, w: &impl Widen<T>, write: Write, mut y: MatMut<'_, T>) {
    let [out, input] = w.shape();
    assert!(x.cols == input && y.rows == x.rows && y.cols == out);
    if input == 0 {
        return;
    }
    let size = part(out);
    let shared = Shared::new(&mut y);
    (0..out.div_ceil(size)).into_par_iter().for_each(|task| {
        let rows = task * size..out.min((task + 1) * size);
        T::with_scratch(size * INNER.min(input), |scratch| {
            for cols in pieces(input, INNER) {
                let beta = if cols.start == 0 { T::from_f64(write.beta()) } else { T::ONE };
                let (n, k) = (rows.len(), cols.len());
                let x = Mat { data: x.data.get(cols.start..).unwrap_or_default(), cols: k, ..x };
                let wide = &mut scratch[..n * k];
                w.widen(rows.clone(), cols, wide);
                let wide = Mat { data: &*wide, rows: n, cols: k, stride: k };
                let (x, wide) = (Operand::new(x, false), Operand::new(wide, true));
                // SAFETY: this task alone writes these columns of `y`, which the call borrows exclusively;
                // there are as many rows as x has.
                unsafe { kernel(T::ONE, x, wide, beta, shared.at(0, rows.start), shared.stride) }
            }
        });
    });
}

/// `dx = dy · W`, or added to `dx`.
pub fn backward<T: Real>(dy: Mat<'_, T>, w: &impl Widen<T>, write: Write, mut dx: MatMut<'_, T>) {
    let [out, input] = w.shape();
    assert!(dy.cols == out && dx.rows == dy.rows && dx.cols == input);
    let size = part(input);
    let shared = Shared::new(&mut dx);
    (0..input.div_ceil(size)).into_par_iter().for_each(|task| {
        let cols = task * size..input.min((task + 1) * size);
        T::with_scratch(size * INNER.min(out), |scratch| {
            for rows in pieces(out, INNER) {
                let beta = if rows.start == 0 { T::from_f64(write.beta()) } else { T::ONE };
                let (n, k) = (cols.len(), rows.len());
                let dy = Mat { data: dy.data.get(rows.start..).unwrap_or_default(), cols: k, ..dy };
                let wide = &mut scratch[..k * n];
                w.widen(rows, cols.clone(), wide);
                let wide = Mat { data: &*wide, rows: k, cols: n, stride: n };
                let (dy, wide) = (Operand::new(dy, false), Operand::new(wide, false));
                // SAFETY: this task alone writes these columns of `dx`, which the call borrows exclusively;
                // there are as many rows as dy has.
                unsafe { kernel(T::ONE, dy, wide, beta, shared.at(0, cols.start), shared.stride) }
            }
        });
    });
}
