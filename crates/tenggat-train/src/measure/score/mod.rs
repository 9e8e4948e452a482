//! Held-out error: how well the model with its adapter redraws pictures that it was not trained on.
//!
//! Two measures, both with the captions and with the empty prompt, weighted as timed contests weight them:
//! *picture error*, the mean squared difference in [0, 1] after noising a picture to `strength`
//! and denoising it again; and *velocity error*, the training loss at fixed noise levels and with noise that
//! the picture fixes.

mod cases;
mod held_out;

use std::ops::ControlFlow;

use serde::Serialize;
use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::{Conditioning, Guidance, Scheduler, TextBatch, denoise, patchify};
use tenggat_models::transformer::{Inputs, Transformer};
use tenggat_models::vae::{self, Vae};
use tenggat_tensor::Tensor;
use tenggat_tensor::ops::flow;
use tenggat_tensor::ops::guidance::Norm;
use tenggat_tensor::ops::loss::{self, Loss};

use crate::job::ErrorWeights;
use crate::step::noise;
pub use cases::LEVELS;
pub use held_out::{HeldOut, Picture};

/// An error with captions and with the empty prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeldOutError {
    /// With the captions.
    pub captioned: f64,
    /// With the empty prompt.
    pub empty: f64,
}

impl HeldOutError {
    /// The part with one kind of prompt.
    pub fn of_mut(&mut self, prompt: Prompt) -> &mut f64 {
        match prompt {
            Prompt::Caption => &mut self.captioned,
            Prompt::Empty => &mut self.empty,
        }
    }

    /// Both in one figure.
    pub fn total(self, weights: ErrorWeights) -> f64 {
        weights.sum(self.captioned, self.empty)
    }

    /// The error with its total.
    pub fn weighed(self, weights: ErrorWeights) -> Weighed {
        Weighed { error: self, total: self.total(weights) }
    }
}

/// An error, and both of its parts in one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weighed {
    /// The parts.
    #[serde(flatten)]
    pub error: HeldOutError,
    /// Their sum, weighted as the job says.
    pub total: f64,
}

/// Held-out errors of the bare model or of the trained LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Whether the LoRA was on.
    pub trained: bool,
    /// Mean squared error of redrawn pictures.
    pub picture: HeldOutError,
    /// Mean squared error of predicted velocities, if there was time for it.
    pub velocity: Option<HeldOutError>,
    /// Seeds that the picture error is a mean over.
    pub seeds: u64,
    /// On how much it was measured.
    pub extent: Extent,
}

/// What errors are means over. Two errors can be compared if they were measured on the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Images that were redrawn at least once.
    pub images: usize,
    /// Held-out images.
    pub all_images: usize,
    /// Noise levels of the velocity error, of [`LEVELS`].
    pub levels: usize,
}

impl Scores {
    /// The scores with their totals.
    pub fn weighed(&self, weights: ErrorWeights) -> Scored {
        let &Scores { trained, picture, velocity, seeds, extent } = self;
        let velocity = velocity.map(|error| error.weighed(weights));
        Scored { trained, picture: picture.weighed(weights), velocity, seeds, extent }
    }
}

/// [`Scores`], each error with its total.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scored {
    /// Whether the LoRA was on.
    pub trained: bool,
    /// Mean squared error of redrawn images.
    pub picture: Weighed,
    /// Mean squared error of predicted velocities, if there was time for it.
    pub velocity: Option<Weighed>,
    /// Seeds that the image error is a mean over.
    pub seeds: u64,
    /// On how much it was measured.
    #[serde(flatten)]
    pub extent: Extent,
}

/// How pictures are redrawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Redraw {
    /// Noise levels, from the one that the picture is noised to down to 0.
    pub sigmas: Vec<f64>,
    /// Scale of classifier-free guidance against the empty prompt; `None` for no guidance.
    pub guidance: Option<f64>,
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
    /// The last `strength` of the sampler's schedule of this many steps, without guidance: 0.75 of 20 starts
    /// at the 6th noise level.
    pub fn part_of_schedule(&self, held: &HeldOut, steps: usize, strength: f64) -> Redraw {
        let sigmas = self.scheduler.sigmas(steps, held.grid.0 * held.grid.1);
        Redraw { sigmas: last_part(&sigmas, strength).to_vec(), guidance: None }
    }

    /// Noises the held-out pictures, each with the noise of this seed, and denoises them: pictures `[n, h, w,
    /// 3]` in [−1, 1].
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn redraw(
        &self,
        held: &HeldOut,
        prompt: Prompt,
        lora: Option<&Lora>,
        redraw: &Redraw,
        seed: u64,
    ) -> Result<Tensor> {
        let channels = self.model.config().in_channels;
        let noise = noise::packed(seed, held.grid, channels).repeat(held.digests.len());
        let (noisy, _) = mix(held, &noise, redraw.sigmas.first().copied().unwrap_or(0.0))?;
        // Against itself the empty prompt needs no guidance.
        let scale = redraw.guidance.filter(|_| prompt == Prompt::Caption);
        let guidance = scale.map(|scale| Guidance { negative: &held.empty, scale, norm: Norm::Guided });
        let conditioning = Conditioning { prompt: prompt.of(held), guidance, embedded_guidance: 1.0 };
        let mut go_on = |_: usize, _: &Tensor| ControlFlow::Continue(());
        self.model.prepare(&redraw.sigmas)?;
        let latents = denoise(self.model, lora, noisy, &redraw.sigmas, held.grid, conditioning, &mut go_on)?;
        let latents = latents.reshape(held.latents.shape())?;
        let mut pictures = self.vae.decode(&patchify::unpack(&latents, held.grid.0, held.grid.1)?)?;
        vae::clamp(&mut pictures)?;
        Ok(pictures)
    }

    /// Mean squared error of the velocity of each picture at noise level `level` of [`LEVELS`], with noise
    /// `number`.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn velocity(
        &self,
        held: &HeldOut,
        prompt: Prompt,
        lora: Option<&Lora>,
        level: usize,
        number: u64,
    ) -> Result<Vec<f64>> {
        let channels = self.model.config().in_channels;
        let one = |digest: &String| noise::packed(cases::seed(digest, level, number), held.grid, channels);
        let drawn: Vec<f32> = held.digests.iter().flat_map(one).collect();
        if !self.model.is_prepared(&[cases::sigma(level)]) {
            self.model.prepare(&(0..LEVELS).map(cases::sigma).collect::<Vec<_>>())?;
        }
        self.velocity_at(held, prompt, lora, cases::sigma(level), &drawn)
    }

    /// Mean squared error of the velocity of each picture at noise level `sigma` with this noise, packed as
    /// the latents are.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn velocity_at(
        &self,
        held: &HeldOut,
        prompt: Prompt,
        lora: Option<&Lora>,
        sigma: f64,
        noise: &[f32],
    ) -> Result<Vec<f64>> {
        let text = prompt.of(held);
        let positions = self.model.positions(held.grid, text.tokens)?;
        let n = text.lens.len();
        let (noisy, target) = mix(held, noise, sigma)?;
        let sigmas = vec![sigma; n];
        let inputs = Inputs {
            latents: &noisy,
            sigmas: &sigmas,
            text: &text.embeds,
            text_lens: &text.lens,
            positions: &positions,
            global: None,
        };
        let pred = self.model.forward(inputs, lora)?;
        let (mut losses, mut unused) = (pred.empty_wide(&[n, 1])?, pred.empty_like(pred.shape())?);
        let weights = vec![1.0; n];
        loss::forward_backward(
            Loss::Squared,
            pred.view(),
            target.view(),
            &weights,
            losses.view_mut(),
            unused.view_mut(),
        )?;
        Ok(losses.to_f64()?)
    }
}

/// The levels of the last `strength` of the steps between these, one step at least.
fn last_part(sigmas: &[f64], strength: f64) -> &[f64] {
    let steps = sigmas.len().saturating_sub(1);
    let run = ((steps as f64 * strength) as usize).clamp(1, steps.max(1)).min(steps);
    &sigmas[steps - run..]
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

/// Mean squared difference of each picture from the true one, measured in [0, 1].
///
/// # Errors
/// The device failed.
pub fn squared_differences(pictures: &Tensor, held: &HeldOut) -> Result<Vec<f64>> {
    let (a, b) = (pictures.to_f32()?, held.pictures.to_f32()?);
    let size = a.len() / held.digests.len().max(1);
    let of_one = |(a, b): (&[f32], &[f32])| {
        let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b) / 2.0).powi(2)).sum();
        sum / a.len().max(1) as f64
    };
    Ok(a.chunks(size.max(1)).zip(b.chunks(size.max(1))).map(of_one).collect())
}

#[cfg(test)]
mod tests {
    use tenggat_tensor::{DType, Device};

    use super::*;

    /// 0.75 of 20 steps are the last 15, from the 6th level on, and end at 0.
    #[test]
    fn a_part_of_the_schedule_is_its_end() {
        let sigmas: Vec<f64> = (0..=20).rev().map(f64::from).collect();
        for (strength, first, levels) in [(0.75, 15.0, 16), (1.0, 20.0, 21), (0.5, 10.0, 11), (0.0, 1.0, 2)] {
            let part = last_part(&sigmas, strength);
            assert_eq!((part[0], part.len(), part.last()), (first, levels, Some(&0.0)), "{strength}");
        }
        assert_eq!(last_part(&[1.0, 0.0], 0.1), [1.0, 0.0]);
        assert_eq!(last_part(&[0.0], 1.0), [0.0]);
    }

    /// Black against white is an error of 1, whatever the size, and each picture has its own.
    #[test]
    fn picture_errors_are_measured_from_zero_to_one() {
        let device = Device::cpu();
        let pictures = |values: &[f32]| {
            let all: Vec<f32> = values.iter().flat_map(|v| [*v; 2 * 2 * 3]).collect();
            Tensor::from_f32(&device, DType::F32, &all, &[values.len(), 2, 2, 3]).unwrap()
        };
        let text = || {
            let embeds = Tensor::from_f32(&device, DType::F32, &[0.0; 4], &[4, 1]).unwrap();
            TextBatch::new(&[&embeds]).unwrap()
        };
        let held = HeldOut {
            labels: vec![String::new(); 4],
            digests: vec![String::new(); 4],
            pictures: pictures(&[1.0, -1.0, 0.5, 0.25]),
            latents: pictures(&[0.0; 4]),
            grid: (1, 1),
            captions: text(),
            empty: text(),
        };
        let errors = squared_differences(&pictures(&[-1.0, 1.0, 0.5, -0.25]), &held).unwrap();
        assert_eq!(errors, [1.0, 1.0, 0.0, 0.25 * 0.25]);
    }

    #[test]
    fn the_empty_prompt_counts_three_times() {
        let mut error = HeldOutError { captioned: 0.0, empty: 0.0 };
        *error.of_mut(Prompt::Caption) = 1.0;
        *error.of_mut(Prompt::Empty) = 3.0;
        assert_eq!(error.total(ErrorWeights::default()), (1.0 + 3.0 * 3.0) / 4.0);
        assert_eq!(error.total("1:1".parse().unwrap()), 2.0);
    }
}
