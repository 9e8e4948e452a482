//! Layers that encoder and decoder share, for one frame.
//!
//! Every convolution over time is causal: it sees its own frame and zeros in place of the ones before. For a
//! single frame only the last slice of its kernel counts, and it becomes an ordinary convolution of the
//! picture.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::conv2d::Resample;
use tenggat_tensor::ops::{copy, rms_norm};

use crate::Result;
use crate::vae::layers::{Conv, Kernel, Loader, Pointwise, attend, pictures};

/// Added to the mean square so that a vector of zeros is not divided by zero: the upstream norm divides by
/// max(‖x‖, 1e-12), which no other vector comes near.
const NORM_EPS: f64 = 1e-24;

/// The scale of a norm over `c` channels, stored with `axes` axes after the channels.
///
/// # Errors
/// A tensor is missing or has another shape, or the device failed.
pub fn gamma(from: &Loader<'_>, name: &str, c: usize, axes: usize) -> Result<Tensor> {
    let shape = [c, 1, 1, 1];
    Ok(from.under(name).tensor("gamma", &shape[..=axes])?.reshape(&[c])?)
}

/// RMS norm of `x`, `[n, height, width, c]`, over the channels, with scale `gamma`, `[c]`.
///
/// # Errors
/// The shapes do not fit, or the device failed or is out of memory.
pub fn norm(x: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let mut y = x.empty_like(x.shape())?;
    rms_norm::forward(x.view(), gamma.view(), NORM_EPS, y.view_mut())?;
    Ok(y)
}

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a 1×1 convolution of `x` where the channels change.
///
/// Source: `QwenImageResidualBlock` of diffusers 0.42 `autoencoder_kl_qwenimage.py`.
#[derive(Debug)]
pub struct ResidualBlock {
    norm1: Tensor,
    conv1: Conv,
    norm2: Tensor,
    conv2: Conv,
    shortcut: Option<Pointwise>,
}

impl ResidualBlock {
    /// Reads the block that turns `c` channels into `out`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, [c, out]: [usize; 2]) -> Result<Self> {
        let shortcut = match c == out {
            true => None,
            false => Some(Pointwise::load(&from.under("conv_shortcut"), [c, out], 3)?),
        };
        Ok(ResidualBlock {
            norm1: gamma(from, "norm1", c, 3)?,
            conv1: Conv::load(&from.under("conv1"), [c, out], Kernel::Causal)?,
            norm2: gamma(from, "norm2", out, 3)?,
            conv2: Conv::load(&from.under("conv2"), [out, out], Kernel::Causal)?,
            shortcut,
        })
    }

    /// `[n, height, width, c]` in, `[n, height, width, out]` out.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&x, Some(&self.norm1), Resample::Keep)?;
        let mut y = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x)?,
            None => x,
        };
        self.conv2.add(&hidden, Some(&self.norm2), &mut y)?;
        Ok(y)
    }
}

/// `x + proj(attention(norm(x)))` with one head over all pixels of a picture.
///
/// Source: `QwenImageAttentionBlock` of diffusers 0.42 `autoencoder_kl_qwenimage.py`.
#[derive(Debug)]
pub struct AttentionBlock {
    gamma: Tensor,
    to_qkv: Pointwise,
    proj: Pointwise,
}

impl AttentionBlock {
    /// Reads the block of `c` channels.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, c: usize) -> Result<Self> {
        Ok(AttentionBlock {
            gamma: gamma(from, "norm", c, 2)?,
            to_qkv: Pointwise::load(&from.under("to_qkv"), [c, 3 * c], 2)?,
            proj: Pointwise::load(&from.under("proj"), [c, c], 2)?,
        })
    }

    /// `[n, height, width, c]` in and out.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        let c = self.gamma.len();
        let qkv = self.to_qkv.forward(&norm(&x, &self.gamma)?)?;
        let o = attend([0, 1, 2].map(|i| qkv.view().columns(i * c..(i + 1) * c)), pictures(&x))?;
        copy::add_scaled(1.0, self.proj.forward(&o)?.view(), x.view_mut())?;
        Ok(x)
    }
}
