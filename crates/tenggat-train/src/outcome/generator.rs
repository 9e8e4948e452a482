//! Images from prompts: noise, denoising, decoding.

use std::ops::ControlFlow;

use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::geometry::token_grid;
use tenggat_models::qwen_image::{Conditioning, Guidance, Scheduler, TextBatch, denoise, patchify};
use tenggat_models::transformer::Transformer;
use tenggat_models::vae::{self, Vae};
use tenggat_tensor::Tensor;
use tenggat_tensor::ops::guidance::Norm;

use crate::step::noise;

/// What a picture is made with.
#[derive(Debug, Clone, Copy)]
pub struct Generator<'a> {
    /// The transformer.
    pub model: &'a Transformer,
    /// Decodes latents.
    pub vae: &'a Vae,
    /// Noise levels of the sampler.
    pub scheduler: &'a Scheduler,
}

/// One picture to be made.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The encoded prompt.
    pub prompt: &'a TextBatch,
    /// The encoded negative prompt and the guidance scale; `None` for no guidance.
    pub guidance: Option<(&'a TextBatch, f64)>,
    /// Pixels, a multiple of 16.
    pub width: usize,
    /// Pixels, a multiple of 16.
    pub height: usize,
    /// Seed of the noise, drawn as torch's CPU generator does.
    pub seed: u64,
    /// Steps of the sampler.
    pub steps: usize,
}

impl Request<'_> {
    /// What the picture is made with, as web interfaces write it into their files.
    pub fn parameters(&self, prompt: &str, negative: Option<&str>, model: &str) -> String {
        let negative = negative.map_or(String::new(), |text| format!("Negative prompt: {text}\n"));
        let scale = self.guidance.map_or(1.0, |(_, scale)| scale);
        let Request { steps, seed, width, height, .. } = self;
        format!(
            "{prompt}\n{negative}Steps: {steps}, Sampler: Euler, CFG scale: {scale}, Seed: {seed}, \
             Size: {width}x{height}, Model: {model}"
        )
    }
}

impl Generator<'_> {
    /// The picture, `[1, height, width, 3]` in [−1, 1]; `None` if `on_step`, called after every step, says
    /// `Break`.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn generate(
        &self,
        lora: Option<&Lora>,
        request: Request<'_>,
        on_step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<Tensor>> {
        let grid @ (rows, columns) = token_grid((request.width, request.height));
        let channels = self.model.config().in_channels;
        let sigmas = self.scheduler.sigmas(request.steps.max(1), rows * columns);
        self.model.prepare(&sigmas)?;
        let noise = noise::packed(request.seed, grid, channels);
        let precision = self.model.precision().compute.wide();
        let noise: Vec<f64> = noise.into_iter().map(f64::from).collect();
        let latents = Tensor::from_f64(self.model.device(), precision, &noise, &[rows * columns, channels])?;
        let guidance =
            request.guidance.map(|(negative, scale)| Guidance { negative, scale, norm: Norm::Conditional });
        let conditioning = Conditioning { prompt: request.prompt, guidance, embedded_guidance: 1.0 };
        let mut broken = false;
        let mut tick = |_: usize, _: &Tensor| {
            let flow = on_step();
            broken |= flow.is_break();
            flow
        };
        let latents = denoise(self.model, lora, latents, &sigmas, grid, conditioning, &mut tick)?;
        if broken {
            return Ok(None);
        }
        let latents = latents.reshape(&[1, rows * columns, channels])?;
        let mut picture = self.vae.decode(&patchify::unpack(&latents, rows, columns)?)?;
        vae::clamp(&mut picture)?;
        Ok(Some(picture))
    }
}
