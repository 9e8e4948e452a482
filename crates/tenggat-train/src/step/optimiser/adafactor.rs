//! Adafactor.

use tenggat_models::lora::{Lora, Matrix};
use tenggat_tensor::ops::adafactor::{self, Hyper, State};
use tenggat_tensor::{Result, Tensor, View};

use super::{Rule, zeros};

/// Settings that stay the same from step to step. Defaults are those of transformers, with ai-toolkit's
/// choice of a learning rate from outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdafactorConfig {
    /// Added to the square of the gradient.
    pub eps: f64,
    /// Least root mean square of the parameters that the learning rate is scaled by, if it is scaled by it.
    pub scale_floor: Option<f64>,
    /// Root mean square of an update from which on it is scaled down.
    pub clip_threshold: f64,
    /// The second moment decays by `1 − stepᶜ` with this c, which is negative.
    pub decay_rate: f64,
    /// Decay of the first moment, if there is one.
    pub beta1: Option<f64>,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

/// The second of transformers' two eps.
pub(super) const SCALE_FLOOR: f64 = 1e-3;

impl Default for AdafactorConfig {
    fn default() -> Self {
        AdafactorConfig {
            eps: 1e-30,
            scale_floor: None,
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Adafactor {
    config: AdafactorConfig,
    matrices: Vec<Matrix>,
    rows: Tensor,
    columns: Tensor,
    first: Option<Tensor>,
}

impl Adafactor {
    pub fn new(config: AdafactorConfig, lora: &Lora) -> Result<Self> {
        let matrices = lora.layout.trained_matrices();
        let p = &lora.parameters;
        let all = |count: fn(&Matrix) -> usize| {
            Tensor::zeros(&p.device(), p.dtype(), &[matrices.iter().map(count).sum()])
        };
        let (rows, columns) = (all(|m| m.rows)?, all(|m| m.cols)?);
        let first = config.beta1.map(|_| zeros(lora)).transpose()?;
        Ok(Adafactor { config, matrices, rows, columns, first })
    }
}

impl Rule for Adafactor {
    fn update(
        &mut self,
        lora: &mut Lora,
        gradients: &Tensor,
        clip: View<'_>,
        lr: f64,
        step: u64,
    ) -> Result<()> {
        let c = self.config;
        let hyper = Hyper {
            lr,
            beta2: 1.0 - (step as f64).powf(c.decay_rate),
            eps: c.eps,
            threshold: c.clip_threshold,
            weight_decay: c.weight_decay,
            scale_floor: c.scale_floor,
        };
        let (mut row, mut column) = (0, 0);
        for &Matrix { at, rows, cols } in &self.matrices {
            let first = match (&mut self.first, c.beta1) {
                (Some(first), Some(beta1)) => Some((first.matrix_mut(at, rows, cols)?, beta1)),
                _ => None,
            };
            let state = State {
                rows: self.rows.matrix_mut(row, 1, rows)?,
                columns: self.columns.matrix_mut(column, 1, cols)?,
                first,
            };
            let gradient = gradients.matrix(at, rows, cols)?;
            adafactor::step(lora.parameters.matrix_mut(at, rows, cols)?, gradient, clip, state, hyper)?;
            (row, column) = (row + rows, column + cols);
        }
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        let first = self.first.as_ref().map(|first| ("first", first));
        [("rows", &self.rows), ("columns", &self.columns)].into_iter().chain(first).collect()
    }

    fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let first = self.first.as_mut().map(|first| ("first", first));
        [("rows", &mut self.rows), ("columns", &mut self.columns)].into_iter().chain(first).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::super::check::{Matrix, against};
    use super::*;

    /// transformers `src/transformers/optimization.py`, `Adafactor.step`. A matrix's state is rows, columns,
    /// first moment.
    fn reference(c: AdafactorConfig) -> impl FnMut(u64, f64, &mut [Matrix]) {
        let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        move |step, lr, matrices| {
            for Matrix { rows, cols, p, g, state } in matrices {
                let (m, n) = (*rows, *cols);
                state.resize(m + n + m * n, 0.0);
                let lr = lr * c.scale_floor.map_or(1.0, |floor| rms(p).max(floor));
                let beta2 = 1.0 - (step as f64).powf(c.decay_rate);
                let q: Vec<f64> = g.iter().map(|g| g * g + c.eps).collect();
                for i in 0..m {
                    let mean = q[i * n..(i + 1) * n].iter().sum::<f64>() / n as f64;
                    state[i] = beta2 * state[i] + (1.0 - beta2) * mean;
                }
                for j in 0..n {
                    let mean = (0..m).map(|i| q[i * n + j]).sum::<f64>() / m as f64;
                    state[m + j] = beta2 * state[m + j] + (1.0 - beta2) * mean;
                }
                let mean = state[..m].iter().sum::<f64>() / m as f64;
                let mut u: Vec<f64> = (0..m * n)
                    .map(|k| g[k] / (state[k / n] / mean).sqrt() / state[m + k % n].sqrt())
                    .collect();
                let over = (rms(&u) / c.clip_threshold).max(1.0);
                u.iter_mut().for_each(|u| *u *= lr / over);
                if let Some(beta1) = c.beta1 {
                    for (first, u) in state[m + n..].iter_mut().zip(&mut u) {
                        *first = beta1 * *first + (1.0 - beta1) * *u;
                        *u = *first;
                    }
                }
                p.iter_mut().zip(&u).for_each(|(p, u)| *p = *p - c.weight_decay * lr * *p - u);
            }
        }
    }

    #[test]
    fn follows_the_definition() {
        let plain = AdafactorConfig::default();
        let other = AdafactorConfig {
            scale_floor: Some(SCALE_FLOOR),
            clip_threshold: 0.5,
            decay_rate: -0.6,
            beta1: Some(0.9),
            weight_decay: 0.2,
            eps: 1e-8,
        };
        for config in [plain, other] {
            against(Method::Adafactor(config), &mut reference(config));
        }
    }
}
