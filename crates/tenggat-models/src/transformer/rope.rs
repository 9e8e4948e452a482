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
    /// Both, image first, `[t, d]`, for single blocks.
    pub joint: Option<Tensor>,
}

/// Where FLUX.1's tokens stand: those of the image at (0, row, column) counted from 0, all text at the
/// origin. Source: `_prepare_latent_image_ids` of diffusers `pipeline_flux.py`.
pub(super) fn from_the_corner(
    (rows, columns): (usize, usize),
    text_tokens: usize,
) -> (Vec<[f64; 3]>, Vec<[f64; 3]>) {
    let place = |token: usize| [0.0, (token / columns) as f64, (token % columns) as f64];
    ((0..rows * columns).map(place).collect(), vec![[0.0; 3]; text_tokens])
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
        Self::at(axes, &image.collect::<Vec<_>>(), &text.collect::<Vec<_>>(), false, device, dtype)
    }

    /// Tables for tokens that stand anywhere; `joint`: whether there are single blocks.
    ///
    /// # Errors
    /// Out of device memory.
    pub(super) fn at(
        axes: [usize; 3],
        image: &[[f64; 3]],
        text: &[[f64; 3]],
        joint: bool,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let table = |positions: &[[f64; 3]]| table(axes, positions, device, dtype);
        let joint = joint.then(|| table(&[image, text].concat())).transpose()?;
        Ok(Positions { image: table(image)?, text: table(text)?, joint })
    }

    /// A copy of the tables.
    ///
    /// # Errors
    /// Out of device memory.
    pub(super) fn duplicate(&self) -> Result<Self> {
        let joint = self.joint.as_ref().map(Tensor::duplicate).transpose()?;
        Ok(Positions { image: self.image.duplicate()?, text: self.text.duplicate()?, joint })
    }

    /// Copies the values of tables for as many tokens.
    ///
    /// # Errors
    /// The shapes differ, or the device failed.
    pub(super) fn copy_from(&mut self, other: &Positions) -> Result<()> {
        copy::forward(other.image.view(), self.image.view_mut())?;
        if let (Some(to), Some(from)) = (&mut self.joint, &other.joint) {
            copy::forward(from.view(), to.view_mut())?;
        }
        Ok(copy::forward(other.text.view(), self.text.view_mut())?)
    }
}

/// Cosines | sines of every position, `[positions, d]`.
///
/// # Errors
/// Out of device memory.
fn table(axes: [usize; 3], positions: &[[f64; 3]], device: &Device, dtype: DType) -> Result<Tensor> {
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
