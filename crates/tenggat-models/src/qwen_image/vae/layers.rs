//! Layers that encoder and decoder share, for one frame.
//!
//! Every convolution over time is causal: it sees its own frame and zeros in place of the ones before. For a
//! single frame only the last slice of its kernel counts, and it becomes an ordinary convolution of the
//! picture. Activations are tensors `[b, h, w, c]`.

use tenggat_tensor::ops::conv2d::{self, Filter, Pictures, Resample};
use tenggat_tensor::ops::linear::{self, Write};
use tenggat_tensor::ops::{attention, copy, rms_norm};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{DType, Device, Tensor, View};

use crate::Result;
use crate::weights::Weights;

/// Added to the mean square so that a vector of zeros is not divided by zero: the upstream norm divides by
/// max(‖x‖, 1e-12), which no other vector comes near.
const NORM_EPS: f64 = 1e-24;

/// Reads the tensors under one prefix.
#[derive(Clone)]
pub struct Loader<'a> {
    pub weights: &'a Weights,
    pub device: &'a Device,
    pub dtype: DType,
    pub prefix: String,
}

impl Loader<'_> {
    /// The tensors under `<prefix><name>.`.
    pub fn under(&self, name: impl std::fmt::Display) -> Self {
        Loader { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), shape, self.device, self.dtype)
    }

    /// The scale of a norm over `c` channels, stored with `axes` axes after the channels.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn gamma(&self, name: &str, c: usize, axes: usize) -> Result<Tensor> {
        let shape = [c, 1, 1, 1];
        Ok(self.under(name).tensor("gamma", &shape[..=axes])?.reshape(&[c])?)
    }
}

/// Number and size of the pictures of an activation.
pub fn pictures(x: &Tensor) -> Pictures {
    let s = x.shape();
    Pictures { count: s[0], height: s[1], width: s[2] }
}

/// How a 3×3 convolution is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// `[out, in, 3, 3, 3]`, time first; the last frame's slice counts.
    Causal,
    /// `[out, in, 3, 3]`.
    Plain,
}

/// A 3×3 convolution.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    /// Reads `weight`, `[out, c, 3, 3]` or, causal, `[out, c, 3, 3, 3]`, of whose three frames only the last
    /// sees an image; and `bias`, `[out]`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, [c, out]: [usize; 2], kernel: Kernel) -> Result<Self> {
        let frames = if kernel == Kernel::Causal { 3 } else { 1 };
        let stored = match kernel {
            Kernel::Causal => from.tensor("weight", &[out, c, 3, 3, 3])?,
            Kernel::Plain => from.tensor("weight", &[out, c, 3, 3])?,
        };
        let values = stored.to_f64()?;
        let mut taps = vec![0.0; 9 * c * out];
        for (i, filter) in values.chunks_exact(9 * frames).enumerate() {
            let (o, i) = (i / c, i % c);
            for (tap, &w) in filter[9 * (frames - 1)..].iter().enumerate() {
                taps[(tap * c + i) * out + o] = w;
            }
        }
        let weight = Tensor::from_f64(from.device, from.dtype, &taps, &[9 * c, out])?;
        Ok(Conv { weight, bias: from.tensor("bias", &[out])? })
    }

    /// The convolution of pixels `x`, `[n·height·width, c]` with the sizes in `input`, as
    /// `[n, height', width', out]`, where `resample` sets the sides. `norm`: RMS norm with this scale, `[c]`,
    /// and SiLU come first.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward_view(
        &self,
        x: View<'_>,
        input: Pictures,
        norm: Option<&Tensor>,
        resample: Resample,
    ) -> Result<Tensor> {
        let Pictures { count, height, width } = resample.output(input);
        let mut y = self.bias.empty_like(&[count, height, width, self.bias.len()])?;
        let filter = Filter { weight: &self.weight, bias: &self.bias, norm, resample };
        conv2d::forward(x, input, filter, Write::Replace, y.view_mut())?;
        Ok(y)
    }

    /// [`Conv::forward_view`] of `x`, `[n, height, width, c]`.
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, x: &Tensor, norm: Option<&Tensor>, resample: Resample) -> Result<Tensor> {
        self.forward_view(x.view(), pictures(x), norm, resample)
    }

    /// Adds the convolution of the normed `x`, `[n, height, width, c]`, to `y`, `[n, height, width, out]`.
    ///
    /// # Errors
    /// As [`Conv::forward_view`].
    fn add(&self, x: &Tensor, norm: &Tensor, y: &mut Tensor) -> Result<()> {
        let filter =
            Filter { weight: &self.weight, bias: &self.bias, norm: Some(norm), resample: Resample::Keep };
        Ok(conv2d::forward(x.view(), pictures(x), filter, Write::Add, y.view_mut())?)
    }
}

/// A 1×1 convolution: a linear layer of each pixel.
#[derive(Debug)]
pub struct Pointwise {
    weight: Weight,
    bias: Tensor,
}

impl Pointwise {
    /// Reads `weight`, `[out, c, 1, …]`, and `bias`, `[out]`. `axes`: number of axes of size 1 after
    /// `[out, c]`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, [c, out]: [usize; 2], axes: usize) -> Result<Self> {
        let shape = [out, c, 1, 1, 1];
        let weight = from.tensor("weight", &shape[..2 + axes])?.reshape(&[out, c])?;
        Ok(Pointwise { weight: Weight::Dense(weight), bias: from.tensor("bias", &[out])? })
    }

    /// The layer on pixels `x`, `[n·height·width, c]` with the sizes in `input`, as
    /// `[n, height, width, out]`.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward_view(&self, x: View<'_>, input: Pictures) -> Result<Tensor> {
        let shape = [input.count, input.height, input.width, self.bias.len()];
        let mut y = self.bias.empty_like(&shape)?;
        linear::forward(x, &self.weight, Some(&self.bias), y.view_mut())?;
        Ok(y)
    }

    /// [`Pointwise::forward_view`] of `x`, `[n, height, width, c]`.
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_view(x.view(), pictures(x))
    }
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
            norm1: from.gamma("norm1", c, 3)?,
            conv1: Conv::load(&from.under("conv1"), [c, out], Kernel::Causal)?,
            norm2: from.gamma("norm2", out, 3)?,
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
        self.conv2.add(&hidden, &self.norm2, &mut y)?;
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
            gamma: from.gamma("norm", c, 2)?,
            to_qkv: Pointwise::load(&from.under("to_qkv"), [c, 3 * c], 2)?,
            proj: Pointwise::load(&from.under("proj"), [c, c], 2)?,
        })
    }

    /// `[n, height, width, c]` in and out.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        let (size, c) = (pictures(&x), self.gamma.len());
        let tokens = size.height * size.width;
        let qkv = self.to_qkv.forward(&norm(&x, &self.gamma)?)?;
        let (mut o, mut lse) = (x.empty_like(x.shape())?, x.empty_like(&[size.pixels(), 1])?);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.view().columns(i * c..(i + 1) * c));
        let key_lens = vec![tokens; size.count];
        let scale = 1.0 / (c as f64).sqrt();
        let layout = attention::Layout {
            key_lens: &key_lens,
            device_lens: None,
            tokens,
            heads: 1,
            scale,
            bf16_products: false,
        };
        attention::forward(q, k, v, layout, o.view_mut(), lse.view_mut())?;
        copy::add_scaled(1.0, self.proj.forward(&o)?.view(), x.view_mut())?;
        Ok(x)
    }
}
