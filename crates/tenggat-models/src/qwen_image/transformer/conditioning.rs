//! What a pass computes from the noise levels of its batch: the timestep embedding, and modulation where that
//! is prepared in advance.

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::silu;

use super::conditioned::Conditioned;
use super::model::Transformer;
use super::modulation::{Modulation, Streamed, Table};
use super::{config, sinusoid};
use crate::Result;

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
        let conditioning = self.conditioning(&levels, &mut |_, _| {})?;
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
        self.blocks.iter().flat_map(|block| [&block.image, &block.text]).filter_map(|s| match &s.modulation {
            Modulation::Streamed(streamed) => Some(streamed),
            Modulation::Resident(_) => None,
        })
    }

    /// The part of a pass that depends on its noise levels alone, of `b` samples; `show` as in
    /// [`Transformer::forward_traced`].
    ///
    /// # Errors
    /// Streamed matrices cannot be read, or the device failed.
    pub(super) fn conditioned(
        &self,
        sigmas: &[f64],
        show: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Conditioned> {
        let silu = self.conditioning(sigmas, show)?;
        if self.streamed().next().is_none() {
            return Ok(Conditioned { silu, modulation: None, key_lens: None });
        }
        self.prepare(sigmas)?;
        Ok(Conditioned { silu, modulation: self.modulation.rows(sigmas)?, key_lens: None })
    }

    /// SiLU of the timestep embedding, `[b, c]`.
    ///
    /// # Errors
    /// The device failed.
    fn conditioning(&self, sigmas: &[f64], show: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let temb = self.timestep_embedding(sigmas, show)?;
        let mut conditioning = temb.empty_like(temb.shape())?;
        silu::forward(temb.view(), conditioning.view_mut())?;
        Ok(conditioning)
    }

    /// The timestep embedding, `[b, c]`: sinusoid, linear, SiLU, linear. Source: `TimestepEmbedding` of
    /// diffusers `embeddings.py`.
    ///
    /// # Errors
    /// The device failed.
    fn timestep_embedding(&self, sigmas: &[f64], show: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let values = sinusoid::of(sigmas, self.precision.compute);
        let shape = [sigmas.len(), config::SINUSOID];
        let sinusoid = Tensor::from_f64(&self.device, self.precision.compute, &values, &shape)?;
        show("time_proj", &sinusoid);
        let (mut hidden, _) = self.time_1.forward(sinusoid.view(), None)?;
        let before = hidden.duplicate()?;
        silu::forward(before.view(), hidden.view_mut())?;
        let (temb, _) = self.time_2.forward(hidden.view(), None)?;
        show("temb", &temb);
        Ok(temb)
    }
}
