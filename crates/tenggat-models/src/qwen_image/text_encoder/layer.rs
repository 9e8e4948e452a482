//! One decoder layer.

use tenggat_tensor::ops::linear;
use tenggat_tensor::ops::{causal_attention, copy, rms_norm, rotary, swiglu};
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{Tensor, View, ViewMut};

use super::Config;
use crate::Result;

/// Weight `[out, in]` and bias `[out]`.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
        Ok(linear::forward(x, &self.weight, self.bias.as_ref(), y)?)
    }
}

/// `x += o(attention(norm(x)))`, then `x += down(swiglu(gate | up)(norm(x)))`.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub mlp_norm: Tensor,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Layer {
    /// Runs the layer in place. x: `[Σ lens, hidden]`; rope: `[Σ lens, head_dim]`, as `ops::rotary` takes it.
    pub fn forward(&self, config: &Config, rope: &Tensor, lens: &[usize], x: &mut Tensor) -> Result<()> {
        let (heads, kv_heads, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (device, dtype, rows) = (x.device(), x.dtype(), x.view().rows());
        let buffer = |columns: usize| Tensor::empty(&device, dtype, &[rows, columns]);

        let mut normed = buffer(config.hidden_size)?;
        rms_norm::forward(x.view(), self.attention_norm.view(), config.rms_norm_eps, normed.view_mut())?;
        let mut attended = buffer(heads * d)?;
        {
            let (mut q, mut k, mut v) = (buffer(heads * d)?, buffer(kv_heads * d)?, buffer(kv_heads * d)?);
            self.q.forward(normed.view(), q.view_mut())?;
            self.k.forward(normed.view(), k.view_mut())?;
            self.v.forward(normed.view(), v.view_mut())?;
            rotary::forward(rope.view(), heads, q.view_mut())?;
            rotary::forward(rope.view(), kv_heads, k.view_mut())?;
            let layout = causal_attention::Layout { lens, heads, kv_heads, scale: 1.0 / (d as f64).sqrt() };
            causal_attention::forward(q.view(), k.view(), v.view(), layout, attended.view_mut())?;
        }
        self.o.forward(attended.view(), normed.view_mut())?;
        copy::add_scaled(1.0, normed.view(), x.view_mut())?;

        let inner = config.intermediate_size;
        rms_norm::forward(x.view(), self.mlp_norm.view(), config.rms_norm_eps, normed.view_mut())?;
        let (mut gate_up, mut gated) = (buffer(2 * inner)?, buffer(inner)?);
        self.gate.forward(normed.view(), gate_up.view_mut().columns(0..inner))?;
        self.up.forward(normed.view(), gate_up.view_mut().columns(inner..2 * inner))?;
        swiglu::forward(gate_up.view(), gated.view_mut())?;
        self.down.forward(gated.view(), normed.view_mut())?;
        Ok(copy::add_scaled(1.0, normed.view(), x.view_mut())?)
    }
}
