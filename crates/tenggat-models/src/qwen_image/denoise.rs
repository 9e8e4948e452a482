//! The sampling loop: Euler steps along the predicted velocity, with true classifier-free guidance.
//!
//! Source: diffusers `pipeline_qwenimage.py` (`__call__`) and `FlowMatchEulerDiscreteScheduler.step`.

use std::ops::ControlFlow;

use tenggat_tensor::Tensor;
use tenggat_tensor::ops::copy;
use tenggat_tensor::ops::guidance::{self, Norm};

use super::TextBatch;
use crate::Result;
use crate::lora::Lora;
use crate::transformer::{Global, Inputs, Transformer};

/// What the latents are denoised towards.
#[derive(Debug, Clone, Copy)]
pub struct Conditioning<'a> {
    /// Prompts, one per sample.
    pub prompt: &'a TextBatch,
    /// `None` runs the model once per step.
    pub guidance: Option<Guidance<'a>>,
    /// Guidance scale that a model takes as input which was distilled from guidance; others ignore it.
    pub embedded_guidance: f64,
}

/// Classifier-free guidance.
#[derive(Debug, Clone, Copy)]
pub struct Guidance<'a> {
    /// Negative prompts, one per sample.
    pub negative: &'a TextBatch,
    /// Its scale; 1 changes nothing.
    pub scale: f64,
    /// What becomes of the length of the prediction.
    pub norm: Norm,
}

/// Called after every step with its number and the latents; `Break` ends the loop there.
pub type OnStep<'a> = &'a mut dyn FnMut(usize, &Tensor) -> ControlFlow<()>;

/// Takes packed latents at noise level `sigmas[0]` through all of `sigmas`, the last of which is usually 0.
///
/// latents: `[b·rows·columns, in_channels]` for a picture of `grid` = (rows, columns) patches.
///
/// # Errors
/// Shapes do not fit, or the device failed.
pub fn denoise(
    model: &Transformer,
    lora: Option<&Lora>,
    mut latents: Tensor,
    sigmas: &[f64],
    grid: (usize, usize),
    conditioning: Conditioning<'_>,
    on_step: OnStep<'_>,
) -> Result<Tensor> {
    let batch = conditioning.prompt.lens.len();
    let positions = model.positions(grid, conditioning.prompt.tokens)?;
    let negative_positions =
        conditioning.guidance.map(|g| model.positions(grid, g.negative.tokens)).transpose()?;
    for (step, pair) in sigmas.windows(2).enumerate() {
        let (now, scales) = (vec![pair[0]; batch], vec![conditioning.embedded_guidance; batch]);
        let predict = |text: &TextBatch, positions| -> Result<Tensor> {
            let global = text.pooled.as_ref().map(|pooled| Global { pooled, guidance: &scales });
            let (text, text_lens) = (&text.embeds, &text.lens[..]);
            let inputs = Inputs { latents: &latents, sigmas: &now, text, text_lens, positions, global };
            // Small steps would be lost in the rounding of a narrow type.
            let velocity = model.forward(inputs, lora)?;
            match velocity.dtype() == latents.dtype() {
                true => Ok(velocity),
                false => Ok(velocity.to_dtype(latents.dtype())?),
            }
        };
        let mut velocity = predict(conditioning.prompt, &positions)?;
        if let (Some(g), Some(positions)) = (conditioning.guidance, &negative_positions) {
            let unconditional = predict(g.negative, positions)?;
            guidance::forward(velocity.view_mut(), unconditional.view(), g.scale, g.norm)?;
        }
        copy::add_scaled(pair[1] - pair[0], velocity.view(), latents.view_mut())?;
        if on_step(step, &latents).is_break() {
            break;
        }
    }
    Ok(latents)
}
