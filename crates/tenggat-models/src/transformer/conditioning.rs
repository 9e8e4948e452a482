//! What a pass computes from the noise levels of its batch: the timestep embedding, and modulation where that
//! is prepared in advance.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::{copy, silu};

use super::block::Block;
use super::conditioned::Conditioned;
use super::config;
use super::layer::Family;
use super::model::{Global, Inputs, Transformer};
use super::modulation::{Modulation, Streamed, Table};
use super::sinusoid::{self, Factor};
use crate::{Error, Result};

impl Transformer {
    /// Makes sure that streamed modulation has results for these noise levels, reading its matrices once if
    /// any is missing; only these levels are kept. Call it with those of the next steps together: a pass
    /// whose levels are missing reads all matrices for itself alone. Does nothing where modulation is
    /// resident.
    ///
    /// # Errors
    /// The matrices cannot be read, or the device failed.
    pub fn prepare(&self, sigmas: &[f64]) -> Result<()> {
        if self.is_prepared(sigmas) {
            return Ok(());
        }
        let mut levels = sigmas.to_vec();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        let conditioning = self.conditioning(&levels, None, &mut |_, _| {})?;
        self.modulation.replace(Table::new(&levels, &conditioning, self.streamed())?);
        Ok(())
    }

    /// Whether a pass with these noise levels reads no modulation matrix.
    pub fn is_prepared(&self, sigmas: &[f64]) -> bool {
        self.streamed().next().is_none() || self.modulation.has(sigmas)
    }

    /// Bytes that the results of one noise level take where modulation is streamed.
    pub fn prepared_bytes(&self) -> usize {
        self.streamed().map(|s| s.matrix.output()).sum::<usize>() * self.precision.compute.bytes()
    }

    fn streamed(&self) -> impl Iterator<Item = &Streamed> + Clone {
        let doubles = self.blocks.iter().filter_map(|block| match block {
            Block::Double(block) => Some(block),
            Block::Single(_) => None,
        });
        doubles.flat_map(|block| [&block.image, &block.text]).filter_map(|s| match &s.modulation {
            Modulation::Streamed(streamed) => Some(streamed),
            Modulation::Resident(_) => None,
        })
    }

    /// The part of a pass that depends on its noise levels and on what conditions all tokens alike, of `b`
    /// samples; `show` as in
    /// [`Transformer::forward_traced`].
    ///
    /// # Errors
    /// Streamed matrices cannot be read, or the device failed.
    pub(super) fn conditioned(
        &self,
        inputs: &Inputs<'_>,
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Conditioned> {
        let sigmas = inputs.sigmas;
        let silu = self.conditioning(sigmas, inputs.global, show)?;
        if self.streamed().next().is_none() {
            return Ok(Conditioned { silu, modulation: None, key_lens: None });
        }
        self.prepare(sigmas)?;
        Ok(Conditioned { silu, modulation: self.modulation.rows(sigmas)?, key_lens: None })
    }

    /// SiLU of the embedding of all that conditions tokens alike, `[b, c]`.
    ///
    /// # Errors
    /// As [`Transformer::embedding`].
    fn conditioning(
        &self,
        sigmas: &[f64],
        global: Option<Global<'_>>,
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let temb = self.embedding(sigmas, global, show)?;
        let mut conditioning = temb.empty_like(temb.shape())?;
        silu::forward(temb.view(), conditioning.view_mut())?;
        Ok(conditioning)
    }

    /// The sum of the embeddings of the noise level, of the guidance scale and of the pooled text, as far as
    /// the family has them, `[b, c]`. Source: `CombinedTimestepGuidanceTextProjEmbeddings` of diffusers
    /// `embeddings.py`.
    ///
    /// # Errors
    /// Something is missing that the family needs, or the device failed.
    fn embedding(
        &self,
        sigmas: &[f64],
        global: Option<Global<'_>>,
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let missing = |what: &str| Error::Unsupported(format!("this transformer needs {what}"));
        let sinusoid = self.sinusoid(sigmas)?;
        show("time_proj", &sinusoid);
        let mut temb = self.time.forward(sinusoid.view())?;
        show("timestep_embedder", &temb);
        if let Some(embedder) = &self.guidance {
            let scales = global.map(|global| global.guidance).filter(|scales| scales.len() == sigmas.len());
            let sinusoid = self.sinusoid(scales.ok_or_else(|| missing("a guidance scale per sample"))?)?;
            show("guidance_proj", &sinusoid);
            let guidance = embedder.forward(sinusoid.view())?;
            show("guidance_embedder", &guidance);
            copy::add_scaled(1.0, guidance.view(), temb.view_mut())?;
        }
        if let Some(embedder) = &self.pooled {
            let pooled = global.ok_or_else(|| missing("a pooled text embedding"))?.pooled;
            let compute = self.precision.compute;
            let rounded = (pooled.dtype() != compute).then(|| pooled.to_dtype(compute)).transpose()?;
            let text = embedder.forward(rounded.as_ref().unwrap_or(pooled).view())?;
            show("text_embedder", &text);
            copy::add_scaled(1.0, text.view(), temb.view_mut())?;
        }
        show("temb", &temb);
        Ok(temb)
    }

    /// Sinusoids of 1000 times these numbers, `[b, 256]`.
    ///
    /// # Errors
    /// Out of device memory.
    fn sinusoid(&self, levels: &[f64]) -> Result<Tensor> {
        let factor = match self.config.family() {
            Family::QwenImage => Factor::OnAngles,
            Family::Flux => Factor::OnLevels,
        };
        let values = sinusoid::of(levels, factor, self.precision.compute);
        let shape = [levels.len(), config::SINUSOID];
        Ok(Tensor::from_f64(&self.device, self.precision.compute, &values, &shape)?)
    }
}
