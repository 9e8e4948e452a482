//! Layers that all autoencoders share. Activations are tensors `[b, h, w, c]`.

use tenggat_tensor::ops::attention;
use tenggat_tensor::ops::conv2d::{self, Filter, Pictures, Resample};
use tenggat_tensor::ops::linear::{self, Write};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{DType, Device, Tensor, View};

use crate::Result;
use crate::weights::Weights;

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

    /// A tensor of this shape.
    ///
    /// # Errors
    /// It is missing or has another shape, or the device failed.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), shape, self.device, self.dtype)
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

    /// Adds the convolution of `x`, `[n, height, width, c]`, normed first if there is a norm, to `y`,
    /// `[n, height, width, out]`.
    ///
    /// # Errors
    /// As [`Conv::forward_view`].
    pub fn add(&self, x: &Tensor, norm: Option<&Tensor>, y: &mut Tensor) -> Result<()> {
        let filter = Filter { weight: &self.weight, bias: &self.bias, norm, resample: Resample::Keep };
        Ok(conv2d::forward(x.view(), pictures(x), filter, Write::Add, y.view_mut())?)
    }
}

/// A linear layer of each pixel: a 1×1 convolution.
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

/// Attention of one head over all pixels of each picture. q, k, v: `[n·height·width, c]`; the result is
/// `[n, height, width, c]`.
///
/// # Errors
/// The shapes do not fit, or the device failed or is out of memory.
pub fn attend([q, k, v]: [View<'_>; 3], size: Pictures) -> Result<Tensor> {
    let (tokens, c) = (size.height * size.width, q.cols());
    let mut o = Tensor::empty(&q.device(), q.dtype(), &[size.count, size.height, size.width, c])?;
    let mut lse = o.empty_like(&[size.pixels(), 1])?;
    let layout = attention::Layout {
        key_lens: &vec![tokens; size.count],
        device_lens: None,
        tokens,
        heads: 1,
        scale: 1.0 / (c as f64).sqrt(),
        bf16_products: false,
    };
    attention::forward(q, k, v, layout, o.view_mut(), lse.view_mut())?;
    Ok(o)
}
