//! One encoder layer.

use tenggat_tensor::ops::{copy, gelu, gemm, linear, rms_norm, softmax};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{Tensor, View};

use super::Config;
use crate::Result;

/// `x += o(attention(norm(x)))`, then `x += wo(gelu(wi₀(norm(x))) · wi₁(norm(x)))`. No layer has a bias.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: Tensor,
    pub q: Weight,
    pub k: Weight,
    pub v: Weight,
    pub o: Weight,
    pub mlp_norm: Tensor,
    pub wi_0: Weight,
    pub wi_1: Weight,
    pub wo: Weight,
}

impl Layer {
    /// Runs the layer on one sequence in place. x: `[len, d_model]`; bias: `[heads·len, len]`.
    pub fn forward(&self, config: &Config, bias: &Tensor, x: &mut Tensor) -> Result<()> {
        let (len, eps) = (x.view().rows(), config.layer_norm_epsilon);
        let product = |weight: &Weight, from: View<'_>| -> Result<Tensor> {
            let mut y = Tensor::empty(&from.device(), from.dtype(), &[len, weight.shape()[0]])?;
            linear::forward(from, weight, None, y.view_mut())?;
            Ok(y)
        };
        let mut normed = x.empty_like(&[len, config.d_model])?;
        rms_norm::forward(x.view(), self.attention_norm.view(), eps, normed.view_mut())?;
        let attended = {
            let (q, k) = (product(&self.q, normed.view())?, product(&self.k, normed.view())?);
            attend(config, [&q, &k, &product(&self.v, normed.view())?], bias)?
        };
        copy::add_scaled(1.0, product(&self.o, attended.view())?.view(), x.view_mut())?;

        rms_norm::forward(x.view(), self.mlp_norm.view(), eps, normed.view_mut())?;
        let gate = product(&self.wi_0, normed.view())?;
        let mut hidden = gate.empty_like(gate.shape())?;
        gelu::forward(gate.view(), hidden.view_mut())?;
        copy::multiply(product(&self.wi_1, normed.view())?.view(), hidden.view_mut())?;
        Ok(copy::add_scaled(1.0, product(&self.wo, hidden.view())?.view(), x.view_mut())?)
    }
}

/// `softmax(Q·Kᵀ + bias)·V` per head, without the usual factor 1/√d. q, k, v: `[len, heads·d_kv]`.
fn attend(config: &Config, [q, k, v]: [&Tensor; 3], bias: &Tensor) -> Result<Tensor> {
    let (len, d) = (q.view().rows(), config.d_kv);
    let mut scores = bias.duplicate()?;
    let head = |h: usize| h * d..(h + 1) * d;
    for h in 0..config.num_heads {
        let (q, k) = (q.view().columns(head(h)), k.view().columns(head(h)));
        gemm::nt(1.0, q, k, 1.0, scores.view_mut().row_range(h * len..(h + 1) * len))?;
    }
    let mut p = q.empty_like(scores.shape())?;
    softmax::forward(scores.view(), p.view_mut())?;
    let mut o = q.empty_like(q.shape())?;
    for h in 0..config.num_heads {
        let (p, v) = (p.view().row_range(h * len..(h + 1) * len), v.view().columns(head(h)));
        gemm::nn(1.0, p, v, 0.0, o.view_mut().columns(head(h)))?;
    }
    Ok(o)
}
