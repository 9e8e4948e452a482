//! The T5 encoder (v1.1), whose hidden states are the text that FLUX.1 reads. Forward only.
//!
//! Source: transformers `models/t5/modeling_t5.py` (`T5EncoderModel`). As the FLUX pipeline does, it runs
//! without a mask: tokens attend to padding too, so that the states of a prompt depend on the length that it
//! is padded to.

mod bias;
mod config;
mod layer;
mod load;
mod tokenizer;

use tenggat_tensor::ops::{copy, embedding, rms_norm};
use tenggat_tensor::{DType, Tensor};

use crate::{Interrupt, Result};
use bias::Bias;
pub use config::Config;
use layer::Layer;
pub use tokenizer::Tokenizer;

/// The frozen encoder.
#[derive(Debug)]
pub struct TextEncoder {
    config: Config,
    compute: DType,
    /// `[vocab, d_model]`.
    embedding: Tensor,
    bias: Bias,
    layers: Vec<Layer>,
    norm: Tensor,
    interrupt: Interrupt,
}

impl TextEncoder {
    /// Its dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Last hidden states, after the final norm: `[Σ lens, d_model]`, sequence after sequence.
    ///
    /// # Errors
    /// An id is not in the vocabulary, or memory runs out.
    pub fn encode(&self, sequences: &[Vec<u32>]) -> Result<Tensor> {
        let width = self.config.d_model;
        let rows = sequences.iter().map(Vec::len).sum();
        let mut all = Tensor::empty(&self.embedding.device(), self.compute, &[rows, width])?;
        let mut first = 0;
        for sequence in sequences {
            let states = self.encode_traced(sequence, &mut |_, _| {})?;
            copy::forward(states.view(), all.view_mut().row_range(first..first + sequence.len()))?;
            first += sequence.len();
        }
        Ok(all)
    }

    /// The states of one sequence, showing what leads to them: `position_bias` (`[heads·len, len]`), and
    /// `hidden_states.N`, the residual stream after N layers.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_traced(&self, sequence: &[u32], trace: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let bias = self.bias.of(sequence.len(), &self.embedding.device(), self.compute.wide())?;
        trace("position_bias", &bias);
        let shape = [sequence.len(), self.config.d_model];
        let mut x = Tensor::empty(&self.embedding.device(), self.compute, &shape)?;
        embedding::forward(sequence, self.embedding.view(), x.view_mut())?;
        trace("hidden_states.0", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            self.interrupt.check()?;
            layer.forward(&self.config, &bias, &mut x)?;
            trace(&format!("hidden_states.{}", i + 1), &x);
        }
        let mut y = x.empty_like(&shape)?;
        rms_norm::forward(x.view(), self.norm.view(), self.config.layer_norm_epsilon, y.view_mut())?;
        Ok(y)
    }
}
