//! What a pass through one block shares.

use tenggat_tensor::Tensor;

use super::conditioned::Conditioned;
use super::linear::Trained;
use crate::Result;
use crate::lora::{Adapter, Gradients, Lora, Rounded};

/// What a pass through one block shares.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    /// Number of the block's first fused layer among those of all blocks.
    pub first: usize,
    pub conditioned: &'a Conditioned,
    pub lora: Option<&'a Lora>,
    /// The adapter's parameters of the block, where they are rounded.
    pub rounded: Option<&'a Rounded>,
}

impl<'a> Pass<'a> {
    /// The adapter of a layer of this block, by its number within the block, if it has one.
    pub fn adapter(&self, layer: usize) -> Option<Adapter<'a>> {
        self.lora?.in_layer(self.first + layer, self.rounded)
    }

    /// The adapter of a layer, with the `A·x` that its forward pass kept; `None` if it gets no gradient.
    pub fn trained<'g, 't>(
        &self,
        layer: usize,
        ax: &'a Option<Tensor>,
        gradients: &'g mut Option<Gradients<'t>>,
    ) -> Option<Trained<'a, 'g, 't>> {
        match (self.adapter(layer), ax, gradients) {
            (Some(adapter), Some(ax), Some(gradients)) => Some(Trained { adapter, ax, gradients }),
            _ => None,
        }
    }

    /// A zeroed gradient of a layer's output, in the shape of `like`, if the layer's adapter is trained.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn zeroed(
        &self,
        layer: usize,
        like: &Tensor,
        ax: &'a Option<Tensor>,
        gradients: &mut Option<Gradients<'_>>,
    ) -> Result<Option<Tensor>> {
        if self.trained(layer, ax, gradients).is_none() {
            return Ok(None);
        }
        let mut d = like.empty_like(like.shape())?;
        d.fill(0.0)?;
        Ok(Some(d))
    }
}
