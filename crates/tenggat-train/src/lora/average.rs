//! Exponential moving average of an adapter's parameters.

use tenggat_models::lora::Lora;
use tenggat_tensor::ops::copy;
use tenggat_tensor::{Result, Tensor};

/// The average: `e ← e + (1 − d)·(p − e)` after every step. With a warm-up `d = min(decay, (1 + n)/(10 + n))`
/// at step n, so that the first steps do not weigh on it for long; without one `d = decay`, as in ai-toolkit.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    warm_up: bool,
    steps: u64,
    average: Lora,
}

impl Ema {
    /// An average that starts at the adapter's present values.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn new(decay: f64, warm_up: bool, lora: &Lora) -> Result<Self> {
        let average =
            Lora { scale: lora.scale, ..Lora::new(lora.layout.clone(), lora.parameters.duplicate()?) };
        Ok(Ema { decay, warm_up, steps: 0, average })
    }

    /// Takes in the parameters after a step.
    ///
    /// # Errors
    /// The device failed.
    pub fn update(&mut self, lora: &Lora) -> Result<()> {
        self.steps += 1;
        let n = self.steps as f64;
        let risen = if self.warm_up { (1.0 + n) / (10.0 + n) } else { 1.0 };
        let decay = self.decay.min(risen);
        copy::lerp(1.0 - decay, flat(&lora.parameters)?, {
            let n = self.average.parameters.len();
            self.average.parameters.matrix_mut(0, 1, n)?
        })
    }

    /// Updates taken in.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Restores an average over this many updates; `fill` writes it.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn restore<E>(
        &mut self,
        steps: u64,
        fill: &mut dyn FnMut(&mut Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        self.steps = steps;
        fill(&mut self.average.parameters)
    }

    /// The averaged adapter.
    pub fn average(&self) -> &Lora {
        &self.average
    }
}

fn flat(t: &Tensor) -> Result<tenggat_tensor::View<'_>> {
    t.matrix(0, 1, t.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_models::lora::{Candidate, Layout};
    use tenggat_tensor::{DType, Device};

    #[test]
    fn follows_a_constant_and_warms_up() {
        let layer = (2, vec![Candidate { name: "m".into(), output: 2, trained: true }]);
        let mut lora = Lora::zeros(Layout::new(1, [layer], |_| true), &Device::cpu(), DType::F64).unwrap();
        let mut ema = Ema::new(0.9, true, &lora).unwrap();
        lora.parameters.fill(1.0).unwrap();
        ema.update(&lora).unwrap();
        // d = min(0.9, 2/11): the average has moved by 9/11.
        assert!((ema.average().parameters.to_f64().unwrap()[0] - 9.0 / 11.0).abs() < 1e-12);
        (0..200).for_each(|_| ema.update(&lora).unwrap());
        assert!((ema.average().parameters.to_f64().unwrap()[0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn without_a_warm_up_the_decay_is_constant() {
        let layer = (2, vec![Candidate { name: "m".into(), output: 2, trained: true }]);
        let mut lora = Lora::zeros(Layout::new(1, [layer], |_| true), &Device::cpu(), DType::F64).unwrap();
        let mut ema = Ema::new(0.9, false, &lora).unwrap();
        lora.parameters.fill(1.0).unwrap();
        ema.update(&lora).unwrap();
        ema.update(&lora).unwrap();
        // 1 − 0.9²
        assert!((ema.average().parameters.to_f64().unwrap()[0] - 0.19).abs() < 1e-12);
    }
}
