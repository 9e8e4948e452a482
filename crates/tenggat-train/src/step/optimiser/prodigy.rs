//! Prodigy.

use std::ops::Range;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::prodigy::{self, Accumulate, Buffers, Update};
use tenggat_tensor::{DType, Result, Tensor, View};

use super::{Rule, zeros};

/// Settings that stay the same from step to step. Defaults are those of prodigyopt but for eps, where
/// ai-toolkit sets 1e-6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProdigyConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decay of the sums that the step size is made of; the root of `beta2` if not given.
    pub beta3: Option<f64>,
    /// Added to the root of the second moment, times the step size estimate.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay is applied to the parameters, as AdamW does, rather than added to the gradient.
    pub decouple: bool,
    /// Whether Adam's bias correction is on.
    pub use_bias_correction: bool,
    /// Whether the learning rate is left out of the sum of gradients, for schedules that warm up.
    pub safeguard_warmup: bool,
    /// First estimate of the step size.
    pub d0: f64,
    /// Factor on the estimates.
    pub d_coef: f64,
    /// Largest growth of the estimate from step to step.
    pub growth_rate: f64,
}

impl Default for ProdigyConfig {
    fn default() -> Self {
        ProdigyConfig {
            beta1: 0.9,
            beta2: 0.999,
            beta3: None,
            eps: 1e-6,
            weight_decay: 0.0,
            decouple: true,
            use_bias_correction: false,
            safeguard_warmup: false,
            d0: 1e-6,
            d_coef: 1.0,
            growth_rate: f64::INFINITY,
        }
    }
}

#[derive(Debug)]
pub(super) struct Prodigy {
    config: ProdigyConfig,
    ranges: Vec<Range<usize>>,
    /// The parameters at the start.
    start: Tensor,
    m: Tensor,
    v: Tensor,
    s: Tensor,
    /// d, its largest estimate, the weighted distance, and the steps taken, `[4]` f64: steps at rate 0 do
    /// not count.
    numbers: Tensor,
}

impl Prodigy {
    pub fn new(config: ProdigyConfig, lora: &Lora) -> Result<Self> {
        let numbers = [config.d0, config.d0, 0.0, 0.0];
        Ok(Prodigy {
            config,
            ranges: lora.layout.trained_ranges(),
            start: lora.parameters.duplicate()?,
            m: zeros(lora)?,
            v: zeros(lora)?,
            s: zeros(lora)?,
            numbers: Tensor::from_f64(&lora.parameters.device(), DType::F64, &numbers, &[4])?,
        })
    }
}

impl Rule for Prodigy {
    fn update(
        &mut self,
        lora: &mut Lora,
        gradients: &Tensor,
        clip: View<'_>,
        lr: f64,
        _step: u64,
    ) -> Result<()> {
        if lr <= 0.0 {
            return Ok(());
        }
        let c = self.config;
        let &[d, d_max, distance, taken] = &self.numbers.to_f64()?[..] else { return Ok(()) };
        let corrected = if c.use_bias_correction {
            (1.0 - c.beta2.powf(taken + 1.0)).sqrt() / (1.0 - c.beta1.powf(taken + 1.0))
        } else {
            1.0
        };
        let step_size = d * lr * corrected;
        let beta3 = c.beta3.unwrap_or(c.beta2.sqrt());
        let hyper = Accumulate {
            beta1: c.beta1,
            beta2: c.beta2,
            beta3,
            l2: if c.decouple { 0.0 } else { c.weight_decay },
            d,
            sum_weight: d / c.d0 * if c.safeguard_warmup { d } else { step_size },
            distance_weight: d / c.d0 * step_size,
        };
        let (mut distance, mut size) = (beta3 * distance, 0.0);
        for range in &self.ranges {
            let (at, n) = (range.start, range.len());
            let buffers = Buffers {
                start: self.start.matrix(at, 1, n)?,
                m: self.m.matrix_mut(at, 1, n)?,
                v: self.v.matrix_mut(at, 1, n)?,
                s: self.s.matrix_mut(at, 1, n)?,
            };
            let (p, g) = (lora.parameters.matrix(at, 1, n)?, gradients.matrix(at, 1, n)?);
            let (moved, sum) = prodigy::accumulate(p, g, clip, buffers, hyper)?;
            distance += moved;
            size += sum;
        }
        if size == 0.0 {
            return Ok(());
        }
        let estimate = c.d_coef * distance / size;
        let grown = if d == c.d0 { d.max(estimate) } else { d };
        let d_max = d_max.max(estimate);
        let d = d_max.min(grown * c.growth_rate);
        let device = self.numbers.device();
        self.numbers = Tensor::from_f64(&device, DType::F64, &[d, d_max, distance, taken + 1.0], &[4])?;
        let weight_decay = if c.decouple { c.weight_decay } else { 0.0 };
        for range in &self.ranges {
            let (at, n) = (range.start, range.len());
            let (m, v) = (self.m.matrix(at, 1, n)?, self.v.matrix(at, 1, n)?);
            let hyper = Update { step_size, eps: d * c.eps, weight_decay };
            prodigy::update(lora.parameters.matrix_mut(at, 1, n)?, m, v, hyper)?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        let Prodigy { start, m, v, s, numbers, .. } = self;
        vec![("start", start), ("m", m), ("v", v), ("s", s), ("numbers", numbers)]
    }

    fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let Prodigy { start, m, v, s, numbers, .. } = self;
        vec![("start", start), ("m", m), ("v", v), ("s", s), ("numbers", numbers)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::super::check::{Matrix, against};
    use super::*;

    /// prodigyopt `prodigyopt/prodigy.py`, `Prodigy.step`. Each matrix's state is p₀, m, v and s. `found`
    /// receives the step size estimates.
    fn reference(c: ProdigyConfig, found: &mut Vec<f64>) -> impl FnMut(u64, f64, &mut [Matrix]) {
        let (mut d, mut d_max, mut numerator, mut k) = (c.d0, c.d0, 0.0, 0);
        move |_, lr, matrices| {
            if lr == 0.0 {
                return;
            }
            let beta3 = c.beta3.unwrap_or(c.beta2.sqrt());
            let bias = if c.use_bias_correction {
                (1.0 - c.beta2.powi(k + 1)).sqrt() / (1.0 - c.beta1.powi(k + 1))
            } else {
                1.0
            };
            let dlr = d * lr * bias;
            numerator *= beta3;
            let mut denominator = 0.0;
            for matrix in matrices.iter_mut() {
                let n = matrix.p.len();
                if matrix.state.is_empty() {
                    matrix.state = [matrix.p.clone(), vec![0.0; 3 * n]].concat();
                }
                for i in 0..n {
                    let mut g = matrix.g[i];
                    if !c.decouple {
                        g += c.weight_decay * matrix.p[i];
                    }
                    let state = &mut matrix.state;
                    numerator += (d / c.d0) * dlr * g * (state[i] - matrix.p[i]);
                    state[n + i] = c.beta1 * state[n + i] + d * (1.0 - c.beta1) * g;
                    state[2 * n + i] = c.beta2 * state[2 * n + i] + d * d * (1.0 - c.beta2) * g * g;
                    let weight = if c.safeguard_warmup { d } else { dlr };
                    state[3 * n + i] = beta3 * state[3 * n + i] + (d / c.d0) * weight * g;
                    denominator += state[3 * n + i].abs();
                }
            }
            let d_hat = c.d_coef * numerator / denominator;
            if d == c.d0 {
                d = d.max(d_hat);
            }
            d_max = d_max.max(d_hat);
            d = d_max.min(d * c.growth_rate);
            found.push(d);
            for matrix in matrices.iter_mut() {
                let n = matrix.p.len();
                for i in 0..n {
                    if c.decouple {
                        matrix.p[i] -= c.weight_decay * dlr * matrix.p[i];
                    }
                    let denominator = matrix.state[2 * n + i].sqrt() + d * c.eps;
                    matrix.p[i] -= dlr * matrix.state[n + i] / denominator;
                }
            }
            k += 1;
        }
    }

    #[test]
    fn follows_the_definition() {
        // Rates of some hundredths: the factor makes the estimates grow.
        let plain = ProdigyConfig { d0: 1e-3, d_coef: 40.0, ..ProdigyConfig::default() };
        let decayed = ProdigyConfig { weight_decay: 0.1, use_bias_correction: true, d_coef: 60.0, ..plain };
        let other = ProdigyConfig {
            decouple: false,
            safeguard_warmup: true,
            beta3: Some(0.95),
            growth_rate: 1.1,
            d_coef: 2e5,
            ..decayed
        };
        for config in [plain, decayed, other] {
            let mut found = Vec::new();
            against(Method::Prodigy(config), &mut reference(config, &mut found));
            let grown = found.windows(2).filter(|pair| pair[1] > pair[0]).count();
            assert!(grown >= 4, "the estimate hardly grows: {found:?}");
        }
    }
}
