//! CPU convolution, the fast path: tiles of the picture, copied once with their border, as three matrix
//! products.
//!
//! In channels-last layout the three taps of one tap row lie side by side in memory, so the unfolded input of
//! a tap row is the tile itself read as overlapping rows of `3·c` elements, one every `c` (stride 1) or `2c`
//! (stride 2). Nothing is unfolded in memory. The price is that the two border columns between picture rows
//! are computed too and thrown away.

use rayon::prelude::*;

use super::cpu::{Taps, norm_silu};
use super::{Pictures, Resample, Write};
use crate::cpu::{Mat, MatMut, Real, vectorised};
use crate::ops::gemm::{Operand, product_serial};

/// Output columns of a tile, at most.
const TILE_COLUMNS: usize = 64;
/// Output rows of a tile, at most: with the columns, what the second-level cache holds for the usual
/// channels.
const TILE_ROWS: usize = 16;
/// Output pixels of a task, at least where the picture has them: fewer do not pay for packing the weights.
const TASK_PIXELS: usize = 256;
/// Multiply-adds of a task, about: small enough to share a picture among threads.
const TASK_WORK: usize = 16 << 20;

/// Rows of a band, from the shape alone.
fn band_rows(output: Pictures, work_per_pixel: usize) -> usize {
    let pixels = (TASK_WORK / work_per_pixel).max(TASK_PIXELS);
    (pixels / output.width.max(1)).clamp(1, TILE_ROWS)
}

pub fn forward<T: Real>(x: Mat<'_, T>, input: Pictures, taps: Taps<'_, T>, write: Write, y: MatMut<'_, T>) {
    let output = taps.resample.output(input);
    let rows = band_rows(output, taps.weight.rows * taps.weight.cols);
    let mut bands = Vec::with_capacity(output.count * output.height.div_ceil(rows));
    let mut rest = y.data;
    for picture in 0..output.count {
        for first in (0..output.height).step_by(rows) {
            let rows = rows.min(output.height - first);
            let (data, tail) = rest.split_at_mut(rest.len().min(rows * output.width * y.stride));
            let block = MatMut { data, rows: rows * output.width, cols: y.cols, stride: y.stride };
            bands.push((picture, first, rows, block));
            rest = tail;
        }
    }
    let columns = output.width.div_ceil(output.width.div_ceil(TILE_COLUMNS).max(1));
    bands.into_par_iter().for_each_init(Scratch::default, |scratch, (picture, first, rows, mut y)| {
        for left in (0..output.width).step_by(columns) {
            let tile = Tile { picture, top: first, left, rows, columns: columns.min(output.width - left) };
            scratch.gather(x, input, &taps, tile);
            scratch.convolve(&taps, x.cols, tile);
            scratch.store(&taps, tile, output.width, write, &mut y);
        }
    });
}

/// A rectangle of one output picture.
#[derive(Clone, Copy)]
struct Tile {
    picture: usize,
    top: usize,
    left: usize,
    rows: usize,
    columns: usize,
}

impl Tile {
    /// Columns of the copied input.
    fn input_columns(self, resample: Resample) -> usize {
        match resample {
            Resample::Keep | Resample::Double => self.columns + 2,
            // One more than the taps reach, so that a row is a whole number of strides.
            Resample::Halve => 2 * self.columns + 2,
        }
    }

    /// Rows of the copied input.
    fn input_rows(self, resample: Resample) -> usize {
        match resample {
            Resample::Keep | Resample::Double => self.rows + 2,
            Resample::Halve => 2 * self.rows + 1,
        }
    }

    /// Where an input row of the tile lies in the copy. With stride 2 the even rows come first, so that the
    /// rows under one tap row follow each other.
    fn slot(self, resample: Resample, row: usize) -> usize {
        match resample {
            Resample::Keep | Resample::Double => row,
            Resample::Halve => row / 2 + row % 2 * (self.rows + 1),
        }
    }

    /// Output positions per row, border included.
    fn positions(self, resample: Resample) -> usize {
        match resample {
            Resample::Keep | Resample::Double => self.columns + 2,
            Resample::Halve => self.columns + 1,
        }
    }
}

struct Scratch<T> {
    /// The tile of the input: normed, resampled, with its border.
    input: Vec<T>,
    /// The tile of the output, with the useless positions between rows.
    output: Vec<T>,
    factors: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { input: Vec::new(), output: Vec::new(), factors: Vec::new() }
    }
}

impl<T: Real> Scratch<T> {
    /// Copies the part of the input under a tile.
    fn gather(&mut self, x: Mat<'_, T>, input: Pictures, taps: &Taps<'_, T>, tile: Tile) {
        let (c, resample) = (x.cols, taps.resample);
        let (rows, columns) = (tile.input_rows(resample), tile.input_columns(resample));
        self.input.resize(rows * columns * c, T::ZERO);
        let (scale, border): (usize, usize) = if resample == Resample::Halve { (2, 0) } else { (1, 1) };
        let repeat = if resample == Resample::Double { 2 } else { 1 };
        let (height, width) = (input.height * repeat, input.width * repeat);
        let before = border.saturating_sub(tile.left * scale).min(columns);
        let left = (tile.left * scale + before).saturating_sub(border);
        let inside = (columns - before).min(width.saturating_sub(left));
        for row in 0..rows {
            let start = tile.slot(resample, row) * columns * c;
            let to = &mut self.input[start..start + columns * c];
            let Some(from) = (tile.top * scale + row).checked_sub(border).filter(|&r| r < height) else {
                to.fill(T::ZERO);
                continue;
            };
            to[..before * c].fill(T::ZERO);
            to[(before + inside) * c..].fill(T::ZERO);
            let first = (tile.picture * input.height + from / repeat) * input.width;
            let to = &mut to[before * c..(before + inside) * c];
            if repeat == 1 && x.stride == c {
                to.copy_from_slice(&x.data[(first + left) * c..(first + left + inside) * c]);
            } else {
                for (i, pixel) in to.chunks_exact_mut(c).enumerate() {
                    pixel.copy_from_slice(x.row(first + (left + i) / repeat));
                }
            }
            if let Some(norm) = taps.norm {
                // Unless it is inlined, the closure is compiled for the build's baseline instead.
                vectorised(
                    #[inline(always)]
                    || norm_silu(to, norm, &mut self.factors),
                );
            }
        }
    }

    /// Sums the three tap rows.
    fn convolve(&mut self, taps: &Taps<'_, T>, c: usize, tile: Tile) {
        let (resample, out) = (taps.resample, taps.weight.cols);
        let step = if resample == Resample::Halve { 2 * c } else { c };
        let positions = (tile.rows - 1) * tile.positions(resample) + tile.columns;
        self.output.resize(tile.rows * tile.positions(resample) * out, T::ZERO);
        for tap_row in 0..3 {
            let start = tile.slot(resample, tap_row) * tile.input_columns(resample) * c;
            let end = start + (positions - 1) * step + 3 * c;
            let a = Mat { data: &self.input[start..end], rows: positions, cols: 3 * c, stride: step };
            let weight = taps.weight;
            let from = tap_row * 3 * c * weight.stride;
            let to = from + (3 * c - 1) * weight.stride + out;
            let w = Mat { data: &weight.data[from..to], rows: 3 * c, cols: out, stride: weight.stride };
            let data = &mut self.output[..positions * out];
            let mut sum = MatMut { data, rows: positions, cols: out, stride: out };
            let beta = if tap_row == 0 { T::ZERO } else { T::ONE };
            product_serial(T::ONE, Operand::new(a, false), Operand::new(w, false), beta, &mut sum);
        }
    }

    /// Adds the bias and writes the tile to its band of the output.
    fn store(&self, taps: &Taps<'_, T>, tile: Tile, width: usize, write: Write, y: &mut MatMut<'_, T>) {
        let (out, positions) = (taps.weight.cols, tile.positions(taps.resample));
        vectorised(
            #[inline(always)]
            || {
                for row in 0..tile.rows {
                    for col in 0..tile.columns {
                        let from = (row * positions + col) * out;
                        let sums = self.output[from..from + out].iter().zip(taps.bias);
                        let y = y.row_mut(row * width + tile.left + col).iter_mut();
                        match write {
                            Write::Replace => y.zip(sums).for_each(|(y, (&s, &b))| *y = s + b),
                            Write::Add => y.zip(sums).for_each(|(y, (&s, &b))| *y += s + b),
                        }
                    }
                }
            },
        );
    }
}
