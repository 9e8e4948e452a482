//! Optimisers over the trained matrices of an adapter.
//!
//! One file per method. Matrices that the loss does not depend on are skipped, weight decay included, as
//! autograd frameworks skip parameters without a gradient.

mod adafactor;
mod adamw;
mod adamw8bit;
#[cfg(test)]
mod check;
mod lion;
mod prodigy;

use std::fmt::Debug;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::adamw::clip_factor;
use tenggat_tensor::{Result, Tensor, View};

pub use adafactor::AdafactorConfig;
pub use adamw::AdamWConfig;
pub use adamw8bit::AdamW8bitConfig;
pub use lion::LionConfig;
pub use prodigy::ProdigyConfig;

use crate::job;

/// A method and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// AdamW, or Adam.
    AdamW(AdamWConfig),
    /// AdamW with moments in 8 bits.
    AdamW8bit(AdamW8bitConfig),
    /// Lion.
    Lion(LionConfig),
    /// Prodigy.
    Prodigy(ProdigyConfig),
    /// Adafactor.
    Adafactor(AdafactorConfig),
}

impl Default for Method {
    fn default() -> Self {
        Method::AdamW(AdamWConfig::default())
    }
}

impl Method {
    /// The optimiser of a job: its numbers, or else the defaults of the library that ai-toolkit uses.
    pub fn of(job: &job::OptimiserConfig, lr: f64) -> Self {
        let p = &job.params;
        let adam = |default: AdamWConfig| {
            let (beta1, beta2) = p.betas.unwrap_or((default.beta1, default.beta2));
            let eps = p.eps.unwrap_or(default.eps);
            let weight_decay = p.weight_decay.unwrap_or(default.weight_decay);
            AdamWConfig { beta1, beta2, eps, weight_decay, ..default }
        };
        match job.kind {
            job::Optimiser::AdamW => Method::AdamW(adam(AdamWConfig::default())),
            job::Optimiser::Adam => Method::AdamW(adam(AdamWConfig::adam())),
            job::Optimiser::AdamW8bit => {
                let default = AdamW8bitConfig::default();
                let min_8bit_size = p.min_8bit_size.unwrap_or(default.min_8bit_size);
                Method::AdamW8bit(AdamW8bitConfig { adamw: adam(default.adamw), min_8bit_size })
            }
            job::Optimiser::Lion => {
                let default = LionConfig::default();
                let (beta1, beta2) = p.betas.unwrap_or((default.beta1, default.beta2));
                let weight_decay = p.weight_decay.unwrap_or(default.weight_decay);
                // lion-pytorch then multiplies by the rate of the step alone.
                let divisor = if p.decoupled_weight_decay == Some(true) && lr > 0.0 { lr } else { 1.0 };
                Method::Lion(LionConfig { beta1, beta2, weight_decay: weight_decay / divisor })
            }
            job::Optimiser::Prodigy => {
                let default = ProdigyConfig::default();
                let (beta1, beta2) = p.betas.unwrap_or((default.beta1, default.beta2));
                Method::Prodigy(ProdigyConfig {
                    beta1,
                    beta2,
                    beta3: p.beta3,
                    eps: p.eps.unwrap_or(default.eps),
                    weight_decay: p.weight_decay.unwrap_or(default.weight_decay),
                    decouple: p.decouple.unwrap_or(default.decouple),
                    use_bias_correction: p.use_bias_correction.unwrap_or(default.use_bias_correction),
                    safeguard_warmup: p.safeguard_warmup.unwrap_or(default.safeguard_warmup),
                    d0: p.d0.unwrap_or(default.d0),
                    d_coef: p.d_coef.unwrap_or(default.d_coef),
                    growth_rate: p.growth_rate.unwrap_or(default.growth_rate),
                })
            }
            job::Optimiser::Adafactor => {
                let default = AdafactorConfig::default();
                let floor = p.second_eps.unwrap_or(adafactor::SCALE_FLOOR);
                Method::Adafactor(AdafactorConfig {
                    eps: p.eps.unwrap_or(default.eps),
                    scale_floor: (p.scale_parameter == Some(true)).then_some(floor),
                    clip_threshold: p.clip_threshold.unwrap_or(default.clip_threshold),
                    decay_rate: p.decay_rate.unwrap_or(default.decay_rate),
                    beta1: p.beta1,
                    weight_decay: p.weight_decay.unwrap_or(default.weight_decay),
                })
            }
        }
    }
}

/// Zeros as long as the adapter's parameters.
fn zeros(lora: &Lora) -> Result<Tensor> {
    let p = &lora.parameters;
    Tensor::zeros(&p.device(), p.dtype(), p.shape())
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
    /// A fresh optimiser for this adapter. Gradients are scaled down to the global norm `max_grad_norm`;
    /// `None` leaves them.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn new(method: Method, max_grad_norm: Option<f64>, lora: &Lora) -> Result<Self> {
        let rule: Box<dyn Rule> = match method {
            Method::AdamW(config) => Box::new(adamw::AdamW::new(config, lora)?),
            Method::AdamW8bit(config) => Box::new(adamw8bit::AdamW8bit::new(config, lora)?),
            Method::Lion(config) => Box::new(lion::Lion::new(config, lora)?),
            Method::Prodigy(config) => Box::new(prodigy::Prodigy::new(config, lora)?),
            Method::Adafactor(config) => Box::new(adafactor::Adafactor::new(config, lora)?),
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

    /// Restores a state taken after this many steps; `fill` writes each tensor that [`Optimiser::state`]
    /// names.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_decides_method_and_numbers() {
        let read = |train: &str| {
            let text = format!(
                "{{job: extension, config: {{name: n, process: [{{type: sd_trainer, network: {{}}, \
                 datasets: [{{folder_path: p}}], model: {{name_or_path: m, arch: qwen_image}}, train: {{{train}}}}}]}}}}"
            );
            job::Job::from_str(&text, "job.yaml".as_ref(), None, &|_| None).unwrap().0
        };
        let method = |text: &str| {
            let job = read(text);
            Method::of(&job.train.optimiser, job.train.lr)
        };
        let adam = AdamWConfig { weight_decay: 0.0, coupled: true, ..AdamWConfig::default() };
        assert_eq!(method("optimizer: adam"), Method::AdamW(adam));
        let lion = LionConfig { beta1: 0.8, beta2: 0.9, weight_decay: 5.0 };
        let text = "optimizer: lion, lr: 0.01, optimizer_params: {betas: [0.8, 0.9], weight_decay: 0.05, decoupled_weight_decay: true}";
        assert_eq!(method(text), Method::Lion(lion));
        let adafactor = AdafactorConfig { eps: 1e-20, scale_floor: Some(0.01), ..AdafactorConfig::default() };
        let text = "optimizer: adafactor, optimizer_params: {eps: [1e-20, 0.01], scale_parameter: true}";
        assert_eq!(method(text), Method::Adafactor(adafactor));
        let job = read("optimizer: prodigy, lr: 1e-4, optimizer_params: {d_coef: 2}");
        let prodigy = ProdigyConfig { d_coef: 2.0, ..ProdigyConfig::default() };
        assert_eq!(Method::of(&job.train.optimiser, 1.0), Method::Prodigy(prodigy));
    }
}
