//! The text encoder of Qwen-Image: the language model of Qwen2.5-VL, text path, forward only.
//!
//! Source: transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py` (`Qwen2_5_VLTextModel`). Deliberate
//! differences: sequences are packed one after another instead of padded, and rotary angles are computed in
//! f64.

mod config;
mod layer;
mod load;

use tenggat_tensor::ops::{embedding, rms_norm};
use tenggat_tensor::{DType, Tensor};

use crate::{Interrupt, Result};
pub use config::Config;
use layer::Layer;

/// A frozen language model whose last hidden states condition the image transformer.
#[derive(Debug)]
pub struct TextEncoder {
    config: Config,
    compute: DType,
    /// `[vocab, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    interrupt: Interrupt,
}

impl TextEncoder {
    /// Its dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Last hidden states, after the final norm: `[Σ lens, hidden]`, sequence after sequence without padding.
    ///
    /// # Errors
    /// An id is not in the vocabulary, or memory runs out.
    pub fn encode(&self, sequences: &[Vec<u32>]) -> Result<Tensor> {
        self.encode_traced(sequences, &mut |_, _| {})
    }

    /// As [`encode`](Self::encode), showing the residual stream `[Σ lens, hidden]` after 0, 1, … layers on
    /// the way.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_traced(
        &self,
        sequences: &[Vec<u32>],
        trace: &mut dyn FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let lens: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let rope = self.rope(&lens)?;
        let shape = [rope.shape()[0], self.config.hidden_size];
        let mut x = Tensor::empty(&self.embedding.device(), self.compute, &shape)?;
        embedding::forward(&sequences.concat(), self.embedding.view(), x.view_mut())?;
        trace(0, &x);
        for (i, layer) in self.layers.iter().enumerate() {
            self.interrupt.check()?;
            layer.forward(&self.config, &rope, &lens, &mut x)?;
            trace(i + 1, &x);
        }
        let mut y = x.empty_like(x.shape())?;
        rms_norm::forward(x.view(), self.norm.view(), self.config.rms_norm_eps, y.view_mut())?;
        Ok(y)
    }

    /// Rotary table of packed sequences: `[Σ lens, head_dim]`, cosines then sines of `position /
    /// theta^(2j/d)`.
    fn rope(&self, lens: &[usize]) -> Result<Tensor> {
        let d = self.config.head_dim;
        let frequencies: Vec<f64> =
            (0..d / 2).map(|j| self.config.rope_theta.powf(-2.0 * j as f64 / d as f64)).collect();
        let mut table = Vec::with_capacity(lens.iter().sum::<usize>() * d);
        for position in lens.iter().flat_map(|&len| 0..len) {
            let angles = frequencies.iter().map(|f| position as f64 * f);
            table.extend(angles.clone().map(f64::cos));
            table.extend(angles.map(f64::sin));
        }
        let shape = [table.len() / d, d];
        Ok(Tensor::from_f64(&self.embedding.device(), self.compute.wide(), &table, &shape)?)
    }
}
