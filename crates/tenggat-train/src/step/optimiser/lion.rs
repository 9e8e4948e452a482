//! Lion.

use std::ops::Range;

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::lion;
use tenggat_tensor::{Result, Tensor, View};

use super::{Rule, zeros};

/// Settings that stay the same from step to step. Defaults are those of lion-pytorch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LionConfig {
    /// Weight of the old momentum in the direction.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Default for LionConfig {
    fn default() -> Self {
        LionConfig { beta1: 0.9, beta2: 0.99, weight_decay: 0.0 }
    }
}

#[derive(Debug)]
pub(super) struct Lion {
    config: LionConfig,
    ranges: Vec<Range<usize>>,
    m: Tensor,
}

impl Lion {
    pub fn new(config: LionConfig, lora: &Lora) -> Result<Self> {
        Ok(Lion { config, ranges: lora.layout.trained_ranges(), m: zeros(lora)? })
    }
}

impl Rule for Lion {
    fn update(
        &mut self,
        lora: &mut Lora,
        gradients: &Tensor,
        clip: View<'_>,
        lr: f64,
        _step: u64,
    ) -> Result<()> {
        let LionConfig { beta1, beta2, weight_decay } = self.config;
        let hyper = lion::Hyper { lr, beta1, beta2, weight_decay };
        for range in &self.ranges {
            let (at, n) = (range.start, range.len());
            lion::step(
                lora.parameters.matrix_mut(at, 1, n)?,
                gradients.matrix(at, 1, n)?,
                clip,
                self.m.matrix_mut(at, 1, n)?,
                hyper,
            )?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("m", &self.m)]
    }

    fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("m", &mut self.m)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::super::check::{Matrix, against};
    use super::*;

    /// lion-pytorch `lion_pytorch/lion_pytorch.py`, `update_fn`.
    #[test]
    fn follows_the_definition() {
        let config = LionConfig { weight_decay: 0.3, ..LionConfig::default() };
        against(Method::Lion(config), &mut |_, lr, matrices: &mut [Matrix]| {
            for matrix in matrices {
                matrix.state.resize(matrix.p.len(), 0.0);
                for ((p, g), m) in matrix.p.iter_mut().zip(&matrix.g).zip(&mut matrix.state) {
                    *p *= 1.0 - lr * 0.3;
                    let direction = *m * 0.9 + 0.1 * g;
                    *p -= lr * if direction == 0.0 { 0.0 } else { direction.signum() };
                    *m = *m * 0.99 + 0.01 * g;
                }
            }
        });
    }
}
