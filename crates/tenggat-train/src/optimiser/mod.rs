//! Optimisers over the trained matrices of an adapter.
//!
//! One file per method. Matrices that the loss does not depend on are skipped, weight decay included, as autograd
//! frameworks skip parameters without a gradient.

mod adamw;
mod adamw8bit;

use std::fmt::Debug;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::adamw::clip_factor;
use tenggat_tensor::{Result, Tensor, View};

pub use adamw::AdamWConfig;
pub use adamw8bit::AdamW8bitConfig;

use crate::job;

/// A method and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// AdamW.
    AdamW(AdamWConfig),
    /// AdamW with moments in 8 bits.
    AdamW8bit(AdamW8bitConfig),
}

impl Default for Method {
    fn default() -> Self {
        Method::AdamW(AdamWConfig::default())
    }
}

impl Method {
    /// What a job asks for, its numbers or ai-toolkit's; the name of a method that is not done is returned.
    ///
    /// # Errors
    /// See above.
    pub fn of(job: &job::OptimiserConfig) -> Result<Self, job::Optimiser> {
        let default = AdamWConfig::default();
        let (beta1, beta2) = job.betas.unwrap_or((default.beta1, default.beta2));
        let adamw = AdamWConfig {
            beta1,
            beta2,
            eps: job.eps.unwrap_or(default.eps),
            weight_decay: job.weight_decay.unwrap_or(default.weight_decay),
        };
        match job.kind {
            job::Optimiser::AdamW => Ok(Method::AdamW(adamw)),
            job::Optimiser::AdamW8bit => {
                Ok(Method::AdamW8bit(AdamW8bitConfig { adamw, ..AdamW8bitConfig::default() }))
            }
            other => Err(other),
        }
    }
}

/// What a method does and keeps.
trait Rule: Debug + Send {
    /// One update; `clip` is what [`clip_factor`] wrote, `step` counts from 1.
    fn update(
        &mut self,
        lora: &mut Lora,
        gradients: &Tensor,
        clip: View<'_>,
        lr: f64,
        step: u64,
    ) -> Result<()>;

    /// Everything that it keeps from step to step, by name.
    fn state(&self) -> Vec<(&'static str, &Tensor)>;

    /// The same, to be put back.
    fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)>;
}

/// An optimiser: a method, its state, and the clipping before it.
#[derive(Debug)]
pub struct Optimiser {
    rule: Box<dyn Rule>,
    max_grad_norm: Option<f64>,
    /// Norm and clipping factor of the last step, `[1, 2]`.
    clip: Tensor,
    steps: u64,
}

impl Optimiser {
    /// A fresh optimiser for this adapter. Gradients are scaled down to the global norm `max_grad_norm`; `None` leaves
    /// them.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn new(method: Method, max_grad_norm: Option<f64>, lora: &Lora) -> Result<Self> {
        let rule: Box<dyn Rule> = match method {
            Method::AdamW(config) => Box::new(adamw::AdamW::new(config, lora)?),
            Method::AdamW8bit(config) => Box::new(adamw8bit::AdamW8bit::new(config, lora)?),
        };
        let clip = lora.parameters.empty_like(&[1, 2])?;
        Ok(Optimiser { rule, max_grad_norm, clip, steps: 0 })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Everything that the method keeps from step to step, by name.
    pub fn state(&self) -> Vec<(&'static str, &Tensor)> {
        self.rule.state()
    }

    /// Puts a state back that was taken after so many steps; `fill` writes each tensor that [`Optimiser::state`] names.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn restore<E>(
        &mut self,
        steps: u64,
        fill: &mut dyn FnMut(&str, &mut Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        self.steps = steps;
        self.rule.state_mut().into_iter().try_for_each(|(name, tensor)| fill(name, tensor))
    }

    /// Bytes of the state.
    pub fn state_bytes(&self) -> usize {
        self.rule.state().iter().map(|(_, tensor)| tensor.len() * tensor.dtype().bytes()).sum()
    }

    /// Measures the gradients and prepares their clipping; returns their norm. `gradients` is as long as the
    /// parameters and zero outside the trained ranges.
    ///
    /// # Errors
    /// The device failed.
    pub fn measure(&mut self, gradients: &Tensor) -> Result<f64> {
        let all = gradients.matrix(0, 1, gradients.len())?;
        clip_factor(all, self.max_grad_norm, self.clip.view_mut())?;
        Ok(self.clip.to_f64()?[0])
    }

    /// One update with the gradients that [`Optimiser::measure`] saw last.
    ///
    /// # Errors
    /// The device failed.
    pub fn update(&mut self, lora: &mut Lora, gradients: &Tensor, lr: f64) -> Result<()> {
        self.steps += 1;
        self.rule.update(lora, gradients, self.clip.view(), lr, self.steps)
    }
}
