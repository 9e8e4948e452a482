//! A forward and a backward pass, each captured as one CUDA graph.

use std::sync::Arc;

use tenggat_gpu::Graph;
use tenggat_tensor::ops::{attention, copy};
use tenggat_tensor::{DType, Device, Tensor};

use super::conditioned::Conditioned;
use super::model::{Inputs, Transformer};
use super::recompute::Recompute;
use super::rope::Positions;
use crate::lora::{Gradients, Lora};
use crate::{Error, Result};

/// Two CUDA graphs, and the tensors that they read and write. They are valid for batches of one shape, with
/// the adapter, its strength and the gradient buffer that they were captured with.
#[derive(Debug)]
pub struct CapturedPasses {
    /// As [`Inputs::latents`].
    latents: Tensor,
    /// As [`Inputs::text`].
    text: Tensor,
    conditioned: Arc<Conditioned>,
    positions: Positions,
    /// The prediction, `[b·image tokens, in_channels]`.
    prediction: Tensor,
    /// Its gradient, in the same shape.
    gradient: Tensor,
    forward: Graph,
    backward: Graph,
}

impl CapturedPasses {
    /// Captures the two passes of a model on a GPU without running them. A batch of this shape must have gone
    /// through the model before. `None` where they cannot be captured: on a CPU, with dropout, with offloaded
    /// weights.
    ///
    /// # Errors
    /// Shapes do not fit, there is no room, or the device failed.
    pub fn new(
        model: &Transformer,
        inputs: Inputs<'_>,
        lora: &Lora,
        recompute: Recompute,
        gradients: Gradients<'_>,
    ) -> Result<Option<Self>> {
        let Device::Cuda(cuda) = model.device() else { return Ok(None) };
        if lora.dropout.is_some() || model.offloaded_blocks() > 0 || cuda.without().graphs {
            return Ok(None);
        }
        let mut conditioned = model.conditioned(&inputs, &mut |_, _| {})?;
        let mut key_lens = Tensor::empty(model.device(), DType::U8, &[4 * inputs.text_lens.len()])?;
        attention::device_lens(&inputs.key_lens(), &mut key_lens)?;
        conditioned.key_lens = Some(key_lens);
        let conditioned = Arc::new(conditioned);
        let (latents, text) = (inputs.latents.duplicate()?, inputs.text.duplicate()?);
        let positions = inputs.positions.duplicate()?;
        let own = Inputs { latents: &latents, text: &text, positions: &positions, ..inputs };
        let ((prediction, tape), forward) = cuda.capture(|| {
            model.run_conditioned(own, Arc::clone(&conditioned), Some(lora), Some(recompute), None)
        })?;
        let tape = tape.ok_or_else(|| Error::Unsupported("no tape was kept".into()))?;
        let gradient = prediction.empty_like(prediction.shape())?;
        let ((), backward) = cuda
            .capture(|| model.backward(own, Some(lora), tape, &gradient, Some(gradients), false).map(drop))?;
        Ok(Some(CapturedPasses {
            latents,
            text,
            conditioned,
            positions,
            prediction,
            gradient,
            forward,
            backward,
        }))
    }

    /// The forward pass; returns the prediction, `[b·image tokens, in_channels]`. `None` if the device has
    /// taken the memory of the graphs, or of weights, for something else.
    ///
    /// # Errors
    /// The batch has another shape, or the device failed.
    pub fn forward(&mut self, model: &Transformer, inputs: Inputs<'_>) -> Result<Option<&Tensor>> {
        if model.offloaded_blocks() > 0 {
            return Ok(None);
        }
        copy::forward(inputs.latents.view(), self.latents.view_mut())?;
        copy::forward(inputs.text.view(), self.text.view_mut())?;
        // Images with the same number of tokens may have other sides.
        self.positions.copy_from(inputs.positions)?;
        let conditioned = model.conditioned(&inputs, &mut |_, _| {})?;
        let own = Arc::get_mut(&mut self.conditioned);
        let own = own.ok_or_else(|| Error::Unsupported("a captured pass is in use".into()))?;
        own.copy_from(&conditioned, &inputs.key_lens())?;
        Ok(self.forward.replay()?.then_some(&self.prediction))
    }

    /// The backward pass that belongs to the last forward pass, from the gradient of its prediction, in the
    /// same shape. Returns whether it ran; it does not where [`CapturedPasses::forward`] returns `None`.
    ///
    /// # Errors
    /// The gradient has another shape, or the device failed.
    pub fn backward(&mut self, gradient: &Tensor) -> Result<bool> {
        copy::forward(gradient.view(), self.gradient.view_mut())?;
        Ok(self.backward.replay()?)
    }
}
