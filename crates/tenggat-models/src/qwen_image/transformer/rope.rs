//! Rotary position tables: `QwenEmbedRope` of diffusers `transformer_qwenimage.py` with `scale_rope = True`.
//!
//! Head channels are cut into pairs, the pairs into three axes (frame, row, column). Pair i of an axis of n
//! channels turns by `position · 10000^(−2i/n)`. Rows and columns count from the centre, `−⌈n/2⌉ … ⌊n/2⌋−1`;
//! text stands on the diagonal after the larger half, the same position on all three axes.

use tenggat_tensor::ops::copy;
use tenggat_tensor::{DType, Device, Tensor};

use crate::Result;

const THETA: f64 = 10_000.0;

/// Position tables for one picture size and text length.
#[derive(Debug)]
pub struct Positions {
    /// `[rows · columns, d]` = cosines | sines, d/2 each.
    pub image: Tensor,
    /// `[text tokens, d]` = cosines | sines, d/2 each.
    pub text: Tensor,
}

impl Positions {
    /// Tables for a picture of `grid` = (rows, columns) patches and `text_tokens` tokens.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn new(
        axes: [usize; 3],
        grid: (usize, usize),
        text_tokens: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let (rows, columns) = grid;
        let centred = |i: usize, n: usize| i as f64 - (n - n / 2) as f64;
        let image = (0..rows * columns).map(|token| {
            let (row, column) = (token / columns, token % columns);
            [0.0, centred(row, rows), centred(column, columns)]
        });
        let first = (rows / 2).max(columns / 2);
        let text = (first..first + text_tokens).map(|p| [p as f64; 3]);
        Ok(Positions { image: table(axes, image, device, dtype)?, text: table(axes, text, device, dtype)? })
    }

    /// A copy of the tables.
    ///
    /// # Errors
    /// Out of device memory.
    pub(super) fn duplicate(&self) -> Result<Self> {
        Ok(Positions { image: self.image.duplicate()?, text: self.text.duplicate()? })
    }

    /// Copies the values of tables for as many tokens.
    ///
    /// # Errors
    /// The shapes differ, or the device failed.
    pub(super) fn copy_from(&mut self, other: &Positions) -> Result<()> {
        copy::forward(other.image.view(), self.image.view_mut())?;
        Ok(copy::forward(other.text.view(), self.text.view_mut())?)
    }
}

/// Cosines | sines of every position, `[positions, d]`.
///
/// # Errors
/// Out of device memory.
fn table(
    axes: [usize; 3],
    positions: impl ExactSizeIterator<Item = [f64; 3]>,
    device: &Device,
    dtype: DType,
) -> Result<Tensor> {
    let (tokens, d) = (positions.len(), axes.iter().sum::<usize>());
    let frequencies: Vec<(usize, f64)> = axes
        .iter()
        .enumerate()
        .flat_map(|(axis, &n)| (0..n / 2).map(move |i| (axis, THETA.powf(-2.0 * i as f64 / n as f64))))
        .collect();
    let mut values = Vec::with_capacity(tokens * d);
    for position in positions {
        values.extend(frequencies.iter().map(|&(axis, f)| (position[axis] * f).cos()));
        values.extend(frequencies.iter().map(|&(axis, f)| (position[axis] * f).sin()));
    }
    Ok(Tensor::from_f64(device, dtype, &values, &[tokens, d])?)
}
