//! `train.optimizer_params`: which numbers an optimiser has, and within which limits.

use super::super::types::OptimiserParams;
use super::super::values::Optimiser;
use super::super::{Result, raw};
use super::{PROCESS, Resolver};

/// Learning rate below which ai-toolkit takes Prodigy's to be meant for another optimiser, and what it sets
/// instead.
const PRODIGY_LEAST: f64 = 0.1;
const PRODIGY_RATE: f64 = 1.0;

impl Resolver<'_> {
    /// The learning rate; Prodigy's is a factor about 1. Source: ai-toolkit `toolkit/optimizer.py`,
    /// `get_optimizer`.
    pub(super) fn rate(&mut self, kind: Optimiser, lr: f64) -> f64 {
        if kind != Optimiser::Prodigy || lr >= PRODIGY_LEAST {
            return lr;
        }
        let message = format!(
            "{lr:e} is no rate for prodigy, which finds its own and multiplies it by this; {PRODIGY_RATE} is used, as ai-toolkit does"
        );
        self.warn(&format!("{PROCESS}.train.lr"), message);
        PRODIGY_RATE
    }

    pub(super) fn optimiser_params(
        &mut self,
        kind: Optimiser,
        raw: raw::OptimizerParams,
    ) -> Result<OptimiserParams> {
        self.warn_of_strangers(kind, &raw);
        let at = |key: &str| format!("{PROCESS}.train.optimizer_params.{key}");
        let within = |key: &str, value: Option<f64>, low: f64, high: f64| {
            value.map(|v| self.within(&at(key), v, low, high)).transpose()
        };
        let share = |key: &str, value: Option<f64>| match value {
            Some(v) if !(0.0..1.0).contains(&v) => {
                Err(self.wrong(&at(key), format!("{v}: expected a number from 0 to below 1")))
            }
            other => Ok(other),
        };
        let above_zero = |key: &str, value: Option<f64>| match value {
            Some(v) if v.is_nan() || v <= 0.0 => {
                Err(self.wrong(&at(key), format!("{v}: expected a number above 0")))
            }
            other => Ok(other),
        };
        let betas = match raw.betas.as_deref() {
            None => None,
            Some(&[a, b]) if (0.0..1.0).contains(&a) && (0.0..1.0).contains(&b) => Some((a, b)),
            Some(other) => {
                let message = format!("{other:?}: expected two numbers from 0 to below 1");
                return Err(self.wrong(&at("betas"), message));
            }
        };
        let eps = match raw.eps.as_ref().map(|eps| eps.0.as_slice()) {
            None => (None, None),
            Some(&[eps]) => (Some(eps), None),
            Some(&[eps, floor]) if kind == Optimiser::Adafactor => (Some(eps), Some(floor)),
            Some(other) => {
                let expected = if kind == Optimiser::Adafactor { "one number or two" } else { "one number" };
                return Err(self.wrong(&at("eps"), format!("{other:?}: expected {expected}")));
            }
        };
        Ok(OptimiserParams {
            betas,
            eps: within("eps", eps.0, 0.0, f64::INFINITY)?,
            second_eps: within("eps", eps.1, 0.0, f64::INFINITY)?,
            weight_decay: within("weight_decay", raw.weight_decay, 0.0, f64::INFINITY)?,
            min_8bit_size: raw.min_8bit_size.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            decoupled_weight_decay: raw.decoupled_weight_decay,
            beta3: share("beta3", raw.beta3)?,
            decouple: raw.decouple,
            use_bias_correction: raw.use_bias_correction,
            safeguard_warmup: raw.safeguard_warmup,
            d0: above_zero("d0", raw.d0)?,
            d_coef: above_zero("d_coef", raw.d_coef)?,
            growth_rate: above_zero("growth_rate", raw.growth_rate)?,
            beta1: share("beta1", raw.beta1)?,
            clip_threshold: above_zero("clip_threshold", raw.clip_threshold)?,
            decay_rate: within("decay_rate", raw.decay_rate, f64::NEG_INFINITY, 0.0)?,
            scale_parameter: raw.scale_parameter,
        })
    }

    /// Warns of numbers that this optimiser does not have; ai-toolkit fails on them.
    fn warn_of_strangers(&mut self, kind: Optimiser, raw: &raw::OptimizerParams) {
        use Optimiser::{Adafactor, AdamW8bit, Lion, Prodigy};
        let given = [
            ("betas", raw.betas.is_some(), kind != Adafactor),
            ("eps", raw.eps.is_some(), kind != Lion),
            ("min_8bit_size", raw.min_8bit_size.is_some(), kind == AdamW8bit),
            ("decoupled_weight_decay", raw.decoupled_weight_decay.is_some(), kind == Lion),
            ("beta3", raw.beta3.is_some(), kind == Prodigy),
            ("decouple", raw.decouple.is_some(), kind == Prodigy),
            ("use_bias_correction", raw.use_bias_correction.is_some(), kind == Prodigy),
            ("safeguard_warmup", raw.safeguard_warmup.is_some(), kind == Prodigy),
            ("d0", raw.d0.is_some(), kind == Prodigy),
            ("d_coef", raw.d_coef.is_some(), kind == Prodigy),
            ("growth_rate", raw.growth_rate.is_some(), kind == Prodigy),
            ("beta1", raw.beta1.is_some(), kind == Adafactor),
            ("clip_threshold", raw.clip_threshold.is_some(), kind == Adafactor),
            ("decay_rate", raw.decay_rate.is_some(), kind == Adafactor),
            ("scale_parameter", raw.scale_parameter.is_some(), kind == Adafactor),
        ];
        for (key, _, _) in given.into_iter().filter(|(_, given, belongs)| *given && !belongs) {
            let message = format!("`{key}` has no effect: the optimiser has no such number");
            self.warn(&format!("{PROCESS}.train.optimizer_params.{key}"), message);
        }
    }
}
