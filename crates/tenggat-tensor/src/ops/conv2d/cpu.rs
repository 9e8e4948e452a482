//! CPU convolution, the readable reference.

use rayon::prelude::*;

use super::{Pictures, Resample, Write};
use crate::cpu::{Mat, MatMut, Real};

/// Smallest length that the norm divides by.
const MIN_LENGTH: f64 = 1e-12;

/// A filter in host memory.
#[derive(Clone, Copy)]
pub struct Taps<'a, T> {
    /// `[9·in, out]`.
    pub weight: Mat<'a, T>,
    /// `[out]`.
    pub bias: &'a [T],
    /// `[in]`.
    pub norm: Option<&'a [T]>,
    /// Ratio of sizes.
    pub resample: Resample,
}

/// Norms the channels of each pixel and applies SiLU; `pixels`: whole pixels, one after another; `factors`:
/// scratch.
#[inline(always)]
pub fn norm_silu<T: Real>(pixels: &mut [T], norm: &[T], factors: &mut Vec<T>) {
    let root = T::from_f64((norm.len() as f64).sqrt());
    factors.resize(pixels.len() / norm.len(), T::ZERO);
    for (factor, pixel) in factors.iter_mut().zip(pixels.chunks_exact(norm.len())) {
        *factor = sum_of_squares(pixel);
    }
    for factor in factors.iter_mut() {
        *factor = root / factor.sqrt().max(T::from_f64(MIN_LENGTH));
    }
    for (pixel, &factor) in pixels.chunks_exact_mut(norm.len()).zip(&*factors) {
        pixel.iter_mut().zip(norm).for_each(|(v, &w)| *v = *v * factor * w);
    }
    for v in pixels {
        *v = *v / (T::ONE + (-*v).exp());
    }
}

/// Sums in 16 lanes: the fewest channels of real models.
#[inline(always)]
fn sum_of_squares<T: Real>(pixel: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let (chunks, tail) = pixel.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane += v * v);
    }
    lanes.iter_mut().zip(tail).for_each(|(lane, &v)| *lane += v * v);
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            let other = lanes[l + width];
            lanes[l] += other;
        }
    }
    lanes[0]
}

pub fn forward<T: Real>(
    x: Mat<'_, T>,
    input: Pictures,
    taps: Taps<'_, T>,
    write: Write,
    mut y: MatMut<'_, T>,
) {
    let activated: Vec<T> = (0..x.rows)
        .flat_map(|i| {
            let mut pixel = x.row(i).to_vec();
            if let Some(norm) = taps.norm {
                norm_silu(&mut pixel, norm, &mut Vec::new());
            }
            pixel
        })
        .collect();
    let output = taps.resample.output(input);
    // Index of the input pixel at a place of the output's picture and tap, if it is inside.
    let source = |at: usize, tap: usize, size: usize| match taps.resample {
        Resample::Keep => (at + tap).checked_sub(1).filter(|&p| p < size),
        Resample::Halve => Some(2 * at + tap).filter(|&p| p < size),
        Resample::Double => (at + tap).checked_sub(1).map(|p| p / 2).filter(|&p| p < size),
    };
    y.par_blocks(1).for_each(|(p, mut pixel)| {
        let (row, col) = (p / output.width, p % output.width);
        let (picture, row) = (row / output.height, row % output.height);
        let y = pixel.row_mut(0);
        match write {
            Write::Replace => y.copy_from_slice(taps.bias),
            Write::Add => y.iter_mut().zip(taps.bias).for_each(|(y, &b)| *y += b),
        }
        for tap in 0..9 {
            let place = source(row, tap / 3, input.height).zip(source(col, tap % 3, input.width));
            let Some((row, col)) = place else { continue };
            let from = ((picture * input.height + row) * input.width + col) * x.cols;
            for (i, &a) in activated[from..from + x.cols].iter().enumerate() {
                let weights = taps.weight.row(tap * x.cols + i);
                y.iter_mut().zip(weights).for_each(|(y, &w)| *y += a * w);
            }
        }
    });
}
