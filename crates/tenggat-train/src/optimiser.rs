//! AdamW over the trained ranges of an adapter.

use std::ops::Range;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::adamw::{self, Hyper};
use tenggat_tensor::{Result, Tensor};

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
    /// Gradients are scaled down to this global norm; `None` leaves them.
    pub max_grad_norm: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01, max_grad_norm: Some(1.0) }
    }
}

/// The optimiser with its moments, which are as long as the adapter's parameters.
///
/// Matrices that the loss does not depend on are skipped, weight decay included, as autograd frameworks skip
/// parameters without a gradient.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    ranges: Vec<Range<usize>>,
    m: Tensor,
    v: Tensor,
    /// Norm and clipping factor of the last step, `[1, 2]`.
    clip: Tensor,
    steps: u64,
}

impl AdamW {
    /// A fresh optimiser for this adapter.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn new(config: AdamWConfig, lora: &Lora) -> Result<Self> {
        let zeros = || {
            let p = &lora.parameters;
            Tensor::zeros(&p.device(), p.dtype(), p.shape())
        };
        Ok(AdamW {
            config,
            ranges: lora.layout.trained_ranges(),
            m: zeros()?,
            v: zeros()?,
            clip: lora.parameters.empty_like(&[1, 2])?,
            steps: 0,
        })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Measures the gradients and prepares their clipping; returns their norm. `gradients` is as long as the
    /// parameters and zero outside the trained ranges.
    ///
    /// # Errors
    /// The device failed.
    pub fn measure(&mut self, gradients: &Tensor) -> Result<f64> {
        let all = gradients.matrix(0, 1, gradients.len())?;
        adamw::clip_factor(all, self.config.max_grad_norm, self.clip.view_mut())?;
        Ok(self.clip.to_f64()?[0])
    }

    /// One update with the gradients that [`AdamW::measure`] saw last.
    ///
    /// # Errors
    /// The device failed.
    pub fn update(&mut self, lora: &mut Lora, gradients: &Tensor, lr: f64) -> Result<()> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let hyper = Hyper { lr, beta1, beta2, eps, weight_decay, step: self.steps };
        for range in &self.ranges {
            let (at, n) = (range.start, range.len());
            adamw::step(
                lora.parameters.matrix_mut(at, 1, n)?,
                gradients.matrix(at, 1, n)?,
                self.clip.view(),
                self.m.matrix_mut(at, 1, n)?,
                self.v.matrix_mut(at, 1, n)?,
                hyper,
            )?;
        }
        Ok(())
    }
}
