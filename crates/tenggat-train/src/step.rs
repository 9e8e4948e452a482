//! One training step: noisy latents, forward, loss, backward, clipping, update.

use std::ops::Range;
use std::sync::Arc;

use tenggat_models::Result;
use tenggat_models::dropout::Dropout;
use tenggat_models::lora::{Gradients, Lora};
use tenggat_models::qwen_image::TextBatch;
use tenggat_models::qwen_image::transformer::{Inputs, Positions, Transformer};
use tenggat_tensor::Tensor;
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::ops::{copy, flow};

use crate::draws::Level;
use crate::optimiser::Optimiser;

/// A batch of pictures of one size, with everything random already drawn.
#[derive(Debug)]
pub struct Batch {
    /// Clean packed latents, `[b·tokens, channels]`.
    pub latents: Tensor,
    /// Noise, likewise.
    pub noise: Tensor,
    /// Noise level and loss weight of each sample.
    pub levels: Vec<Level>,
    /// Weight of each element of the loss, as `latents`; their mean is 1. `None`: all count alike.
    pub mask: Option<Tensor>,
    /// What it counts among the micro-batches of a step: 1, or less if it is a part of one.
    pub share: f64,
    /// Strength of the adapter.
    pub strength: f64,
    /// Number of the batch in the run, which decides what dropout drops.
    pub number: u64,
    /// Captions.
    pub text: TextBatch,
    /// Position tables of this picture size and text length.
    pub positions: Arc<Positions>,
}

impl Batch {
    /// The batch in parts of at most so many samples, each counting as much as it has of them.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn split(&self, at_once: usize) -> Result<Vec<Batch>> {
        let samples = self.levels.len();
        let rows = |tensor: &Tensor, own: &Range<usize>| -> Result<Tensor> {
            let each = tensor.view().rows() / samples.max(1);
            let mut part = tensor.empty_like(&[each * own.len(), tensor.view().cols()])?;
            let from = tensor.view().row_range(each * own.start..each * own.end);
            copy::forward(from, part.view_mut())?;
            Ok(part)
        };
        let part = |first: usize| -> Result<Batch> {
            let own = first..samples.min(first + at_once);
            Ok(Batch {
                latents: rows(&self.latents, &own)?,
                noise: rows(&self.noise, &own)?,
                levels: self.levels[own.clone()].to_vec(),
                mask: self.mask.as_ref().map(|mask| rows(mask, &own)).transpose()?,
                share: self.share * own.len() as f64 / samples as f64,
                strength: self.strength,
                number: self.number,
                text: TextBatch {
                    embeds: rows(&self.text.embeds, &own)?,
                    lens: self.text.lens[own].to_vec(),
                    tokens: self.text.tokens,
                },
                positions: Arc::clone(&self.positions),
            })
        };
        (0..samples).step_by(at_once.max(1)).map(part).collect()
    }
}

/// What a step minimises, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// What is taken of each error.
    pub loss: Loss,
    /// Adds up the gradients of micro-batches, as ai-toolkit does, instead of averaging them.
    pub summed: bool,
    /// A batch whose loss is above this counts as this and has no gradient.
    pub max_loss: Option<f64>,
    /// What is dropped inside the adapter; pass and samples are set for each batch.
    pub dropout: Option<Dropout>,
}

impl Default for Objective {
    fn default() -> Self {
        Objective { loss: Loss::Squared, summed: false, max_loss: None, dropout: None }
    }
}

/// The trained state: adapter, optimiser and gradient buffer.
#[derive(Debug)]
pub struct Trainer<'a> {
    model: &'a Transformer,
    /// Blocks whose activations stay for the backward pass.
    full_blocks: usize,
    objective: Objective,
    lora: Lora,
    optimiser: Optimiser,
    gradients: Tensor,
}

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Noisy latents, the forward pass and the loss.
    Forward,
    /// The backward pass, with what it computes again.
    Backward,
    /// Clipping and the optimiser.
    Update,
}

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Mean weighted loss over the step's samples.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Whether the update was made. It is not when the loss or a gradient is not a number.
    pub updated: bool,
}

impl<'a> Trainer<'a> {
    /// A trainer of `lora`.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn new(model: &'a Transformer, lora: Lora, optimiser: Optimiser, full_blocks: usize) -> Result<Self> {
        let parameters = &lora.parameters;
        let gradients = Tensor::zeros(&parameters.device(), parameters.dtype(), parameters.shape())?;
        Ok(Trainer { model, full_blocks, objective: Objective::default(), lora, optimiser, gradients })
    }

    /// The same with another objective than the averaged squared error.
    #[must_use]
    pub fn minimising(self, objective: Objective) -> Self {
        Trainer { objective, ..self }
    }

    /// Blocks whose activations stay for the backward pass.
    pub fn full_blocks(&self) -> usize {
        self.full_blocks.min(self.model.config().num_layers)
    }

    /// Keeps the activations of so many blocks from now on.
    pub fn keep_blocks(&mut self, full_blocks: usize) {
        self.full_blocks = full_blocks;
    }

    /// The frozen model.
    pub fn model(&self) -> &'a Transformer {
        self.model
    }

    /// The adapter as it stands.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// The optimiser.
    pub fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    /// One update from the mean gradient of all micro-batches, or their sum if the objective says so.
    ///
    /// # Errors
    /// Shapes do not fit, or the device failed.
    pub fn step(&mut self, micro_batches: &[Batch], lr: f64) -> Result<Outcome> {
        self.step_watched(micro_batches, lr, &mut |_| {})
    }

    /// The same; `ended` is called at the end of each part.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_watched(
        &mut self,
        micro_batches: &[Batch],
        lr: f64,
        ended: &mut dyn FnMut(Part),
    ) -> Result<Outcome> {
        let mut loss = 0.0;
        let shares: f64 = micro_batches.iter().map(|batch| batch.share).sum();
        for (i, batch) in micro_batches.iter().enumerate() {
            let write = if i == 0 { Write::Replace } else { Write::Add };
            let share = batch.share / if self.objective.summed { 1.0 } else { shares };
            self.lora.scale = batch.strength;
            let samples = batch.levels.len();
            self.lora.dropout = self.objective.dropout.map(|d| Dropout { pass: batch.number, samples, ..d });
            let own = self.accumulate(batch, share, write, ended);
            // Also after a failure, which another try may follow.
            (self.lora.scale, self.lora.dropout) = (1.0, None);
            loss += own?;
        }
        if self.objective.summed {
            loss /= shares;
        }
        if !loss.is_finite() {
            return Ok(Outcome { loss, gradient_norm: f64::NAN, updated: false });
        }
        let gradient_norm = self.optimiser.measure(&self.gradients)?;
        let updated = gradient_norm.is_finite();
        if updated {
            self.optimiser.update(&mut self.lora, &self.gradients, lr)?;
        }
        ended(Part::Update);
        Ok(Outcome { loss, gradient_norm, updated })
    }

    /// Gradients of one micro-batch, whose loss counts `share`; returns its part of the loss.
    fn accumulate(
        &mut self,
        batch: &Batch,
        share: f64,
        write: Write,
        ended: &mut dyn FnMut(Part),
    ) -> Result<f64> {
        let sigmas: Vec<f64> = batch.levels.iter().map(|l| l.sigma).collect();
        let shape = batch.latents.shape();
        let compute = self.model.precision().compute;
        let mut noisy = Tensor::empty(self.model.device(), compute, shape)?;
        let mut target = batch.latents.empty_like(shape)?;
        let (x0, noise) = (batch.latents.view(), batch.noise.view());
        flow::forward(x0, noise, &sigmas, noisy.view_mut(), target.view_mut())?;
        let inputs = Inputs {
            latents: &noisy,
            sigmas: &sigmas,
            text: &batch.text.embeds,
            text_lens: &batch.text.lens,
            positions: &batch.positions,
        };
        let (pred, tape) = self.model.forward_for_backward(inputs, Some(&self.lora), self.full_blocks)?;
        let weights: Vec<f64> = batch.levels.iter().map(|l| l.weight * share).collect();
        let (mut losses, mut dpred) = (pred.empty_wide(&[weights.len(), 1])?, pred.empty_like(pred.shape())?);
        let kind = self.objective.loss;
        loss::masked_forward_backward(
            kind,
            pred.view(),
            target.view(),
            batch.mask.as_ref().map(Tensor::view),
            &weights,
            losses.view_mut(),
            dpred.view_mut(),
        )?;
        let weighed = losses.to_f64()?.iter().zip(&weights).map(|(l, w)| l * w).sum::<f64>();
        let mut loss = weighed / weights.len() as f64;
        if let Some(most) = self.objective.max_loss.map(|most| most * share)
            && loss > most
        {
            loss = most;
            dpred.fill(0.0)?;
        }
        drop((pred, target));
        ended(Part::Forward);
        let gradients = Gradients { buffer: &mut self.gradients, write };
        self.model.backward(inputs, Some(&self.lora), tape, &dpred, Some(gradients), false)?;
        ended(Part::Backward);
        Ok(loss)
    }
}
