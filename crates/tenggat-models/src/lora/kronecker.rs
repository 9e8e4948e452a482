//! Adapters that are Kronecker products: `y += scale · (W₁ ⊗ W₂)·x`.
//!
//! With x as a matrix `X: [q, n]` and y as `Y: [l, k]`, `Y += scale · W₁·(X·W₂ᵀ)`: neither the product nor
//! its gradient is ever laid out. Source: ai-toolkit `toolkit/models/lokr.py`; both factors whole, as its
//! `lokr_full_rank` has them.

use tenggat_tensor::ops::{gemm, kronecker};
use tenggat_tensor::{Result, Tensor, View, ViewMut};

use super::layout::Member;
use super::parameters::{Gradients, Parameters};

/// The members of a fused layer.
pub(super) struct Kronecker<'a> {
    pub members: &'a [Member],
    pub parameters: Parameters<'a>,
    pub scale: f64,
}

impl Kronecker<'_> {
    /// Adds to `y`; returns every member's `T = X·W₂ᵀ`, `[m, q·k]`, one after the other.
    ///
    /// # Errors
    /// The shapes do not fit the layer, or the device failed.
    pub fn forward(&self, x: View<'_>, mut y: ViewMut<'_>) -> Result<Tensor> {
        let rows = x.rows();
        let len = self.members.iter().map(|member| rows * width(member)).sum();
        let mut all = Tensor::empty(&y.device(), y.dtype(), &[1, len])?;
        let mut at = 0;
        for member in self.members {
            let ([l, q], [k, n]) = (member.a_shape, member.b_shape);
            let w2 = self.parameters.matrix(member.b, k, n)?;
            gemm::nt(1.0, x.rows_of(n)?, w2, 0.0, all.matrix_mut(at, rows * q, k)?)?;
            let t = all.matrix(at, rows, q * k)?;
            let w1 = self.parameters.matrix(member.a, l, q)?;
            kronecker::forward(self.scale, w1, t, y.reborrow().columns(member.columns.clone()))?;
            at += rows * width(member);
        }
        Ok(all)
    }

    /// With `dT = scale · W₁ᵀ·dY`: `dW₁ = scale · Σ dY·Tᵀ`, `dW₂ = Σ dTᵀ·X`, `dX += dT·W₂`.
    ///
    /// # Errors
    /// As [`Kronecker::forward`].
    pub fn backward(
        &self,
        x: View<'_>,
        all: &Tensor,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
        mut dx: Option<ViewMut<'_>>,
    ) -> Result<()> {
        let (rows, beta) = (x.rows(), gradients.write.beta());
        let mut at = 0;
        for member in self.members {
            let ([l, q], [k, n]) = (member.a_shape, member.b_shape);
            let (w1, w2) = (self.parameters.matrix(member.a, l, q)?, self.parameters.matrix(member.b, k, n)?);
            let mut dt = all.empty_like(&[rows * q, k])?;
            let t = all.matrix(at, rows, q * k)?;
            let dw1 = gradients.buffer.matrix_mut(member.a, l, q)?;
            let own = dy.columns(member.columns.clone());
            kronecker::backward(self.scale, w1, t, own, beta, dw1, dt.matrix_mut(0, rows, q * k)?)?;
            let dw2 = gradients.buffer.matrix_mut(member.b, k, n)?;
            gemm::tn(1.0, dt.view(), x.rows_of(n)?, beta, dw2)?;
            if let Some(dx) = &mut dx {
                gemm::nn(1.0, dt.view(), w2, 1.0, dx.reborrow().rows_of(n)?)?;
            }
            at += rows * width(member);
        }
        Ok(())
    }
}

/// Elements of a member's T in one row.
fn width(member: &Member) -> usize {
    member.a_shape[1] * member.b_shape[0]
}
