//! The block at the smallest size: residual, attention, residual.

use tenggat_tensor::Tensor;

use super::layers::{AttentionBlock, ResidualBlock};
use crate::Result;
use crate::vae::layers::Loader;
use crate::vae::trace::Trace;

/// Source: `QwenImageMidBlock` of diffusers 0.42 `autoencoder_kl_qwenimage.py`, which is always built with
/// one attention layer.
#[derive(Debug)]
pub struct MidBlock {
    first: ResidualBlock,
    attention: AttentionBlock,
    second: ResidualBlock,
}

impl MidBlock {
    /// Reads a middle block of `c` channels.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device failed.
    pub fn load(from: &Loader<'_>, c: usize) -> Result<Self> {
        Ok(MidBlock {
            first: ResidualBlock::load(&from.under("resnets.0"), [c, c])?,
            attention: AttentionBlock::load(&from.under("attentions.0"), c)?,
            second: ResidualBlock::load(&from.under("resnets.1"), [c, c])?,
        })
    }

    /// `name`: of the whole block, for the trace.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, x: Tensor, name: &str, trace: &mut Trace<'_>) -> Result<Tensor> {
        let x = self.attention.forward(self.first.forward(x)?)?;
        trace.see(|| format!("{name}.attn"), &x);
        let x = self.second.forward(x)?;
        trace.see(|| name.into(), &x);
        Ok(x)
    }
}
