//! Text embeddings of several samples in one padded batch.

use tenggat_tensor::ops::copy;
use tenggat_tensor::{Device, Tensor};

use crate::{Error, Result};

/// Embeddings of b samples, padded on the right with zeros to the longest, or to what the device pads that
/// to.
#[derive(Debug)]
pub struct TextBatch {
    /// `[b·tokens, joint_attention_dim]`.
    pub embeds: Tensor,
    /// Valid tokens of each sample.
    pub lens: Vec<usize>,
    /// Tokens of every sample, padding included.
    pub tokens: usize,
    /// One vector per sample, `[b, pooled]`, where the family has one.
    pub pooled: Option<Tensor>,
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
        let tokens = Self::padded(&first.device(), lens.iter().copied().max().unwrap_or(0));
        let mut embeds = first.empty_like(&[samples.len() * tokens, first.view().cols()])?;
        for (i, (sample, &len)) in samples.iter().zip(&lens).enumerate() {
            let from = i * tokens;
            copy::forward(sample.view(), embeds.view_mut().row_range(from..from + len))?;
            copy::zero(embeds.view_mut().row_range(from + len..from + tokens))?;
        }
        Ok(TextBatch { embeds, lens, tokens, pooled: None })
    }

    /// Padded tokens of a batch on this device whose longest text has this many.
    pub fn padded(device: &Device, tokens: usize) -> usize {
        tokens.next_multiple_of(device.row_multiple())
    }
}
