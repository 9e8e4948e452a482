//! One encoder layer.

use tenggat_tensor::ops::{causal_attention, copy, layer_norm, linear, silu};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{Tensor, View, ViewMut};

use super::Config;
use crate::Result;

/// The factor of quick-GELU, `x·σ(1.702·x)`.
const QUICK: f64 = 1.702;

/// Weight `[out, in]` and bias `[out]`.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Weight,
    pub bias: Tensor,
}

impl Linear {
    fn forward(&self, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
        Ok(linear::forward(x, &self.weight, Some(&self.bias), y)?)
    }
}

/// Weight and bias, `[1, hidden]` each.
#[derive(Debug)]
pub(super) struct Norm {
    pub weight: Tensor,
    pub bias: Tensor,
}

/// `x += o(attention(norm₁(x)))`, then `x += fc₂(quick-gelu(fc₁(norm₂(x))))`.
#[derive(Debug)]
pub(super) struct Layer {
    pub norm1: Norm,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub out: Linear,
    pub norm2: Norm,
    pub fc1: Linear,
    pub fc2: Linear,
}

impl Layer {
    /// Runs the layer in place. x: `[Σ lens, hidden]`.
    pub fn forward(&self, config: &Config, lens: &[usize], x: &mut Tensor) -> Result<()> {
        let (heads, c) = (config.num_attention_heads, config.hidden_size);
        let (rows, eps) = (x.view().rows(), config.layer_norm_eps);
        let mut normed = x.empty_like(&[rows, c])?;
        let norm = |norm: &Norm, x: &Tensor, y: &mut Tensor| {
            layer_norm::forward(x.view(), norm.weight.view(), norm.bias.view(), eps, y.view_mut())
        };
        norm(&self.norm1, x, &mut normed)?;
        let [mut q, mut k, mut v, mut attended] = [
            x.empty_like(&[rows, c])?,
            x.empty_like(&[rows, c])?,
            x.empty_like(&[rows, c])?,
            x.empty_like(&[rows, c])?,
        ];
        self.q.forward(normed.view(), q.view_mut())?;
        self.k.forward(normed.view(), k.view_mut())?;
        self.v.forward(normed.view(), v.view_mut())?;
        let scale = 1.0 / ((c / heads) as f64).sqrt();
        let layout = causal_attention::Layout { lens, heads, kv_heads: heads, scale };
        causal_attention::forward(q.view(), k.view(), v.view(), layout, attended.view_mut())?;
        self.out.forward(attended.view(), normed.view_mut())?;
        copy::add_scaled(1.0, normed.view(), x.view_mut())?;

        norm(&self.norm2, x, &mut normed)?;
        let mut hidden = x.empty_like(&[rows, config.intermediate_size])?;
        self.fc1.forward(normed.view(), hidden.view_mut())?;
        let activated = quick_gelu(&hidden)?;
        self.fc2.forward(activated.view(), normed.view_mut())?;
        Ok(copy::add_scaled(1.0, normed.view(), x.view_mut())?)
    }
}

/// `x·σ(1.702·x) = silu(1.702·x) / 1.702`: the text model of CLIP is too small to deserve a kernel for it.
fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let scaled = |by: f64, x: &Tensor| -> Result<Tensor> {
        let mut y = x.empty_like(x.shape())?;
        copy::zero(y.view_mut())?;
        copy::add_scaled(by, x.view(), y.view_mut())?;
        Ok(y)
    };
    let argument = scaled(QUICK, x)?;
    let mut y = x.empty_like(x.shape())?;
    silu::forward(argument.view(), y.view_mut())?;
    scaled(1.0 / QUICK, &y)
}
