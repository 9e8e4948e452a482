//! AdamW in full precision.

use std::ops::Range;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::adamw::{self, Hyper};
use tenggat_tensor::{Result, Tensor, View};

use super::Rule;

/// Settings that stay the same from step to step. Defaults are those of `torch.optim.AdamW` but for eps, where
/// ai-toolkit sets 1e-6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01 }
    }
}

impl AdamWConfig {
    pub(super) fn at(self, lr: f64, step: u64) -> Hyper {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self;
        Hyper { lr, beta1, beta2, eps, weight_decay, step }
    }
}

/// AdamW with moments as long as the adapter's parameters.
#[derive(Debug)]
pub(super) struct AdamW {
    config: AdamWConfig,
    ranges: Vec<Range<usize>>,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    pub fn new(config: AdamWConfig, lora: &Lora) -> Result<Self> {
        let zeros = || {
            let p = &lora.parameters;
            Tensor::zeros(&p.device(), p.dtype(), p.shape())
        };
        Ok(AdamW { config, ranges: lora.layout.trained_ranges(), m: zeros()?, v: zeros()? })
    }
}

impl Rule for AdamW {
    fn update(
        &mut self,
        lora: &mut Lora,
        gradients: &Tensor,
        clip: View<'_>,
        lr: f64,
        step: u64,
    ) -> Result<()> {
        for range in &self.ranges {
            let (at, n) = (range.start, range.len());
            adamw::step(
                lora.parameters.matrix_mut(at, 1, n)?,
                gradients.matrix(at, 1, n)?,
                clip,
                self.m.matrix_mut(at, 1, n)?,
                self.v.matrix_mut(at, 1, n)?,
                self.config.at(lr, step),
            )?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("m", &self.m), ("v", &self.v)]
    }

    fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("m", &mut self.m), ("v", &mut self.v)]
    }
}
