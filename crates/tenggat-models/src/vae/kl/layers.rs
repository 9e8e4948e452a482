//! Layers that encoder and decoder share.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::conv2d::Resample;
use tenggat_tensor::ops::copy;
use tenggat_tensor::ops::group_norm::{self, Norm};

use crate::Result;
use crate::vae::layers::{Conv, Kernel, Loader, Pointwise, attend, pictures};
use crate::vae::trace::Trace;

/// Added to the variance of every norm: `resnet_eps` and `eps` of the source.
const EPS: f64 = 1e-6;

/// A group norm.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl GroupNorm {
    pub fn load(from: &Loader<'_>, c: usize, groups: usize) -> Result<Self> {
        Ok(GroupNorm { weight: from.tensor("weight", &[c])?, bias: from.tensor("bias", &[c])?, groups })
    }

    /// The norm of `x`, and SiLU after it if wanted.
    pub fn forward(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        let size = pictures(x);
        let mut y = x.empty_like(x.shape())?;
        let GroupNorm { weight, bias, groups } = self;
        let norm = Norm { weight, bias, groups: *groups, eps: EPS, silu };
        group_norm::forward(x.view(), size.height * size.width, norm, y.view_mut())?;
        Ok(y)
    }
}

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a 1×1 convolution of `x` where the channels change.
///
/// Source: `ResnetBlock2D` of diffusers 0.42 `resnet.py`, without a timestep.
#[derive(Debug)]
pub struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Pointwise>,
}

impl ResidualBlock {
    pub fn load(from: &Loader<'_>, [c, out]: [usize; 2], groups: usize) -> Result<Self> {
        let shortcut = match c == out {
            true => None,
            false => Some(Pointwise::load(&from.under("conv_shortcut"), [c, out], 2)?),
        };
        Ok(ResidualBlock {
            norm1: GroupNorm::load(&from.under("norm1"), c, groups)?,
            conv1: Conv::load(&from.under("conv1"), [c, out], Kernel::Plain)?,
            norm2: GroupNorm::load(&from.under("norm2"), out, groups)?,
            conv2: Conv::load(&from.under("conv2"), [out, out], Kernel::Plain)?,
            shortcut,
        })
    }

    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.forward(&x, true)?, None, Resample::Keep)?;
        let mut y = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x)?,
            None => x,
        };
        self.conv2.add(&self.norm2.forward(&hidden, true)?, None, &mut y)?;
        Ok(y)
    }
}

/// `x + out(attention(norm(x)))` with one head over all pixels of a picture.
///
/// Source: `Attention` of diffusers 0.42 `attention_processor.py` with `residual_connection`.
#[derive(Debug)]
struct AttentionBlock {
    norm: GroupNorm,
    qkv: [Pointwise; 3],
    out: Pointwise,
}

impl AttentionBlock {
    fn load(from: &Loader<'_>, c: usize, groups: usize) -> Result<Self> {
        let linear = |name: &str| Pointwise::load(&from.under(name), [c, c], 0);
        Ok(AttentionBlock {
            norm: GroupNorm::load(&from.under("group_norm"), c, groups)?,
            qkv: [linear("to_q")?, linear("to_k")?, linear("to_v")?],
            out: linear("to_out.0")?,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        let normed = self.norm.forward(&x, false)?;
        let [q, k, v] = &self.qkv;
        let (q, k, v) = (q.forward(&normed)?, k.forward(&normed)?, v.forward(&normed)?);
        let o = attend([q.view(), k.view(), v.view()], pictures(&x))?;
        copy::add_scaled(1.0, self.out.forward(&o)?.view(), x.view_mut())?;
        Ok(x)
    }
}

/// The block at the smallest size: residual, attention, residual.
#[derive(Debug)]
pub struct MidBlock {
    first: ResidualBlock,
    attention: AttentionBlock,
    second: ResidualBlock,
}

impl MidBlock {
    pub fn load(from: &Loader<'_>, c: usize, groups: usize) -> Result<Self> {
        Ok(MidBlock {
            first: ResidualBlock::load(&from.under("resnets.0"), [c, c], groups)?,
            attention: AttentionBlock::load(&from.under("attentions.0"), c, groups)?,
            second: ResidualBlock::load(&from.under("resnets.1"), [c, c], groups)?,
        })
    }

    /// `name`: of the whole block, for the trace.
    pub fn forward(&self, x: Tensor, name: &str, trace: &mut Trace<'_>) -> Result<Tensor> {
        let x = self.attention.forward(self.first.forward(x)?)?;
        trace.see(|| format!("{name}.attn"), &x);
        let x = self.second.forward(x)?;
        trace.see(|| name.into(), &x);
        Ok(x)
    }
}
