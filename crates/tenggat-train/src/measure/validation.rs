//! `validation_config`: the loss on held-out images at fixed noise levels with fixed noise, every few steps.
//! Source: ai-toolkit `jobs/process/BaseSDTrainProcess.py`, `setup_validation` and `validate`; latents are
//! means of the VAE's posterior, as in training.

use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_plan::{Budget, Clock, PartTime};

use super::score::{HeldOut, Judge, Picture, Prompt};
use crate::data::encoding::Encoders;
use crate::data::pictures::{self, Bad};
use crate::job;
use crate::step::noise;

/// Seed of the first picture's noise; the others follow it.
const FIRST_SEED: u64 = 42;

/// What a measurement says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub loss: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
}

/// Measures a LoRA again and again.
pub(crate) struct Validation<'a> {
    config: &'a job::Validation,
    judge: Judge<'a>,
    items: Vec<HeldOut>,
    /// Time of the parts, each one picture at one level.
    part: PartTime,
    /// The lowest loss so far.
    best: f64,
}

impl<'a> Validation<'a> {
    /// Encodes the pictures; those that cannot be used are returned. `None` if the job names none, or none is
    /// left.
    ///
    /// # Errors
    /// An encoder failed.
    pub fn new(
        config: Option<&'a job::Validation>,
        judge: Judge<'a>,
        encoders: &Encoders<'_>,
    ) -> Result<(Option<Self>, Vec<Bad>)> {
        let Some(config) = config else { return Ok((None, Vec::new())) };
        let (mut pictures, mut bad) = (Vec::new(), Vec::new());
        for (path, prompt) in &config.items {
            encoders.interrupt.check()?;
            match pictures::load_whole(path, config.resolution) {
                Ok((size, rgb)) => pictures.push(Picture { caption: prompt.clone(), size, rgb }),
                Err(error) => bad.push(Bad { path: path.clone(), error: Box::new(error) }),
            }
        }
        let &Encoders { device, vae, text, .. } = encoders;
        let items = HeldOut::encode(&pictures, 1, device, vae, text)?;
        let (part, best) = (PartTime::default(), f64::INFINITY);
        let validation = Validation { config, judge, items, part, best };
        Ok(((!pictures.is_empty()).then_some(validation), bad))
    }

    /// Takes the lowest loss so far from a resumed run.
    pub fn remember(&mut self, losses: impl Iterator<Item = f64>) {
        self.best = losses.fold(self.best, f64::min);
    }

    /// The loss after step `done`, and whether it is the lowest so far; `None` if it is not due, or there is
    /// no time.
    pub fn measure(
        &mut self,
        lora: &Lora,
        done: u64,
        budget: &mut Budget,
        clock: &dyn Clock,
    ) -> Result<Option<Measured>> {
        let due = done == 1 || self.config.every > 0 && done.is_multiple_of(self.config.every);
        let began_s = clock.now_s();
        if !due || !budget.allows_validation(began_s) {
            return Ok(None);
        }
        self.judge.model.prepare(&self.config.sigmas)?;
        let (mut sum, mut before_s) = (0.0, clock.now_s());
        for (number, held) in self.items.iter().enumerate() {
            let channels = held.latents.view().cols();
            let noise = noise::packed(FIRST_SEED + number as u64, held.grid, channels);
            for &sigma in &self.config.sigmas {
                if !budget.allows_part(clock.now_s(), self.part) {
                    return Ok(None);
                }
                let errors = self.judge.velocity_at(held, Prompt::Caption, Some(lora), sigma, &noise)?;
                sum += errors.iter().sum::<f64>() / errors.len().max(1) as f64;
                let now_s = clock.now_s();
                self.part.observe(now_s - before_s);
                before_s = now_s;
            }
        }
        budget.observe_validation(before_s, before_s - began_s);
        let loss = sum / (self.items.len() * self.config.sigmas.len()).max(1) as f64;
        let is_best = loss < self.best;
        self.best = self.best.min(loss);
        Ok(Some(Measured { loss, is_best }))
    }
}
