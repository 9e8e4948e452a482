//! The model as a chain of blocks, with the layers before and after them: forward and backward.
//!
//! Shapes as in `double.rs`.

use std::sync::Arc;

use tenggat_tensor::ops::{layer_norm_modulate, rms_norm};
use tenggat_tensor::weight::NextUse;
use tenggat_tensor::{Device, Tensor};

use super::block::{Block, State};
use super::conditioned::Conditioned;
use super::config::Config;
use super::embedder::Embedder;
use super::geometry::Geometry;
use super::layer::Family;
use super::linear::Linear;
use super::modulation::Current;
use super::offloading::Offloading;
use super::pass::Pass;
use super::precision::Precision;
use super::recompute::{Recompute, Saved};
use super::rope::{self, Positions};
use super::stream::Trace;
use crate::lora::{Gradients, Kind, Layout, Lora, Rounded};
use crate::{Error, Interrupt, Result};

/// Added to the mean square of the text norm.
const TEXT_NORM_EPS: f64 = 1e-6;

/// The frozen model.
#[derive(Debug)]
pub struct Transformer {
    pub(super) config: Config,
    pub(super) device: Device,
    pub(super) precision: Precision,
    /// Whether products may round their operands to bf16.
    pub(super) bf16_products: bool,
    pub(super) image_in: Linear,
    /// RMS norm of the text before its first layer, where the family has one.
    pub(super) text_norm: Option<Tensor>,
    pub(super) text_in: Linear,
    /// Embeds the noise level.
    pub(super) time: Embedder,
    /// Embeds the guidance scale, in a model that was distilled from guidance.
    pub(super) guidance: Option<Embedder>,
    /// Embeds the pooled text, where the family has one.
    pub(super) pooled: Option<Embedder>,
    pub(super) blocks: Vec<Block>,
    /// Blocks whose weights leave memory after each use.
    pub(super) offloading: Offloading,
    pub(super) norm_out: Linear,
    pub(super) proj_out: Linear,
    /// Results of streamed modulation.
    pub(super) modulation: Current,
    /// Ends a pass before its next block.
    pub(super) interrupt: Interrupt,
}

/// One batch.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Packed noisy latents, `[b·image tokens, in_channels]`.
    pub latents: &'a Tensor,
    /// σ of each sample, 0 to 1.
    pub sigmas: &'a [f64],
    /// Text embeddings, `[b·text tokens, joint_attention_dim]`, padded on the right.
    pub text: &'a Tensor,
    /// Valid text tokens of each sample.
    pub text_lens: &'a [usize],
    /// Tables of [`Transformer::positions`] for this picture size and padded text length.
    pub positions: &'a Positions,
    /// What FLUX.1 is conditioned on besides; Qwen-Image ignores it.
    pub global: Option<Global<'a>>,
}

/// What conditions all tokens alike, besides the noise level.
#[derive(Debug, Clone, Copy)]
pub struct Global<'a> {
    /// One vector per prompt, `[b, pooled_projection_dim]`.
    pub pooled: &'a Tensor,
    /// Guidance scale of each sample; ignored by a model without an embedding of it.
    pub guidance: &'a [f64],
}

impl Inputs<'_> {
    /// Valid keys of each sample in the joint attention: its image, then its text.
    pub(super) fn key_lens(&self) -> Vec<usize> {
        let image_tokens = self.positions.image.shape()[0];
        self.text_lens.iter().map(|n| image_tokens + n).collect()
    }
}

/// What [`Transformer::backward`] reads.
#[derive(Debug)]
pub struct Tape {
    geometry: Geometry,
    conditioned: Arc<Conditioned>,
    blocks: Vec<Saved>,
    /// Image output of the last block, `[b·tᵢ, c]`.
    last: Tensor,
    /// Modulation of the last norm, shift | scale, `[b, 2c]`.
    modulation: Tensor,
    /// Mean and reciprocal standard deviation of each row of `last`, `[b·tᵢ, 2]`, wide.
    stats: Tensor,
}

impl Transformer {
    /// Dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Element types.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Position tables for a picture of `grid` = (rows, columns) patches and texts padded to `text_tokens`.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn positions(&self, grid: (usize, usize), text_tokens: usize) -> Result<Positions> {
        let (axes, dtype) = (self.config.axes_dims_rope, self.precision.compute.wide());
        match self.config.family() {
            Family::QwenImage => Positions::new(axes, grid, text_tokens, &self.device, dtype),
            Family::Flux => {
                let (image, text) = rope::from_the_corner(grid, text_tokens);
                self.positions_at(&image, &text)
            }
        }
    }

    /// Position tables for tokens that stand anywhere: (frame, row, column) of those of the image, and of the
    /// text.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn positions_at(&self, image: &[[f64; 3]], text: &[[f64; 3]]) -> Result<Positions> {
        let (axes, dtype) = (self.config.axes_dims_rope, self.precision.compute.wide());
        Positions::at(axes, image, text, self.config.num_single_layers > 0, &self.device, dtype)
    }

    /// Layout of an adapter of this rank, or of another kind, on the modules that `select` picks by their
    /// dotted names.
    pub fn lora_layout(&self, kind: impl Into<Kind>, select: impl Fn(&str) -> bool) -> Layout {
        Layout::new(kind, self.config.lora_layers(), select)
    }

    /// The predicted velocity, `[b·image tokens, in_channels]`.
    ///
    /// # Errors
    /// The inputs' shapes do not fit, or the device failed.
    pub fn forward(&self, inputs: Inputs<'_>, lora: Option<&Lora>) -> Result<Tensor> {
        Ok(self.run(inputs, lora, None, None)?.0)
    }

    /// [`Transformer::forward`] that keeps what the backward pass needs.
    ///
    /// # Errors
    /// The inputs' shapes do not fit, or the device failed.
    pub fn forward_for_backward(
        &self,
        inputs: Inputs<'_>,
        lora: Option<&Lora>,
        recompute: Recompute,
    ) -> Result<(Tensor, Tape)> {
        let (out, tape) = self.run(inputs, lora, Some(recompute), None)?;
        let tape = tape.ok_or_else(|| Error::Unsupported("no tape was kept".into()))?;
        Ok((out, tape))
    }

    /// [`Transformer::forward`] that shows its intermediate results by the names of the golden data: `temb`,
    /// `img_in`, `block0.img_mod`, `block0.hidden_states`, …
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn forward_traced(
        &self,
        inputs: Inputs<'_>,
        lora: Option<&Lora>,
        trace: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        Ok(self.run(inputs, lora, None, Some(trace))?.0)
    }

    /// The prediction, `[b·tᵢ, in_channels]`, and a tape if `recompute` says what it keeps.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    fn run(
        &self,
        inputs: Inputs<'_>,
        lora: Option<&Lora>,
        recompute: Option<Recompute>,
        mut trace: Option<Trace<'_>>,
    ) -> Result<(Tensor, Option<Tape>)> {
        let conditioned = self.conditioned(&inputs, &mut |name, tensor| {
            if let Some(trace) = &mut trace {
                trace(name, tensor);
            }
        })?;
        self.run_conditioned(inputs, Arc::new(conditioned), lora, recompute, trace)
    }

    /// The pass from its conditioning on. Returns what `run` does.
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, weights cannot be read from their file,
    /// or somebody asked for the end.
    pub(super) fn run_conditioned(
        &self,
        inputs: Inputs<'_>,
        conditioned: Arc<Conditioned>,
        lora: Option<&Lora>,
        recompute: Option<Recompute>,
        mut trace: Option<Trace<'_>>,
    ) -> Result<(Tensor, Option<Tape>)> {
        let mut show = |name: &str, tensor: &Tensor| {
            if let Some(trace) = &mut trace {
                trace(name, tensor);
            }
        };
        let geometry = self.geometry(&inputs)?;
        // Latents and embeddings may be kept wider than the model computes.
        let compute = self.precision.compute;
        let rounded_to = |t: &Tensor| (t.dtype() != compute).then(|| t.to_dtype(compute)).transpose();
        let (latents, text) = (rounded_to(inputs.latents)?, rounded_to(inputs.text)?);
        let inputs = Inputs {
            latents: latents.as_ref().unwrap_or(inputs.latents),
            text: text.as_ref().unwrap_or(inputs.text),
            ..inputs
        };
        let (image, _) = self.image_in.forward(inputs.latents.view(), None)?;
        show("img_in", &image);
        let text = self.text_in(inputs.text, &mut show)?;
        let mut state = State::Streams { image, text: Some(text) };

        let layers = self.blocks.len();
        let (recompute, mut saved) = (recompute.map(|recompute| recompute.of(layers)), Vec::new());
        self.prefetch(self.offloading.next(0), NextUse::Soon);
        for (i, block) in self.blocks.iter().enumerate() {
            self.interrupt.check()?;
            let offloaded = self.offloading.has(i).then(|| self.offloading.next(i + 1));
            self.prefetch(offloaded.flatten(), NextUse::Soon);
            let rounded = self.rounded(lora, i)?;
            let first = self.config.layers_of(i).start;
            let pass = Pass { first, conditioned: &conditioned, lora, rounded: rounded.as_ref() };
            let tape;
            (state, tape) = block.forward(pass, &geometry, inputs.positions, state)?;
            // A backward pass begins with the last one.
            let stays = recompute.is_some() && offloaded == Some(None);
            self.prefetch((offloaded.is_some() && !stays).then_some(i), NextUse::Later);
            tape.trace(i, &mut show);
            state.trace(i, &mut show);
            saved.extend(recompute.map(|recompute| Saved::of(tape, recompute, layers - 1 - i)));
        }
        let image = state.image(&geometry)?;
        let (modulation, _) = self.norm_out.forward(conditioned.silu.view(), None)?;
        let (mut normed, mut stats) =
            (image.empty_like(image.shape())?, image.empty_wide(&[image.shape()[0], 2])?);
        layer_norm_modulate::forward(
            image.view(),
            modulation.view(),
            geometry.image_tokens,
            normed.view_mut(),
            stats.view_mut(),
        )?;
        show("norm_out", &normed);
        let (out, _) = self.proj_out.forward(normed.view(), None)?;
        let tape = recompute.is_some().then_some(Tape {
            geometry,
            conditioned,
            blocks: saved,
            last: image,
            modulation,
            stats,
        });
        Ok((out, tape))
    }

    /// Writes the adapter's gradients into `gradients`, and returns the gradient of the latents,
    /// `[b·tᵢ, in_channels]`, if `want_dlatents`; `dout`: the gradient of the prediction, in the same shape.
    /// `inputs` and `lora` are those of the forward pass.
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, weights cannot be read from their file,
    /// or somebody asked for the end.
    pub fn backward(
        &self,
        inputs: Inputs<'_>,
        lora: Option<&Lora>,
        tape: Tape,
        dout: &Tensor,
        mut gradients: Option<Gradients<'_>>,
        want_dlatents: bool,
    ) -> Result<Option<Tensor>> {
        let Tape { geometry, conditioned, blocks, last, modulation, stats } = tape;
        let dnormed = self.proj_out.backward(last.view(), dout.view(), None)?;
        let mut dimage = last.empty_like(last.shape())?;
        dimage.fill(0.0)?;
        layer_norm_modulate::backward(
            last.view(),
            modulation.view(),
            stats.view(),
            geometry.image_tokens,
            dnormed.view(),
            dimage.view_mut(),
            None,
        )?;
        drop((last, dnormed));
        let mut gradient = Some(State::Streams { image: dimage, text: None });
        self.prefetch(self.offloading.last(self.blocks.len()), NextUse::Soon);
        for ((i, block), saved) in self.blocks.iter().enumerate().zip(blocks).rev() {
            self.interrupt.check()?;
            let before = self.offloading.has(i).then(|| self.offloading.last(i)).flatten();
            self.prefetch(before, NextUse::Soon);
            let rounded = self.rounded(lora, i)?;
            let first = self.config.layers_of(i).start;
            let pass = Pass { first, conditioned: &conditioned, lora, rounded: rounded.as_ref() };
            let tape = match saved {
                Saved::All(tape) => tape,
                Saved::Results(state, results) => {
                    block.tape(pass, &geometry, inputs.positions, state, Some(*results))?
                }
                Saved::Inputs(state) => block.tape(pass, &geometry, inputs.positions, state, None)?,
            };
            let Some(d) = gradient.take() else { break };
            let want_dx = want_dlatents || i > 0;
            gradient =
                block.backward(pass, &geometry, inputs.positions, &tape, d, &mut gradients, want_dx)?;
            // The next pass begins with the first one.
            self.prefetch(before.is_some().then_some(i), NextUse::Later);
        }
        match gradient {
            Some(gradient) if want_dlatents => {
                let dimage = gradient.image(&geometry)?;
                Ok(Some(self.image_in.backward(inputs.latents.view(), dimage.view(), None)?))
            }
            _ => Ok(None),
        }
    }

    /// The adapter's parameters in one block, rounded to the compute type; `None` where they are not rounded.
    /// One block at a time, because a copy of the whole adapter would be half as large as the adapter.
    ///
    /// # Errors
    /// The device failed or is out of memory.
    fn rounded(&self, lora: Option<&Lora>, block: usize) -> Result<Option<Rounded>> {
        let Some(lora) = lora else { return Ok(None) };
        Ok(lora.rounded(self.config.layers_of(block), self.precision.compute)?)
    }

    /// The text stream before the first block, `[b·tₜ, c]`.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed or is out of memory.
    fn text_in(&self, text: &Tensor, show: Trace<'_>) -> Result<Tensor> {
        let normed = match &self.text_norm {
            None => None,
            Some(norm) => {
                let mut normed = text.empty_like(text.shape())?;
                rms_norm::forward(text.view(), norm.view(), TEXT_NORM_EPS, normed.view_mut())?;
                show("txt_norm", &normed);
                Some(normed)
            }
        };
        let (text, _) = self.text_in.forward(normed.as_ref().unwrap_or(text).view(), None)?;
        show("txt_in", &text);
        Ok(text)
    }

    /// Number of blocks whose weights leave memory after each use.
    pub fn offloaded_blocks(&self) -> usize {
        self.offloading.blocks()
    }

    /// Offloads up to `blocks` further blocks: a GPU frees their weights, and from now on copies them from
    /// their file for every pass. Stops at weights that are not in a file, or not in the form in which they
    /// are multiplied. Returns how many blocks were offloaded.
    pub fn offload(&self, blocks: usize) -> usize {
        self.offloading.extend(blocks, |i| self.blocks[i].release())
    }

    /// From now on reads offloaded weights when they are used, one at a time, instead of a block in advance.
    /// Returns whether that makes room.
    pub fn stop_prefetching(&self) -> bool {
        let makes_room = self.offloading.stop_prefetching();
        if makes_room {
            (0..self.blocks.len())
                .filter(|&i| self.offloading.has(i))
                .for_each(|i| self.prefetch(Some(i), NextUse::Later));
        }
        makes_room
    }

    /// Prefetch hint for an offloaded block: its weights are read while the block before it computes.
    fn prefetch(&self, block: Option<usize>, next: NextUse) {
        let is_told = next == NextUse::Later || self.offloading.prefetches();
        if let Some(block) = block.filter(|_| is_told).and_then(|block| self.blocks.get(block)) {
            block.prefetch(next);
        }
    }

    /// The shapes of a pass.
    ///
    /// # Errors
    /// The inputs do not fit the model or each other.
    fn geometry(&self, inputs: &Inputs<'_>) -> Result<Geometry> {
        let batch = inputs.sigmas.len();
        let image_tokens = inputs.positions.image.shape()[0];
        let text_tokens = inputs.positions.text.shape()[0];
        let check = |what: &'static str, expected: [usize; 2], got: &Tensor| {
            let got = got.view().shape();
            if got == expected {
                return Ok(());
            }
            Err(Error::Tensor(tenggat_tensor::Error::shape("transformer", what, &expected, &got)))
        };
        check("latents", [batch * image_tokens, self.config.in_channels], inputs.latents)?;
        check("text", [batch * text_tokens, self.config.joint_attention_dim], inputs.text)?;
        if let (Some(global), Some(width)) = (&inputs.global, self.config.pooled_projection_dim) {
            check("pooled text", [batch, width], global.pooled)?;
        }
        if inputs.text_lens.len() != batch || inputs.text_lens.iter().any(|&n| n > text_tokens) {
            return Err(Error::Unsupported(format!(
                "transformer: text lengths {:?} do not fit {batch} samples of {text_tokens} tokens",
                inputs.text_lens
            )));
        }
        Ok(Geometry {
            image_tokens,
            text_tokens,
            key_lens: inputs.key_lens(),
            heads: self.config.num_attention_heads,
            head_dim: self.config.attention_head_dim,
            bf16_products: self.bf16_products,
        })
    }

    /// Bytes of the frozen matrices in memory, or mapped into it.
    pub fn weight_bytes(&self) -> usize {
        let embedders = [Some(&self.time), self.guidance.as_ref(), self.pooled.as_ref()];
        let ends = [&self.image_in, &self.text_in, &self.norm_out, &self.proj_out];
        self.blocks.iter().map(Block::bytes).sum::<usize>()
            + embedders.into_iter().flatten().map(Embedder::bytes).sum::<usize>()
            + ends.map(Linear::bytes).iter().sum::<usize>()
    }
}
