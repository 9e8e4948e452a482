//! The training section.

use std::path::PathBuf;

use super::resolver::{PROCESS, Resolver};
use crate::de::truth;
use crate::raw::{self, TextOrFlag};
use crate::values::{self, Balance, Bell, Loss, LrScheduler, Optimiser, Recompute, SaveType, TimestepType};
use crate::{Compat, OptimiserConfig, Train, Validation};

/// The optimiser that ai-toolkit takes a name for: it looks at the beginning of Prodigy's alone.
/// Source: ai-toolkit `toolkit/optimizer.py`, `get_optimizer`.
fn family(name: &str) -> &str {
    let lower = name.to_lowercase();
    match lower.starts_with("prodigy") && !lower.starts_with("prodigy8bit") {
        true => "prodigy",
        false => name,
    }
}

/// ai-toolkit's own rate where a job names none.
const DEFAULT_RATE: f64 = 1e-6;

impl Resolver<'_> {
    pub(super) fn train(
        &mut self,
        raw: raw::Train,
        batch_size: usize,
        trigger: &Option<String>,
        compat: Compat,
    ) -> Train {
        let at = |key: &str| format!("{PROCESS}.train.{key}");
        if raw.unload_text_encoder == Some(true) && raw.cache_text_embeddings != Some(true) {
            let why = "without cached embeddings, ai-toolkit then trains on the blank caption alone";
            self.refused(&at("unload_text_encoder"), why, "write `cache_text_embeddings: true`");
        }
        let kind = raw.optimizer.as_deref().map(family);
        let kind = self.choose(&at("optimizer"), kind, values::OPTIMISERS, Optimiser::AdamW);
        let params = self.optimiser_params(kind, raw.optimizer_params.clone().unwrap_or_default());
        let schedule = raw.lr_scheduler_params.clone().unwrap_or_default();
        let ema = raw.ema_config.clone().unwrap_or_default();
        let averages = ema.use_ema == Some(true);
        let lr_scheduler = raw.lr_scheduler.as_deref().map(|name| {
            self.choose(&at("lr_scheduler"), Some(name), values::LR_SCHEDULERS, LrScheduler::Constant)
        });
        let dtype = self.choose(&at("dtype"), raw.dtype.as_deref(), values::SAVE_TYPES, SaveType::F32);
        Train {
            steps: raw.steps,
            batch_size,
            gradient_accumulation: self.accumulation(&raw),
            lr: self.rate(kind, raw.lr.unwrap_or(DEFAULT_RATE), raw.lr.is_some()),
            lr_times_steps: None,
            optimiser: OptimiserConfig { kind, params },
            lr_scheduler,
            warmup_steps: schedule.num_warmup_steps.or(schedule.warmup_steps),
            lr_min: schedule.eta_min.unwrap_or(0.0),
            lr_cycles: schedule.num_cycles.unwrap_or(1),
            max_grad_norm: raw.max_grad_norm.unwrap_or(1.0),
            timestep_type: self.choose(
                &at("timestep_type"),
                raw.timestep_type.as_deref(),
                values::TIMESTEP_TYPES,
                TimestepType::Sigmoid,
            ),
            balance: self.choose(
                &at("content_or_style"),
                raw.content_or_style.as_deref(),
                values::BALANCES,
                Balance::Balanced,
            ),
            bell: match (raw.linear_timesteps, raw.linear_timesteps2) {
                (Some(true), _) => Bell::Whole,
                (_, Some(true)) => Bell::Half,
                _ => Bell::Flat,
            },
            denoising_steps: self.denoising_steps(&raw),
            validation: raw.validation_config.and_then(|config| self.validation(config, trigger)),
            loss: self.choose(&at("loss_type"), raw.loss_type.as_deref(), values::LOSSES, Loss::MeanSquared),
            max_loss: raw.max_loss,
            reg_weight: raw.reg_weight.unwrap_or(1.0),
            noise_offset: raw.noise_offset.unwrap_or(0.0),
            ema_decay: averages.then(|| ema.ema_decay.unwrap_or(0.999)),
            recompute: self.recompute(raw.gradient_checkpointing, compat),
            bf16: dtype == SaveType::Bf16,
        }
    }

    /// Batches in a step, under either of their names. ai-toolkit counts the last batch alone where it is
    /// called `gradient_accumulation_steps`.
    fn accumulation(&mut self, raw: &raw::Train) -> usize {
        let (one, other) = (raw.gradient_accumulation, raw.gradient_accumulation_steps);
        match (one.unwrap_or(1), other.unwrap_or(1)) {
            (n, 1) | (1, n) => n as usize,
            (a, b) if a == b => a as usize,
            (a, b) => {
                let message = format!(
                    "{b} batches a step, while `gradient_accumulation` says {a}; write one of the two keys"
                );
                self.wrong(&format!("{PROCESS}.train.gradient_accumulation_steps"), message);
                1
            }
        }
    }

    fn denoising_steps(&mut self, raw: &raw::Train) -> (usize, usize) {
        let low = raw.min_denoising_steps.unwrap_or(0);
        let high = raw.max_denoising_steps.unwrap_or(999);
        if low >= high {
            let key = if raw.max_denoising_steps.is_some() { "max" } else { "min" };
            let message = format!("{low} to {high} is not a range; expected 0 ≤ min < max ≤ 1000");
            self.wrong(&format!("{PROCESS}.train.{key}_denoising_steps"), message);
        }
        (low as usize, high as usize)
    }

    /// ai-toolkit knows `true` and `false`; there `true` is every block, here it is those that do not fit.
    fn recompute(&mut self, raw: Option<TextOrFlag>, compat: Compat) -> Recompute {
        let flag = match raw {
            None => return Recompute::Auto,
            Some(TextOrFlag::Flag(flag)) => flag,
            Some(TextOrFlag::Text(text)) => match (text.as_str(), truth(&text)) {
                ("auto", _) => return Recompute::Auto,
                (_, Some(flag)) => flag,
                _ => {
                    let message = format!("`{text}`: expected true, false or auto");
                    self.wrong(&format!("{PROCESS}.train.gradient_checkpointing"), message);
                    return Recompute::Auto;
                }
            },
        };
        match flag {
            true if compat.checkpoint_all => Recompute::Always,
            true => Recompute::Auto,
            false => Recompute::Never,
        }
    }

    /// Defaults: ai-toolkit `toolkit/config_modules.py`, `ValidationConfig`.
    fn validation(&mut self, raw: raw::Validation, trigger: &Option<String>) -> Option<Validation> {
        let here = format!("{PROCESS}.train.validation_config");
        let at = |key: &str| format!("{here}.{key}");
        let trigger = trigger.as_deref().unwrap_or_default();
        let prompt = |text: Option<String>| {
            text.unwrap_or_default().replace("[trigger]", trigger).replace("[name]", trigger)
        };
        let mut items = Vec::new();
        for item in raw.validation_items.unwrap_or_default() {
            match item.image_path.filter(|path| !path.is_empty()) {
                Some(path) => items.push((PathBuf::from(path), prompt(item.prompt))),
                None => self.warn(&at("validation_items"), "an item without `image_path` is left out"),
            }
        }
        if items.is_empty() {
            self.warn(&here, "without images in `validation_items` nothing is measured");
            return None;
        }
        let sigmas = raw.validation_sigmas.unwrap_or_else(|| vec![1.0, 0.75, 0.5, 0.25]);
        if sigmas.is_empty() {
            self.wrong(&at("validation_sigmas"), "an empty list; expected noise levels from 0 to 1");
        }
        Some(Validation {
            items,
            resolution: raw.resolution.unwrap_or(512) as usize,
            every: raw.validate_every_n_steps.unwrap_or(10),
            sigmas,
        })
    }
}
