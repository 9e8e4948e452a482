//! CLIP's text model, of which FLUX.1 takes one vector per prompt. Forward only.
//!
//! Source: transformers `models/clip/modeling_clip.py` (`CLIPTextTransformer`).

mod config;
mod layer;
mod load;
mod tokenizer;

use tenggat_tensor::ops::{copy, embedding, layer_norm};
use tenggat_tensor::{DType, Tensor};

use crate::{Error, Interrupt, Result};
pub use config::Config;
use layer::{Layer, Norm};
pub use tokenizer::Tokenizer;

/// The frozen text model.
#[derive(Debug)]
pub struct TextModel {
    config: Config,
    compute: DType,
    /// `[vocab, hidden]`.
    tokens: Tensor,
    /// `[positions, hidden]`.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    interrupt: Interrupt,
}

impl TextModel {
    /// Its dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The hidden state of each sequence at its end token, after the final norm: `[sequences, hidden]`.
    ///
    /// # Errors
    /// An id is not in the vocabulary, a sequence is empty or too long, or memory runs out.
    pub fn pooled(&self, sequences: &[Vec<u32>]) -> Result<Tensor> {
        let states = self.encode_traced(sequences, &mut |_, _| {})?;
        let mut pooled = states.empty_like(&[sequences.len(), self.config.hidden_size])?;
        let mut first = 0;
        for (i, sequence) in sequences.iter().enumerate() {
            let at = first + self.end_of(sequence);
            copy::forward(states.view().row_range(at..at + 1), pooled.view_mut().row_range(i..i + 1))?;
            first += sequence.len();
        }
        Ok(pooled)
    }

    /// Where a sequence ends: at its first end token; with the configuration of the published checkpoints,
    /// which was written before their end token was in it, at its largest id.
    fn end_of(&self, sequence: &[u32]) -> usize {
        let wanted = match self.config.eos_token_id {
            Config::LEGACY_END => sequence.iter().max().copied(),
            end => Some(end),
        };
        sequence.iter().position(|id| Some(*id) == wanted).unwrap_or(0)
    }

    /// Hidden states after the final norm, `[Σ lens, hidden]`, sequence after sequence; shows the residual
    /// stream after 0, 1, … layers on the way.
    ///
    /// # Errors
    /// As [`TextModel::pooled`].
    pub fn encode_traced(
        &self,
        sequences: &[Vec<u32>],
        trace: &mut dyn FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let lens: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let most = self.config.max_position_embeddings;
        if let Some(len) = lens.iter().find(|len| !(1..=most).contains(*len)) {
            return Err(Error::Unsupported(format!(
                "a sequence of {len} tokens for CLIP; it takes 1 to {most}"
            )));
        }
        let shape = [lens.iter().sum(), self.config.hidden_size];
        let mut x = Tensor::empty(&self.tokens.device(), self.compute, &shape)?;
        embedding::forward(&sequences.concat(), self.tokens.view(), x.view_mut())?;
        let places: Vec<u32> = lens.iter().flat_map(|&len| 0..len as u32).collect();
        let mut positions = x.empty_like(&shape)?;
        embedding::forward(&places, self.positions.view(), positions.view_mut())?;
        copy::add_scaled(1.0, positions.view(), x.view_mut())?;
        trace(0, &x);
        for (i, layer) in self.layers.iter().enumerate() {
            self.interrupt.check()?;
            layer.forward(&self.config, &lens, &mut x)?;
            trace(i + 1, &x);
        }
        let mut y = x.empty_like(&shape)?;
        let Norm { weight, bias } = &self.norm;
        layer_norm::forward(x.view(), weight.view(), bias.view(), self.config.layer_norm_eps, y.view_mut())?;
        Ok(y)
    }
}
