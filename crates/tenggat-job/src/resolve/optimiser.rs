//! `train.optimizer_params`: which numbers an optimiser has, and within which limits.

use super::resolver::{PROCESS, Resolver};
use crate::values::Optimiser;
use crate::{OptimiserParams, raw};

/// Learning rate below which ai-toolkit takes Prodigy's to be meant for another optimiser, and what it sets
/// instead.
const PRODIGY_LEAST: f64 = 0.1;
const PRODIGY_RATE: f64 = 1.0;

/// Above this only Prodigy trains anything but noise.
const RATE_MOST: f64 = 0.1;

impl Resolver<'_> {
    /// The learning rate; Prodigy's is a factor about 1. Source: ai-toolkit `toolkit/optimizer.py`,
    /// `get_optimizer`.
    pub(super) fn rate(&mut self, kind: Optimiser, lr: f64, is_given: bool) -> f64 {
        let path = format!("{PROCESS}.train.lr");
        let message = match kind {
            Optimiser::Prodigy if lr < PRODIGY_LEAST => {
                let message = format!(
                    "prodigy finds its own rate and multiplies it by `lr`, so {lr:e} makes no sense; \
                     {PRODIGY_RATE} is used, as in ai-toolkit"
                );
                self.warn(&path, message);
                return PRODIGY_RATE;
            }
            Optimiser::Prodigy => return lr,
            _ if !is_given => {
                format!("`lr` is missing; ai-toolkit's {lr:e} learns next to nothing, try 1e-4")
            }
            _ if lr == 0.0 => "with a learning rate of 0 nothing is learnt; try 1e-4".into(),
            _ if lr > RATE_MOST => {
                format!(
                    "a learning rate of {lr} destroys what the model knows; is a minus missing, as in 1e-4?"
                )
            }
            _ => return lr,
        };
        self.warn(&path, message);
        lr
    }

    pub(super) fn optimiser_params(&mut self, kind: Optimiser, raw: raw::OptimizerParams) -> OptimiserParams {
        self.warn_of_strangers(kind, &raw);
        let at = |key: &str| format!("{PROCESS}.train.optimizer_params.{key}");
        let betas = match raw.betas.as_deref() {
            None => None,
            Some(&[a, b]) => Some((a, b)),
            Some(other) => {
                self.wrong(&at("betas"), format!("{other:?}: expected two numbers from 0 to below 1"));
                None
            }
        };
        let (eps, second_eps) = match raw.eps.as_ref().map(|eps| eps.0.as_slice()) {
            None => (None, None),
            Some(&[eps]) => (Some(eps), None),
            Some(&[eps, floor]) if kind == Optimiser::Adafactor => (Some(eps), Some(floor)),
            Some(other) => {
                let expected = if kind == Optimiser::Adafactor { "one number or two" } else { "one number" };
                self.wrong(&at("eps"), format!("{other:?}: expected {expected}"));
                (None, None)
            }
        };
        OptimiserParams {
            betas,
            eps,
            second_eps,
            weight_decay: raw.weight_decay,
            min_8bit_size: raw.min_8bit_size.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            decoupled_weight_decay: raw.decoupled_weight_decay,
            beta3: raw.beta3,
            decouple: raw.decouple,
            use_bias_correction: raw.use_bias_correction,
            safeguard_warmup: raw.safeguard_warmup,
            d0: raw.d0,
            d_coef: raw.d_coef,
            growth_rate: raw.growth_rate,
            beta1: raw.beta1,
            clip_threshold: raw.clip_threshold,
            decay_rate: raw.decay_rate,
            scale_parameter: raw.scale_parameter,
        }
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
            let message = format!("`{key}` has no effect: the optimiser has no such parameter");
            self.warn(&format!("{PROCESS}.train.optimizer_params.{key}"), message);
        }
    }
}
