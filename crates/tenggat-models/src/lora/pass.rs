//! An adapter in a pass through the model, layer by layer.

use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::weight::Packed;
use tenggat_tensor::{Result, Tensor, View, ViewMut};

use super::kronecker::Kronecker;
use super::layout::{Group, Kind};
use super::low_rank::LowRank;
use super::parameters::{Gradients, Lora, Parameters, Rounded};
use crate::dropout::Dropout;

impl Lora {
    /// The adapter of a fused layer, if it has one. `rounded`: what [`Lora::rounded`] gave for this layer.
    pub(crate) fn in_layer<'a>(&'a self, layer: usize, rounded: Option<&'a Rounded>) -> Option<Adapter<'a>> {
        let group = self.layout.group(layer)?;
        let parameters = match rounded {
            Some(Rounded { first, parameters }) => Parameters { first: *first, there: parameters },
            None => Parameters { first: 0, there: &self.parameters },
        };
        let dropout = self.dropout.as_ref().map(|dropout| (dropout, layer));
        Some(Adapter { group, kind: self.layout.kind, parameters, scale: self.scale, dropout })
    }
}

/// The adapter of one fused linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adapter<'a> {
    group: &'a Group,
    kind: Kind,
    parameters: Parameters<'a>,
    scale: f64,
    /// With the number of the layer.
    dropout: Option<(&'a Dropout, usize)>,
}

impl Adapter<'_> {
    /// Adds the adapter's share to `y` and returns what backward needs: `A·x` (`[m, rank · members]`), or
    /// every member's `X·W₂ᵀ`, one after the other.
    ///
    /// # Errors
    /// The shapes do not fit the layer, or the device failed.
    pub fn forward(&self, x: View<'_>, y: ViewMut<'_>) -> Result<Tensor> {
        match self.kind {
            Kind::LowRank(rank) => self.low_rank(rank).forward(x, Write::Add, y),
            Kind::Kronecker { .. } => self.kronecker().forward(x, y),
        }
    }

    /// Writes the gradients of both matrices of every member, and adds the adapter's share to `dx` if there
    /// is one.
    ///
    /// # Errors
    /// As [`Adapter::forward`].
    pub fn backward(
        &self,
        x: View<'_>,
        ax: &Tensor,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
        dx: Option<ViewMut<'_>>,
    ) -> Result<()> {
        match self.kind {
            Kind::LowRank(rank) => {
                self.low_rank(rank).backward(x, ax, dy, gradients, dx.map(|dx| (Write::Add, dx)))
            }
            Kind::Kronecker { .. } => self.kronecker().backward(x, ax, dy, gradients, dx),
        }
    }

    /// [`Adapter::forward`] on an output that holds nothing yet: all of it is written, for the layer's own
    /// product to be added. `None`, and `y` as it was, if this adapter can only be added.
    ///
    /// # Errors
    /// As [`Adapter::forward`].
    pub fn forward_first(&self, x: View<'_>, y: ViewMut<'_>) -> Result<Option<Tensor>> {
        match self.kind {
            Kind::LowRank(rank) if self.low_rank(rank).covers(y.cols()) => {
                self.low_rank(rank).forward(x, Write::Replace, y).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// [`Adapter::backward`] with a `dx` that holds nothing yet, likewise. Whether it did.
    ///
    /// # Errors
    /// As [`Adapter::forward`].
    pub fn backward_first(
        &self,
        (x, ax, dy): (View<'_>, &Tensor, View<'_>),
        gradients: &mut Gradients<'_>,
        dx: ViewMut<'_>,
    ) -> Result<bool> {
        let Kind::LowRank(rank) = self.kind else { return Ok(false) };
        self.low_rank(rank).backward(x, ax, dy, gradients, Some((Write::Replace, dx)))?;
        Ok(true)
    }

    /// The frozen layer and the adapter in one pass, `y = W·x + bias + scale · B·(A·x)`, and `A·x`; `None`,
    /// and `y` as it was, if this adapter goes on top of the layer instead.
    ///
    /// # Errors
    /// As [`Adapter::forward`].
    pub fn forward_with(
        &self,
        x: View<'_>,
        weight: &Packed,
        bias: Option<&Tensor>,
        y: ViewMut<'_>,
    ) -> Result<Option<Tensor>> {
        self.joins().map(|adapter| adapter.forward_packed(x, weight, bias, y)).transpose()
    }

    /// Backward of [`Adapter::forward_with`]: writes dA and dB and, if there is room for it, the gradient of
    /// x, which includes the frozen layer's share. Whether it did.
    ///
    /// # Errors
    /// As [`Adapter::forward`].
    pub fn backward_with(
        &self,
        (x, ax, dy): (View<'_>, &Tensor, View<'_>),
        weight: &Packed,
        gradients: &mut Gradients<'_>,
        dx: Option<ViewMut<'_>>,
    ) -> Result<bool> {
        let Some(adapter) = self.joins() else { return Ok(false) };
        adapter.backward_packed(x, ax, dy, weight, gradients, dx)?;
        Ok(true)
    }

    /// The adapter as further terms of a layer's own sums. Dropout stands between its factors, so it cannot
    /// join.
    fn joins(&self) -> Option<LowRank<'_>> {
        match (self.kind, self.dropout) {
            (Kind::LowRank(rank), None) => Some(self.low_rank(rank)),
            _ => None,
        }
    }

    fn low_rank(&self, rank: usize) -> LowRank<'_> {
        let Adapter { group, parameters, scale, dropout, .. } = *self;
        LowRank { group, rank, parameters, scale, dropout }
    }

    fn kronecker(&self) -> Kronecker<'_> {
        Kronecker { members: &self.group.members, parameters: self.parameters, scale: self.scale }
    }
}
