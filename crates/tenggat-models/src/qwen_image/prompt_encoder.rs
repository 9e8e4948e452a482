//! Prompts to embeddings: tokenizer, template and text encoder in one.

use std::path::Path;

use tenggat_tensor::ops::copy;
use tenggat_tensor::{Device, Tensor};

use super::text_encoder::TextEncoder;
use super::{PromptTemplate, TextBatch, Tokenizer};
use crate::transformer::Precision;
use crate::weights::{Progress, Quantisation};
use crate::{Error, Interrupt, Result};

/// Most tokens that go through the encoder at once: enough to keep it busy, and half a gigabyte of
/// activations with the published encoder.
const PACK_TOKENS: usize = 2048;

/// Turns prompts into what the image transformer is conditioned on.
#[derive(Debug)]
pub struct PromptEncoder {
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// The frame around every prompt.
    pub template: PromptTemplate,
    /// Ids to hidden states.
    pub encoder: TextEncoder,
}

impl PromptEncoder {
    /// Reads `tokenizer/`, `text_encoder/` and the template of a model folder.
    ///
    /// # Errors
    /// A file is missing or malformed, or the variant is not supported.
    pub fn load(model: &Path, device: &Device, precision: Precision) -> Result<Self> {
        Self::load_with(model, device, precision, None, &|_, _| {}, &Interrupt::default())
    }

    /// The same with a quantised text encoder; `progress` is told how far a first quantisation has come, and
    /// `interrupt` ends loading, and later encoding, early.
    ///
    /// # Errors
    /// As [`PromptEncoder::load`]; or the folder of quantised models cannot be written to.
    pub fn load_with(
        model: &Path,
        device: &Device,
        precision: Precision,
        quantisation: Option<&Quantisation>,
        progress: Progress<'_>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let encoder = model.join("text_encoder");
        Ok(PromptEncoder {
            tokenizer: Tokenizer::load(&model.join("tokenizer"))?,
            template: PromptTemplate::load(model)?,
            encoder: TextEncoder::load_with(&encoder, device, precision, quantisation, progress, interrupt)?,
        })
    }

    /// Embeddings of a batch of prompts, padded on the right with zeros.
    ///
    /// # Errors
    /// As [`encode_each`](Self::encode_each); there are no prompts.
    pub fn encode(&self, prompts: &[&str]) -> Result<TextBatch> {
        TextBatch::new(&self.encode_each(prompts)?.iter().collect::<Vec<_>>())
    }

    /// Embeddings of each prompt by itself, `[tokens, hidden]`: the prompt and the end of its frame, so that
    /// the empty prompt has some too.
    ///
    /// # Errors
    /// The tokenizer and the encoder have different vocabularies, nothing of a prompt remains behind the
    /// dropped positions, or memory runs out.
    pub fn encode_each(&self, prompts: &[&str]) -> Result<Vec<Tensor>> {
        let dropped = self.template.dropped();
        let mut ids = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let framed = self.template.ids(&self.tokenizer, prompt)?;
            if framed.len() <= dropped {
                return Err(Error::Unsupported(format!(
                    "the prompt {prompt:?} has {} tokens in its template, of which {dropped} are dropped; \
                     does model_index.json belong to this tokenizer?",
                    framed.len()
                )));
            }
            ids.push(framed);
        }
        let mut embeds = Vec::with_capacity(prompts.len());
        let mut rest = &ids[..];
        while !rest.is_empty() {
            let (pack, after) = rest.split_at(pack_len(rest));
            let states = self.encoder.encode(pack)?;
            let mut from = 0;
            for sequence in pack {
                let end = from + sequence.len();
                let kept = states.view().row_range(from + dropped..end);
                let mut own = states.empty_like(&kept.shape())?;
                copy::forward(kept, own.view_mut())?;
                embeds.push(own);
                from = end;
            }
            rest = after;
        }
        Ok(embeds)
    }
}

/// How many of the first sequences share a pass: one at least.
fn pack_len(sequences: &[Vec<u32>]) -> usize {
    let mut tokens = 0;
    let fits = |sequence: &&Vec<u32>| {
        tokens += sequence.len();
        tokens <= PACK_TOKENS
    };
    sequences.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_fill_up_but_never_stay_empty() {
        let of = |lens: &[usize]| pack_len(&lens.iter().map(|&n| vec![0; n]).collect::<Vec<_>>());
        assert_eq!(of(&[3000]), 1);
        assert_eq!(of(&[1000, 1000, 48, 1]), 3);
        assert_eq!(of(&[1, 5000]), 1);
    }
}
