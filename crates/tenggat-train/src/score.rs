//! Held-out error: how well the model with its adapter redraws pictures that it was not trained on.
//!
//! Two measures, both with the captions and with the empty prompt, weighed 1/4 and 3/4 as timed contests weigh them:
//! *picture error*, the mean squared difference in [0, 1] after noising a picture to `strength` and denoising it
//! again; and *velocity error*, the training loss at fixed noise levels and fixed noise.

use std::ops::ControlFlow;

use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::transformer::{Inputs, Transformer};
use tenggat_models::qwen_image::vae::{self, Vae};
use tenggat_models::qwen_image::{Conditioning, Scheduler, TextBatch, denoise, patchify};
use tenggat_tensor::Tensor;
use tenggat_tensor::ops::flow;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::random::{Mt19937, Philox};

/// Share of the captioned error in the total; the rest is the empty prompt's.
const CAPTIONED: f64 = 0.25;
/// Noise levels of the velocity error: the midpoints of so many equal parts of 0..1.
pub const LEVELS: usize = 16;
/// Seed of the velocity error's noise.
const VELOCITY_SEED: u64 = 42;

/// Some of the held-out pictures, all of one size.
#[derive(Debug)]
pub struct HeldOut {
    /// Held-out pictures before these; the noise of each picture is the same however many are measured at once.
    pub first: usize,
    /// Captions as text.
    pub labels: Vec<String>,
    /// `[n, h, w, 3]` in [-1, 1].
    pub pictures: Tensor,
    /// Packed latents, `[n, tokens, channels]`.
    pub latents: Tensor,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
    /// Captions.
    pub captions: TextBatch,
    /// The empty prompt, n times.
    pub empty: TextBatch,
}

/// An error with captions and with the empty prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Error {
    /// With the captions.
    pub captioned: f64,
    /// With the empty prompt.
    pub empty: f64,
}

impl Error {
    /// The part with one kind of prompt.
    pub fn of_mut(&mut self, prompt: Prompt) -> &mut f64 {
        match prompt {
            Prompt::Caption => &mut self.captioned,
            Prompt::Empty => &mut self.empty,
        }
    }

    /// 1/4 captioned + 3/4 empty.
    pub fn total(self) -> f64 {
        CAPTIONED * self.captioned + (1.0 - CAPTIONED) * self.empty
    }
}

/// How pictures are redrawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Redraw {
    /// Share of the schedule that is run: 0.75 of 20 steps starts at the 6th noise level.
    pub strength: f64,
    /// Steps of the whole schedule.
    pub steps: usize,
}

impl Default for Redraw {
    fn default() -> Self {
        Redraw { strength: 0.75, steps: 20 }
    }
}

/// The frozen parts that scoring needs.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// Predicts velocities.
    pub model: &'a Transformer,
    /// Turns latents into pictures.
    pub vae: &'a Vae,
    /// Noise levels.
    pub scheduler: &'a Scheduler,
}

/// Which prompt a measurement is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// Each picture's caption.
    Caption,
    /// The empty prompt.
    Empty,
}

impl Prompt {
    /// Both.
    pub const ALL: [Prompt; 2] = [Prompt::Caption, Prompt::Empty];

    fn of(self, held: &HeldOut) -> &TextBatch {
        match self {
            Prompt::Caption => &held.captions,
            Prompt::Empty => &held.empty,
        }
    }
}

impl Judge<'_> {
    /// Noises the held-out pictures with one seed, denoises them, and compares: the mean squared difference in [0, 1],
    /// and the pictures `[n, h, w, 3]`.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn redraw(
        &self,
        held: &HeldOut,
        prompt: Prompt,
        lora: Option<&Lora>,
        redraw: Redraw,
        seed: u64,
    ) -> Result<(f64, Tensor)> {
        let sigmas = self.scheduler.sigmas(redraw.steps, held.grid.0 * held.grid.1);
        let run = ((redraw.steps as f64 * redraw.strength) as usize).clamp(1, redraw.steps);
        let sigmas = &sigmas[redraw.steps - run..];
        let before = held.first * held.latents.len() / held.captions.lens.len().max(1);
        let mut noise = vec![0.0f32; before + held.latents.len()];
        Mt19937::new(seed).randn(&mut noise);
        let (noisy, _) = mix(held, &noise[before..], sigmas[0])?;
        let conditioning = Conditioning { prompt: prompt.of(held), guidance: None };
        let mut go_on = |_: usize, _: &Tensor| ControlFlow::Continue(());
        let latents = denoise(self.model, lora, noisy, sigmas, held.grid, conditioning, &mut go_on)?;
        let latents = latents.reshape(held.latents.shape())?;
        let mut pictures = self.vae.decode(&patchify::unpack(&latents, held.grid.0, held.grid.1)?)?;
        vae::clamp(&mut pictures)?;
        Ok((squared_difference(&pictures, &held.pictures)?, pictures))
    }

    /// Mean squared error of the velocity at noise level `level` of [`LEVELS`], with noise number `noise`.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn velocity(
        &self,
        held: &HeldOut,
        prompt: Prompt,
        lora: Option<&Lora>,
        level: usize,
        noise: u64,
    ) -> Result<f64> {
        let text = prompt.of(held);
        let positions = self.model.positions(held.grid, text.tokens)?;
        let n = text.lens.len();
        let sigma = (level as f64 + 0.5) / LEVELS as f64;
        let mut drawn = vec![0.0f32; held.latents.len()];
        Philox::new(VELOCITY_SEED).normal(noise << 32 | (held.first as u64) << 8 | level as u64, &mut drawn);
        let (noisy, target) = mix(held, &drawn, sigma)?;
        let sigmas = vec![sigma; n];
        let inputs = Inputs {
            latents: &noisy,
            sigmas: &sigmas,
            text: &text.embeds,
            text_lens: &text.lens,
            positions: &positions,
        };
        let pred = self.model.forward(inputs, lora)?;
        let (mut losses, mut unused) = (pred.empty_like(&[n, 1])?, pred.empty_like(pred.shape())?);
        let weights = vec![1.0; n];
        loss::forward_backward(
            Loss::Squared,
            pred.view(),
            target.view(),
            &weights,
            losses.view_mut(),
            unused.view_mut(),
        )?;
        Ok(losses.to_f64()?.iter().sum::<f64>() / n as f64)
    }
}

/// The held-out latents at noise level σ, and their velocity.
fn mix(held: &HeldOut, noise: &[f32], sigma: f64) -> Result<(Tensor, Tensor)> {
    let latents = &held.latents;
    let noise = Tensor::from_f32(&latents.device(), latents.dtype(), noise, latents.shape())?;
    let shape = latents.view().shape();
    let (mut noisy, mut target) = (latents.empty_like(&shape)?, latents.empty_like(&shape)?);
    flow::forward(latents.view(), noise.view(), &[sigma], noisy.view_mut(), target.view_mut())?;
    Ok((noisy, target))
}

/// Mean squared difference of pictures in [-1, 1], measured in [0, 1].
fn squared_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_f32()?, b.to_f32()?);
    let sum: f64 = a.iter().zip(&b).map(|(a, b)| f64::from((a - b) / 2.0).powi(2)).sum();
    Ok(sum / a.len().max(1) as f64)
}
