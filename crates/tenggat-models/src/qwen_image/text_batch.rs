//! Text embeddings of several samples in one padded batch.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::copy;

use crate::{Error, Result};

/// Embeddings of b samples, padded on the right with zeros to the longest.
#[derive(Debug)]
pub struct TextBatch {
    /// `[b·tokens, joint_attention_dim]`.
    pub embeds: Tensor,
    /// Valid tokens of each sample.
    pub lens: Vec<usize>,
    /// Tokens of every sample, padding included.
    pub tokens: usize,
}

impl TextBatch {
    /// Pads samples of `[tokens, joint_attention_dim]` each.
    ///
    /// # Errors
    /// There are no samples, or their widths differ.
    pub fn new(samples: &[&Tensor]) -> Result<Self> {
        let Some(first) = samples.first() else {
            return Err(Error::Unsupported("a text batch of no samples".into()));
        };
        let lens: Vec<usize> = samples.iter().map(|s| s.view().rows()).collect();
        let tokens = lens.iter().copied().max().unwrap_or(0);
        let mut embeds = first.empty_like(&[samples.len() * tokens, first.view().cols()])?;
        for (i, (sample, &len)) in samples.iter().zip(&lens).enumerate() {
            let from = i * tokens;
            copy::forward(sample.view(), embeds.view_mut().row_range(from..from + len))?;
            copy::zero(embeds.view_mut().row_range(from + len..from + tokens))?;
        }
        Ok(TextBatch { embeds, lens, tokens })
    }
}
