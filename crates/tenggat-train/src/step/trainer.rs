//! One training step: noisy latents, forward, loss, backward, clipping, update.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use tenggat_models::Result;
use tenggat_models::dropout::Dropout;
use tenggat_models::lora::{Gradients, Lora};
use tenggat_models::qwen_image::TextBatch;
use tenggat_models::transformer::{CapturedPasses, Inputs, Positions, Recompute, Transformer};
use tenggat_tensor::Tensor;
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::ops::{copy, flow};

use super::passes::{Key, Passes, Way};
use crate::step::optimiser::Optimiser;
use crate::step::random::Level;

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
    /// The batch in parts of at most this many samples, each weighted by its number of samples.
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
                    lens: self.text.lens[own.clone()].to_vec(),
                    tokens: self.text.tokens,
                    pooled: self.text.pooled.as_ref().map(|pooled| rows(pooled, &own)).transpose()?,
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
    recompute: Recompute,
    objective: Objective,
    lora: Lora,
    optimiser: Optimiser,
    gradients: Tensor,
    passes: Passes,
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
    pub fn new(
        model: &'a Transformer,
        lora: Lora,
        optimiser: Optimiser,
        recompute: Recompute,
    ) -> Result<Self> {
        let parameters = &lora.parameters;
        let gradients = Tensor::zeros(&parameters.device(), parameters.dtype(), parameters.shape())?;
        let (objective, passes) = (Objective::default(), Passes::default());
        Ok(Trainer { model, recompute, objective, lora, optimiser, gradients, passes })
    }

    /// The same with another objective than the averaged squared error.
    #[must_use]
    pub fn minimising(self, objective: Objective) -> Self {
        Trainer { objective, ..self }
    }

    /// What the blocks keep for the backward pass and what they recompute.
    pub fn recompute(&self) -> Recompute {
        self.recompute.of(self.model.config().blocks())
    }

    /// Changes what the blocks recompute from now on.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
        self.passes.forget();
    }

    /// Turns CUDA graphs off: every kernel of every step is launched on its own.
    pub fn launch_each_kernel(&mut self) {
        self.passes.give_up(None);
    }

    /// Kinds of batches whose passes are captured.
    pub fn captured_passes(&self) -> usize {
        self.passes.captured_passes()
    }

    /// What the user should know about the steps since this was last asked.
    pub fn take_notes(&mut self) -> Vec<String> {
        self.passes.take_notes()
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
        self.passes.begin_step();
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
            global: None,
        };
        let weights: Vec<f64> = batch.levels.iter().map(|l| l.weight * share).collect();
        let asked =
            Asked { inputs, target: &target, mask: batch.mask.as_ref(), weights: &weights, share, write };
        let key = Key::new(&inputs, &self.lora, self.recompute, write);
        match self.passes.way(&key) {
            Way::Direct => self.direct(&asked, ended),
            Way::Captured => match self.captured(&key, &asked, ended)? {
                Some(loss) => Ok(loss),
                None => self.direct(&asked, ended),
            },
            Way::ToBeTried => {
                let loss = self.direct(&asked, ended)?;
                self.try_capture(key, &asked, loss)?;
                Ok(loss)
            }
        }
    }

    /// Both passes, kernel by kernel.
    fn direct(&mut self, asked: &Asked<'_>, ended: &mut dyn FnMut(Part)) -> Result<f64> {
        let lora = Some(&self.lora);
        let (prediction, tape) = self.model.forward_for_backward(asked.inputs, lora, self.recompute)?;
        let (loss, gradient) = asked.loss(&self.objective, &prediction)?;
        drop(prediction);
        ended(Part::Forward);
        let gradients = Gradients { buffer: &mut self.gradients, write: asked.write };
        self.model.backward(asked.inputs, lora, tape, &gradient, Some(gradients), false)?;
        ended(Part::Backward);
        loss.value(asked)
    }

    /// Both passes, as CUDA graphs. `None`, and nothing done, if the graphs are no longer good.
    fn captured(&mut self, key: &Key, asked: &Asked<'_>, ended: &mut dyn FnMut(Part)) -> Result<Option<f64>> {
        let Some(captured) = self.passes.captured(key) else { return Ok(None) };
        let Some(prediction) = captured.forward(self.model, asked.inputs)? else {
            self.passes.lost();
            return Ok(None);
        };
        let (loss, gradient) = asked.loss(&self.objective, prediction)?;
        ended(Part::Forward);
        if !captured.backward(&gradient)? {
            self.passes.lost();
            return Ok(None);
        }
        ended(Part::Backward);
        loss.value(asked).map(Some)
    }

    /// Captures the passes of a batch that has just gone through the model. The first time, they are done a
    /// second time that way, and have to come to the same; else they are done once more as before, for
    /// the gradients.
    fn try_capture(&mut self, key: Key, asked: &Asked<'_>, loss: f64) -> Result<()> {
        let gradients = Gradients { buffer: &mut self.gradients, write: asked.write };
        let made = CapturedPasses::new(self.model, asked.inputs, &self.lora, self.recompute, gradients);
        if !self.passes.keep(key.clone(), made) || self.passes.are_trusted() {
            return Ok(());
        }
        if asked.write == Write::Add {
            // Nothing can be compared with gradients that are added to others.
            self.passes.forget();
            return Ok(());
        }
        let norm = self.optimiser.measure(&self.gradients)?;
        match self.captured(&key, asked, &mut |_| {}) {
            Ok(Some(again)) => {
                let norm_again = self.optimiser.measure(&self.gradients)?;
                self.passes.compare([loss, norm], [again, norm_again]);
            }
            Ok(None) => {}
            Err(e) => self.passes.give_up(Some(format!("steps run without CUDA graphs: {e}"))),
        }
        if !self.passes.are_trusted() {
            self.direct(asked, &mut |_| {})?;
        }
        Ok(())
    }
}

/// What a micro-batch asks of both passes.
struct Asked<'a> {
    inputs: Inputs<'a>,
    target: &'a Tensor,
    mask: Option<&'a Tensor>,
    /// Of the samples' losses.
    weights: &'a [f64],
    /// What the micro-batch counts.
    share: f64,
    write: Write,
}

impl Asked<'_> {
    /// The loss of a prediction, and its gradient.
    fn loss(&self, objective: &Objective, prediction: &Tensor) -> Result<(PendingLoss, Tensor)> {
        let mut losses = prediction.empty_wide(&[self.weights.len(), 1])?;
        let mut gradient = prediction.empty_like(prediction.shape())?;
        loss::masked_forward_backward(
            objective.loss,
            prediction.view(),
            self.target.view(),
            self.mask.map(Tensor::view),
            self.weights,
            losses.view_mut(),
            gradient.view_mut(),
        )?;
        let pending = PendingLoss::Queued(losses);
        let Some(most) = objective.max_loss.map(|most| most * self.share) else {
            return Ok((pending, gradient));
        };
        let mut loss = pending.value(self)?;
        if loss > most {
            loss = most;
            gradient.fill(0.0)?;
        }
        Ok((PendingLoss::Known(loss), gradient))
    }
}

/// A loss that nobody waits for until it is wanted: the backward pass is asked for while a GPU still works on
/// the forward one.
enum PendingLoss {
    /// Of each sample, `[b, 1]`.
    Queued(Tensor),
    Known(f64),
}

impl PendingLoss {
    /// The micro-batch's part of the step's loss.
    fn value(self, asked: &Asked<'_>) -> Result<f64> {
        match self {
            PendingLoss::Known(loss) => Ok(loss),
            PendingLoss::Queued(losses) => {
                let weighed = losses.to_f64()?.iter().zip(asked.weights).map(|(l, w)| l * w).sum::<f64>();
                Ok(weighed / asked.weights.len() as f64)
            }
        }
    }
}
