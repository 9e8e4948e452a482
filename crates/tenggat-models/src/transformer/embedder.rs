//! The layers that turn a sinusoid or a pooled text into a part of the conditioning.

use tenggat_tensor::ops::silu;
use tenggat_tensor::{Tensor, View};

use super::linear::Linear;
use crate::Result;

/// Linear, SiLU, linear. Source: `TimestepEmbedding` and `PixArtAlphaTextProjection` of diffusers
/// `embeddings.py`.
#[derive(Debug)]
pub(super) struct Embedder {
    pub first: Linear,
    pub second: Linear,
}

impl Embedder {
    /// The embedding, `[b, c]`, of `x`, `[b, in]`.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    pub fn forward(&self, x: View<'_>) -> Result<Tensor> {
        let (before, _) = self.first.forward(x, None)?;
        let mut hidden = before.empty_like(before.shape())?;
        silu::forward(before.view(), hidden.view_mut())?;
        Ok(self.second.forward(hidden.view(), None)?.0)
    }

    /// Bytes of the frozen matrices.
    pub fn bytes(&self) -> usize {
        self.first.bytes() + self.second.bytes()
    }
}
