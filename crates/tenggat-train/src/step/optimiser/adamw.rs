//! AdamW and Adam in full precision.

use std::ops::Range;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::adamw::{self, Hyper};
use tenggat_tensor::{Result, Tensor, View};

use super::{Rule, zeros};

/// Settings that stay the same from step to step. Defaults are those of `torch.optim.AdamW` but for eps,
/// where ai-toolkit sets 1e-6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay is added to the gradient, as Adam does, rather than applied to the parameters.
    pub coupled: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01, coupled: false }
    }
}

impl AdamWConfig {
    /// Adam: no weight decay unless asked for, and then as part of the gradient. Defaults of
    /// `torch.optim.Adam` but for eps, where ai-toolkit sets 1e-6.
    pub fn adam() -> Self {
        AdamWConfig { weight_decay: 0.0, coupled: true, ..AdamWConfig::default() }
    }

    pub(super) fn at(self, lr: f64, step: u64) -> Hyper {
        let AdamWConfig { beta1, beta2, eps, weight_decay, coupled } = self;
        let (weight_decay, l2) = if coupled { (0.0, weight_decay) } else { (weight_decay, 0.0) };
        Hyper { lr, beta1, beta2, eps, weight_decay, l2, step }
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
        Ok(AdamW { config, ranges: lora.layout.trained_ranges(), m: zeros(lora)?, v: zeros(lora)? })
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

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::super::check::{Matrix, against};
    use super::*;

    /// `torch.optim.Adam` and `AdamW`, as their documentation defines them.
    fn reference(c: AdamWConfig) -> impl FnMut(u64, f64, &mut [Matrix]) {
        move |step, lr, matrices| {
            for Matrix { p, g, state, .. } in matrices {
                let n = p.len();
                state.resize(2 * n, 0.0);
                for i in 0..n {
                    let mut g = g[i];
                    if c.coupled {
                        g += c.weight_decay * p[i];
                    } else {
                        p[i] -= lr * c.weight_decay * p[i];
                    }
                    state[i] = c.beta1 * state[i] + (1.0 - c.beta1) * g;
                    state[n + i] = c.beta2 * state[n + i] + (1.0 - c.beta2) * g * g;
                    let m = state[i] / (1.0 - c.beta1.powi(step as i32));
                    let v = state[n + i] / (1.0 - c.beta2.powi(step as i32));
                    p[i] -= lr * m / (v.sqrt() + c.eps);
                }
            }
        }
    }

    #[test]
    fn follows_the_definition() {
        let adam = AdamWConfig { weight_decay: 0.3, ..AdamWConfig::adam() };
        let other = AdamWConfig { beta1: 0.8, beta2: 0.95, eps: 1e-8, weight_decay: 0.3, coupled: false };
        for config in [AdamWConfig::default(), AdamWConfig::adam(), adam, other] {
            against(Method::AdamW(config), &mut reference(config));
        }
    }
}
