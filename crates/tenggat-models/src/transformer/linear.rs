//! A frozen linear layer with its adapter.

use tenggat_tensor::ops::linear::{self, Write};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{Device, Tensor, View, ViewMut};

use super::recovery::Branch;
use crate::Result;
use crate::lora::{Adapter, Gradients};

/// Weight `[out, in]`, bias `[out]`, and the recovery adapter's branch, if the weight has one.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
    pub recovery: Option<Branch>,
}

impl Linear {
    /// Bytes of the frozen matrices.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.recovery.as_ref().map_or(0, Branch::bytes)
    }

    /// `y = W·x + b + adapter(x)`, `[m, out]`, from `x`, `[m, in]`; and `A·x`, `[m, r]`, if there is an
    /// adapter.
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, or the weight cannot be read from its
    /// file.
    pub fn forward(&self, x: View<'_>, adapter: Option<Adapter<'_>>) -> Result<(Tensor, Option<Tensor>)> {
        let mut y = Tensor::empty(&x.device(), x.dtype(), &[x.rows(), self.weight.shape()[0]])?;
        if let (Weight::Packed(weight), None, Some(adapter)) = (&self.weight, &self.recovery, adapter)
            && let Some(ax) = adapter.forward_with(x, weight, self.bias.as_ref(), y.view_mut())?
        {
            return Ok((y, Some(ax)));
        }
        // A GPU's product reads what it adds to while it multiplies. A second pass over y would read and
        // write it.
        let ax = match adapter {
            Some(adapter) if matches!(y.device(), Device::Cuda(_)) => {
                adapter.forward_first(x, y.view_mut())?
            }
            _ => None,
        };
        match ax {
            Some(_) => linear::forward_onto(x, &self.weight, self.bias.as_ref(), y.view_mut())?,
            None => linear::forward(x, &self.weight, self.bias.as_ref(), y.view_mut())?,
        }
        if let Some(branch) = &self.recovery {
            branch.forward(x, y.view_mut())?;
        }
        let ax = match (ax, adapter) {
            (None, Some(adapter)) => Some(adapter.forward(x, y.view_mut())?),
            (ax, _) => ax,
        };
        Ok((y, ax))
    }

    /// The input gradient `dx = Wᵀ·dy + adapter's`, `[m, in]`, from the forward pass's `x`, `[m, in]`, and
    /// `dy`, `[m, out]`. Writes the adapter's own gradients into [`Trained::gradients`]; the frozen weight
    /// gets none.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward(
        &self,
        x: View<'_>,
        dy: View<'_>,
        adapter: Option<Trained<'_, '_, '_>>,
    ) -> Result<Tensor> {
        let mut dx = Tensor::empty(&dy.device(), dy.dtype(), &[dy.rows(), self.weight.shape()[1]])?;
        self.backward_to(x, dy, adapter, dx.view_mut())?;
        Ok(dx)
    }

    /// [`Linear::backward`] that writes the input gradient to `dx`.
    ///
    /// # Errors
    /// As [`Linear::backward`].
    pub fn backward_to(
        &self,
        x: View<'_>,
        dy: View<'_>,
        mut adapter: Option<Trained<'_, '_, '_>>,
        mut dx: ViewMut<'_>,
    ) -> Result<()> {
        if let (Weight::Packed(weight), None, Some(t)) = (&self.weight, &self.recovery, &mut adapter)
            && t.adapter.backward_with((x, t.ax, dy), weight, t.gradients, Some(dx.reborrow()))?
        {
            return Ok(());
        }
        // As in the forward pass.
        let is_done = match &mut adapter {
            Some(t) if matches!(dx.device(), Device::Cuda(_)) => {
                t.adapter.backward_first((x, t.ax, dy), t.gradients, dx.reborrow())?
            }
            _ => false,
        };
        let write = if is_done { Write::Add } else { Write::Replace };
        linear::backward(dy, &self.weight, write, dx.reborrow())?;
        if let Some(branch) = &self.recovery {
            branch.backward(dy, dx.reborrow())?;
        }
        match adapter {
            Some(t) if !is_done => Ok(t.adapter.backward(x, t.ax, dy, t.gradients, Some(dx))?),
            _ => Ok(()),
        }
    }
}

/// What the adapter of one layer needs in the backward pass.
pub(super) struct Trained<'a, 'g, 't> {
    pub adapter: Adapter<'a>,
    /// `A·x` of the forward pass, `[m, r]`.
    pub ax: &'a Tensor,
    pub gradients: &'g mut Gradients<'t>,
}

impl Trained<'_, '_, '_> {
    /// Writes the adapter's gradients alone, where nothing trained lies below; `x`: `[m, in]`, `dy`:
    /// `[m, out]`. `weight`: the layer's, if it is in memory.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn leaf(self, weight: Option<&Weight>, x: View<'_>, dy: View<'_>) -> Result<()> {
        if let Some(Weight::Packed(weight)) = weight
            && self.adapter.backward_with((x, self.ax, dy), weight, self.gradients, None)?
        {
            return Ok(());
        }
        Ok(self.adapter.backward(x, self.ax, dy, self.gradients, None::<ViewMut<'_>>)?)
    }
}
