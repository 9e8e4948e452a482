//! The training section.

use std::path::PathBuf;

use super::super::raw::TextOrFlag;
use super::super::types::{OptimiserConfig, Train, Validation};
use super::super::values::{
    self, Balance, Bell, Checkpointing, Loss, LrScheduler, Optimiser, SaveType, TimestepType,
};
use super::super::{Compat, Result, raw};
use super::{PROCESS, Resolver};

impl Resolver<'_> {
    pub(super) fn train(
        &mut self,
        raw: raw::Train,
        batch_size: usize,
        trigger: &Option<String>,
        compat: Compat,
    ) -> Result<Train> {
        let at = |key: &str| format!("{PROCESS}.train.{key}");
        if raw.unload_text_encoder == Some(true) && raw.cache_text_embeddings != Some(true) {
            let why = "without cached embeddings, ai-toolkit then trains on the blank caption alone";
            return Err(self.refused(&at("unload_text_encoder"), why, "write `cache_text_embeddings: true`"));
        }
        let dtype = self.choose(&at("dtype"), raw.dtype.as_deref(), values::SAVE_TYPES, SaveType::F32)?;
        let low = raw.min_denoising_steps.unwrap_or(0);
        let high = raw.max_denoising_steps.unwrap_or(999);
        if high > 1000 || low >= high {
            let message = format!("{low} to {high} is no range; expected 0 ≤ min < max ≤ 1000");
            return Err(self.wrong(&at("max_denoising_steps"), message));
        }
        let validation = match raw.validation_config.clone() {
            Some(config) => self.validation(config, trigger)?,
            None => None,
        };
        let kind =
            self.choose(&at("optimizer"), raw.optimizer.as_deref(), values::OPTIMISERS, Optimiser::AdamW)?;
        let params = self.optimiser_params(kind, raw.optimizer_params.unwrap_or_default())?;
        let schedule = raw.lr_scheduler_params.unwrap_or_default();
        let ema = raw.ema_config.unwrap_or_default();
        let ema_decay = match ema.use_ema {
            Some(true) => {
                Some(self.within(&at("ema_config.ema_decay"), ema.ema_decay.unwrap_or(0.999), 0.0, 1.0)?)
            }
            _ => None,
        };
        let lr_scheduler = match raw.lr_scheduler.as_deref() {
            None => None,
            name => {
                Some(self.choose(&at("lr_scheduler"), name, values::LR_SCHEDULERS, LrScheduler::Constant)?)
            }
        };
        let lr = self.within(&at("lr"), raw.lr.unwrap_or(1e-6), 0.0, f64::INFINITY)?;
        let lr = self.rate(kind, lr);
        let positive = |key: &str, value: Option<f64>, default: f64| {
            self.within(&at(key), value.unwrap_or(default), 0.0, f64::INFINITY)
        };
        Ok(Train {
            steps: match raw.steps {
                None => None,
                some => Some(self.count(&at("steps"), some, 1)? as u64),
            },
            batch_size,
            gradient_accumulation: self.count(&at("gradient_accumulation"), raw.gradient_accumulation, 1)?,
            lr,
            lr_times_steps: None,
            optimiser: OptimiserConfig { kind, params },
            lr_scheduler,
            warmup_steps: schedule.num_warmup_steps.or(schedule.warmup_steps),
            lr_min: positive("lr_scheduler_params.eta_min", schedule.eta_min, 0.0)?,
            lr_cycles: self.count(&at("lr_scheduler_params.num_cycles"), schedule.num_cycles, 1)? as u64,
            max_grad_norm: positive("max_grad_norm", raw.max_grad_norm, 1.0)?,
            timestep_type: self.choose(
                &at("timestep_type"),
                raw.timestep_type.as_deref(),
                values::TIMESTEP_TYPES,
                TimestepType::Sigmoid,
            )?,
            balance: self.choose(
                &at("content_or_style"),
                raw.content_or_style.as_deref(),
                values::BALANCES,
                Balance::Balanced,
            )?,
            bell: match (raw.linear_timesteps, raw.linear_timesteps2) {
                (Some(true), _) => Bell::Whole,
                (_, Some(true)) => Bell::Half,
                _ => Bell::Flat,
            },
            denoising_steps: (low as usize, high as usize),
            validation,
            loss: self.choose(
                &at("loss_type"),
                raw.loss_type.as_deref(),
                values::LOSSES,
                Loss::MeanSquared,
            )?,
            max_loss: raw.max_loss.map(|m| positive("max_loss", Some(m), 0.0)).transpose()?,
            reg_weight: positive("reg_weight", raw.reg_weight, 1.0)?,
            noise_offset: positive("noise_offset", raw.noise_offset, 0.0)?,
            ema_decay,
            checkpointing: self.checkpointing(raw.gradient_checkpointing, compat)?,
            narrow: dtype == SaveType::Bf16,
        })
    }

    /// ai-toolkit knows `true` and `false`; there `true` is every block, here it is those that do not fit.
    fn checkpointing(&self, raw: Option<TextOrFlag>, compat: Compat) -> Result<Checkpointing> {
        match raw {
            None => Ok(Checkpointing::Auto),
            Some(TextOrFlag::Flag(true)) if compat.checkpoint_all => Ok(Checkpointing::Always),
            Some(TextOrFlag::Flag(true)) => Ok(Checkpointing::Auto),
            Some(TextOrFlag::Flag(false)) => Ok(Checkpointing::Never),
            Some(TextOrFlag::Text(text)) if text == "auto" => Ok(Checkpointing::Auto),
            Some(TextOrFlag::Text(text)) => {
                let message = format!("`{text}`: expected true, false or auto");
                Err(self.wrong(&format!("{PROCESS}.train.gradient_checkpointing"), message))
            }
        }
    }

    /// Defaults: ai-toolkit `toolkit/config_modules.py`, `ValidationConfig`.
    fn validation(&mut self, raw: raw::Validation, trigger: &Option<String>) -> Result<Option<Validation>> {
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
            self.warn(&here, "without pictures in `validation_items` nothing is measured");
            return Ok(None);
        }
        let sigmas = raw.validation_sigmas.unwrap_or_else(|| vec![1.0, 0.75, 0.5, 0.25]);
        if sigmas.is_empty() || !sigmas.iter().all(|sigma| (0.0..=1.0).contains(sigma)) {
            let message = format!("{sigmas:?}: expected noise levels from 0 to 1");
            return Err(self.wrong(&at("validation_sigmas"), message));
        }
        let resolution = raw.resolution.unwrap_or(512) as f64;
        Ok(Some(Validation {
            items,
            resolution: self.within(&at("resolution"), resolution, 32.0, 8192.0)? as usize,
            every: raw.validate_every_n_steps.unwrap_or(10),
            sigmas,
        }))
    }
}
