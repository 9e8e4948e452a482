//! The flat buffers of an adapter: parameters, and gradients.

use std::ops::Range;

use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::{DType, Device, Error, Result, Tensor, View};

use super::layout::Layout;
use crate::dropout::Dropout;

/// An adapter: a layout and its parameters.
#[derive(Debug)]
pub struct Lora {
    /// Where the matrices lie.
    pub layout: Layout,
    /// All matrices, `[len]`.
    pub parameters: Tensor,
    /// Strength: multiplies the adapter's output.
    pub scale: f64,
    /// Dropout of the next pass; `None` outside training.
    pub dropout: Option<Dropout>,
}

impl Lora {
    /// An adapter of zeros, strength 1.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn zeros(layout: Layout, device: &Device, dtype: DType) -> Result<Self> {
        let parameters = Tensor::zeros(device, dtype, &[layout.len()])?;
        Ok(Lora::new(layout, parameters))
    }

    /// An adapter of strength 1; `parameters` are as long as the layout.
    pub fn new(layout: Layout, parameters: Tensor) -> Self {
        Lora { layout, parameters, scale: 1.0, dropout: None }
    }

    /// The parameters of some fused layers, rounded to the type that a model computes in, where that is
    /// narrower than their own.
    ///
    /// # Errors
    /// Out of device memory.
    pub(crate) fn rounded(&self, layers: Range<usize>, compute: DType) -> Result<Option<Rounded>> {
        if self.parameters.dtype() == compute || self.parameters.dtype() != compute.wide() {
            return Ok(None);
        }
        let range = self.layout.range(layers);
        Ok(Some(Rounded { first: range.start, parameters: self.parameters.range_to_dtype(range, compute)? }))
    }
}

/// A part of an adapter's parameters in a narrower type.
#[derive(Debug)]
pub(crate) struct Rounded {
    /// First element of the flat buffer that the copy holds.
    pub(super) first: usize,
    pub(super) parameters: Tensor,
}

/// An adapter's parameters as a pass multiplies by them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters<'a> {
    /// First element of the flat buffer that the copy holds.
    pub(super) first: usize,
    pub(super) there: &'a Tensor,
}

impl<'a> Parameters<'a> {
    /// A matrix whose first element is `at` in the flat buffer.
    pub(super) fn matrix(&self, at: usize, rows: usize, cols: usize) -> Result<View<'a>> {
        let at = at.checked_sub(self.first);
        let at = at.ok_or_else(|| Error::shape("adapter", "rounded parameters", &[self.first], &[0]))?;
        self.there.matrix(at, rows, cols)
    }
}

/// Where gradients go.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// As long as the parameters; ranges that are not trained are left alone.
    pub buffer: &'a mut Tensor,
    /// Whether this batch's gradients replace the buffer's values or are added to them.
    pub write: Write,
}
