//! Large pictures in overlapping tiles, blended where they overlap.
//!
//! Source: `tiled_encode` and `tiled_decode` of diffusers 0.42 `autoencoder_kl_qwenimage.py`, with its
//! default sizes. Attention sees one tile instead of the picture, so the result is close to the untiled one,
//! not equal.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::copy;

use crate::Result;

/// Height and width of a tile, in pixels.
pub const TILE: usize = 256;
/// Pixels from one tile to the next; the rest of the tile overlaps and is blended.
pub const STRIDE: usize = 192;

/// Tile and stride in the units of input and output of a map.
#[derive(Debug, Clone, Copy)]
pub struct Units {
    /// Pixels per unit of the input.
    pub input: usize,
    /// Pixels per unit of the output.
    pub output: usize,
}

/// Applies `each` to overlapping tiles (`[1, h, w, c]`, larger at the same ratio as `units` coming out) of
/// picture `picture` of `x` (`[b, h, w, c]`) and blends the results into one `[1, h', w', c']`.
///
/// # Errors
/// Those of the work on a tile.
pub fn map(
    x: &Tensor,
    picture: usize,
    units: Units,
    mut each: impl FnMut(Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let [height, width] = [x.shape()[1], x.shape()[2]];
    let (tile, stride) = (TILE / units.input, STRIDE / units.input);
    let (out_tile, out_stride) = (TILE / units.output, STRIDE / units.output);
    let overlap = out_tile - out_stride;
    let out_size = [height, width].map(|n| n * units.input / units.output);
    let mut result = None;
    let mut above: Vec<Tensor> = Vec::new();
    for (row, top) in (0..height).step_by(stride).enumerate() {
        let mut current: Vec<Tensor> = Vec::new();
        for (col, left) in (0..width).step_by(stride).enumerate() {
            let size = [tile.min(height - top), tile.min(width - left)];
            let mut done = each(cut(x, picture, [top, left], size)?)?;
            if let Some(above) = above.get(col) {
                blend(above, &mut done, overlap, Axis::Rows)?;
            }
            if let Some(before) = current.last() {
                blend(before, &mut done, overlap, Axis::Columns)?;
            }
            let channels = done.shape()[3];
            let out = match &mut result {
                Some(out) => out,
                none => none.insert(x.empty_like(&[1, out_size[0], out_size[1], channels])?),
            };
            paste(&done, out, [row * out_stride, col * out_stride], out_stride)?;
            current.push(done);
        }
        above = current;
    }
    match result {
        Some(out) => Ok(out),
        None => each(cut(x, picture, [0, 0], [height, width])?),
    }
}

/// A rectangle of one picture.
fn cut(x: &Tensor, picture: usize, [top, left]: [usize; 2], [rows, cols]: [usize; 2]) -> Result<Tensor> {
    let [height, width, c] = [x.shape()[1], x.shape()[2], x.shape()[3]];
    let mut out = x.empty_like(&[1, rows, cols, c])?;
    let from = x.matrix(picture * height * width * c, height, width * c)?;
    let to = out.matrix_mut(0, rows, cols * c)?;
    copy::forward(from.row_range(top..top + rows).columns(left * c..(left + cols) * c), to)?;
    Ok(out)
}

/// Writes the first `most` rows and columns of a tile.
fn paste(tile: &Tensor, out: &mut Tensor, [top, left]: [usize; 2], most: usize) -> Result<()> {
    let [rows, cols, c] = [tile.shape()[1], tile.shape()[2], tile.shape()[3]];
    let (height, width) = (out.shape()[1], out.shape()[2]);
    let (h, w) = (rows.min(most).min(height - top), cols.min(most).min(width - left));
    let from = tile.matrix(0, rows, cols * c)?.row_range(0..h).columns(0..w * c);
    let to = out.matrix_mut(0, height, width * c)?;
    Ok(copy::forward(from, to.row_range(top..top + h).columns(left * c..(left + w) * c))?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Rows,
    Columns,
}

/// Fades from the end of `before` to the start of `tile`, linearly over `overlap` rows or columns.
fn blend(before: &Tensor, tile: &mut Tensor, overlap: usize, axis: Axis) -> Result<()> {
    let c = tile.shape()[3];
    let size = |t: &Tensor| [t.shape()[1], t.shape()[2]];
    let ([rows, cols], [old_rows, old_cols]) = (size(tile), size(before));
    let along = |[rows, cols]: [usize; 2]| if axis == Axis::Rows { rows } else { cols };
    let overlap = overlap.min(along([rows, cols])).min(along([old_rows, old_cols]));
    let old = before.matrix(0, old_rows, old_cols * c)?;
    for i in 0..overlap {
        let weight = i as f64 / overlap as f64;
        let from = along([old_rows, old_cols]) - overlap + i;
        let (old, new) = match axis {
            Axis::Rows => (
                old.row_range(from..from + 1).columns(0..old_cols.min(cols) * c),
                tile.matrix_mut(0, rows, cols * c)?.row_range(i..i + 1),
            ),
            Axis::Columns => (
                old.row_range(0..old_rows.min(rows)).columns(from * c..(from + 1) * c),
                tile.matrix_mut(0, rows, cols * c)?.columns(i * c..(i + 1) * c),
            ),
        };
        let mut new = new;
        let mut fresh = before.empty_like(&new.shape())?;
        copy::forward(new.as_view(), fresh.view_mut())?;
        copy::zero(new.reborrow())?;
        copy::add_scaled(1.0 - weight, old, new.reborrow())?;
        copy::add_scaled(weight, fresh.view(), new)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tenggat_tensor::{DType, Device};

    use super::*;

    fn picture(height: usize, width: usize) -> Tensor {
        let values: Vec<f64> = (0..2 * height * width * 2).map(|i| ((i * 7919) % 1009) as f64).collect();
        Tensor::from_f64(&Device::cpu_poisoned(), DType::F64, &values, &[2, height, width, 2]).unwrap()
    }

    /// A map that works pixel by pixel does not care about tiles, whatever they leave over at the edge.
    #[test]
    fn tiles_of_the_identity_make_the_picture() {
        for (height, width) in [(1, 1), (256, 192), (257, 256), (200, 600), (392, 385)] {
            let x = picture(height, width);
            let y = map(&x, 1, Units { input: 1, output: 1 }, Ok).unwrap();
            assert_eq!(y.shape(), [1, height, width, 2]);
            let expected = &x.to_f64().unwrap()[height * width * 2..];
            let y = y.to_f64().unwrap();
            let worst = y.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-9, "{height}x{width}: {worst:e}");
        }
    }

    /// Tiles that differ by a constant fade into each other: at `i` of 64 columns the later has the weight
    /// i/64.
    #[test]
    fn neighbours_fade_linearly() {
        let x = Tensor::zeros(&Device::cpu(), DType::F64, &[1, 16, 448, 1]).unwrap();
        let mut number = -1.0;
        let y = map(&x, 0, Units { input: 1, output: 1 }, |mut tile| {
            number += 1.0;
            tile.fill(number).unwrap();
            Ok(tile)
        });
        let y = y.unwrap().to_f64().unwrap();
        for (i, &value) in y[..448].iter().enumerate() {
            let expected = match i {
                0..192 => 0.0,
                192..256 => (i - 192) as f64 / 64.0,
                256..384 => 1.0,
                _ => 1.0 + (i - 384) as f64 / 64.0,
            };
            assert_eq!(value, expected, "column {i}");
        }
    }
}
