//! One stream of a block (image or text): everything but the attention that joins the two.
//!
//! `QwenImageTransformerBlock` of diffusers `transformer_qwenimage.py`. With the six parts of the modulation
//! (shift₁, scale₁, gate₁, shift₂, scale₂, gate₂): `n₁ = norm(x)·(1+scale₁)+shift₁`, `qkv = Wₐ·n₁`, then
//! after the attention gave o: `x₁ = x + gate₁·Wₒ·o`, `n₂ = norm(x₁)·(1+scale₂)+shift₂`, `out = x₁ +
//! gate₂·W₂·gelu(W₁·n₂)`.

use std::ops::Range;

use tenggat_tensor::ops::quantise::NextUse;
use tenggat_tensor::ops::rms_norm_rope::{self, Segment};
use tenggat_tensor::ops::{copy, gated_residual, gelu, layer_norm_modulate};
use tenggat_tensor::{Tensor, View, ViewMut};

use super::conditioned::Conditioned;
use super::linear::{Linear, Trained};
use super::modulation::Modulation;
use crate::Result;
use crate::lora::{Adapter, Gradients};
use crate::qwen_image::layer::Layer;

/// Frozen weights of one stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub layers: Layers,
    pub modulation: Modulation,
    pub qkv: Linear,
    /// Query and key norm weights, `[2, d]`.
    pub head_norms: Tensor,
    pub out: Linear,
    pub mlp_in: Linear,
    pub mlp_out: Linear,
}

/// Which of the block's layers the stream's are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layers {
    pub modulation: Layer,
    pub qkv: Layer,
    pub out: Layer,
    pub mlp_in: Layer,
    pub mlp_out: Layer,
}

impl Layers {
    pub const IMAGE: Layers = Layers {
        modulation: Layer::ImgMod,
        qkv: Layer::ImgQkv,
        out: Layer::ImgOut,
        mlp_in: Layer::ImgMlpIn,
        mlp_out: Layer::ImgMlpOut,
    };
    pub const TEXT: Layers = Layers {
        modulation: Layer::TxtMod,
        qkv: Layer::TxtQkv,
        out: Layer::TxtOut,
        mlp_in: Layer::TxtMlpIn,
        mlp_out: Layer::TxtMlpOut,
    };
}

/// What a pass through one block shares.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    /// Number of the block.
    pub block: usize,
    pub conditioned: &'a Conditioned,
    pub adapter: Option<Adapter<'a>>,
}

impl<'a> Pass<'a> {
    fn part(&self, layer: Layer) -> Option<crate::lora::Part<'a>> {
        self.adapter.and_then(|adapter| adapter.part(layer.number(self.block)))
    }

    /// The adapter of a layer with what its forward pass left for the backward pass.
    fn trained<'g, 't>(
        &self,
        layer: Layer,
        ax: &'a Option<Tensor>,
        gradients: &'g mut Option<Gradients<'t>>,
    ) -> Option<Trained<'a, 'g, 't>> {
        match (self.part(layer), ax, gradients) {
            (Some(part), Some(ax), Some(gradients)) => Some(Trained { part, ax, gradients }),
            _ => None,
        }
    }
}

/// Kept from before the attention.
#[derive(Debug)]
pub(super) struct Before {
    pub x: Tensor,
    modulation: Tensor,
    modulation_ax: Option<Tensor>,
    stats: Tensor,
    normed: Tensor,
    qkv: Tensor,
    qkv_ax: Option<Tensor>,
    rstd: Tensor,
}

/// Kept from after the attention.
#[derive(Debug)]
pub(super) struct After {
    out_ax: Option<Tensor>,
    attended: Tensor,
    x1: Tensor,
    stats: Tensor,
    normed: Tensor,
    in_ax: Option<Tensor>,
    hidden_in: Tensor,
    hidden: Tensor,
    pub mlp: MlpOutput,
}

/// Result of the MLP's second layer.
#[derive(Debug)]
pub(super) struct MlpOutput {
    y: Tensor,
    /// What its adapter's backward pass needs.
    ax: Option<Tensor>,
}

/// Gradients on their way from the end of a stream to the attention.
pub(super) struct Between {
    /// Of the residual stream after the attention's residual.
    pub dx: Tensor,
    /// Of the modulation, `[b, 6c]`; the parts of before the attention are still to come. None if not
    /// trained.
    pub dmodulation: Option<Tensor>,
    /// Of the attention's output, `[b·tokens, c]`.
    pub d_attention: Tensor,
}

/// Columns of the modulation.
struct Parts {
    shift_scale_1: Range<usize>,
    gate_1: Range<usize>,
    shift_scale_2: Range<usize>,
    gate_2: Range<usize>,
}

fn parts(c: usize) -> Parts {
    Parts { shift_scale_1: 0..2 * c, gate_1: 2 * c..3 * c, shift_scale_2: 3 * c..5 * c, gate_2: 5 * c..6 * c }
}

/// Intermediate results on their way to a test, by name.
pub(super) type Trace<'a> = &'a mut dyn FnMut(&str, &Tensor);

impl Stream {
    /// Tells whoever holds the weights what is to come.
    pub fn prefetch(&self, next: NextUse) {
        if let Modulation::Resident(linear) = &self.modulation {
            linear.weight.prefetch(next);
        }
        let linears = [&self.qkv, &self.out, &self.mlp_in, &self.mlp_out];
        linears.into_iter().for_each(|linear| linear.weight.prefetch(next));
    }

    /// Gives the device back the memory of weights that lie in a file too. Whether that made room.
    pub fn release(&self) -> bool {
        let linears = [&self.qkv, &self.out, &self.mlp_in, &self.mlp_out];
        linears.into_iter().fold(false, |freed, linear| linear.weight.release() | freed)
    }

    /// Modulation `[b, 6c]`, and what its adapter's backward pass needs.
    fn modulate(&self, pass: Pass<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let (conditioning, part) = (pass.conditioned.silu.view(), pass.part(self.layers.modulation));
        match (&self.modulation, &pass.conditioned.modulation) {
            (Modulation::Resident(linear), _) => linear.forward(conditioning, part),
            (Modulation::Streamed(streamed), Some(all)) => {
                let base = all.view().columns(streamed.columns.clone());
                let mut y = all.empty_like(&base.shape())?;
                copy::forward(base, y.view_mut())?;
                let ax = part.map(|part| part.forward(conditioning, y.view_mut())).transpose()?;
                Ok((y, ax))
            }
            (Modulation::Streamed(_), None) => {
                Err(crate::Error::Unsupported("streamed modulation without its table".into()))
            }
        }
    }

    /// From the stream's input to its rows of the joint q, k and v.
    pub fn before(
        &self,
        pass: Pass<'_>,
        x: Tensor,
        positions: &Tensor,
        segment: Segment,
        joint: [ViewMut<'_>; 3],
    ) -> Result<Before> {
        let c = x.shape()[1];
        let (modulation, modulation_ax) = self.modulate(pass)?;
        let (mut normed, mut stats) = (x.empty_like(x.shape())?, x.empty_wide(&[x.shape()[0], 2])?);
        layer_norm_modulate::forward(
            x.view(),
            modulation.view().columns(parts(c).shift_scale_1),
            segment.tokens,
            normed.view_mut(),
            stats.view_mut(),
        )?;
        let (qkv, qkv_ax) = self.qkv.forward(normed.view(), pass.part(self.layers.qkv))?;
        let mut rstd = x.empty_wide(&[x.shape()[0], 2 * segment.heads])?;
        let [q, k, v] = joint;
        rms_norm_rope::forward(
            qkv.view(),
            self.head_norms.view(),
            positions.view(),
            segment,
            q,
            k,
            v,
            rstd.view_mut(),
        )?;
        Ok(Before { x, modulation, modulation_ax, stats, normed, qkv, qkv_ax, rstd })
    }

    /// From the attention's output (`[b·tokens, c]`) to that of the MLP, unless that is known.
    pub fn after(
        &self,
        pass: Pass<'_>,
        before: &Before,
        attention: View<'_>,
        tokens: usize,
        known: Option<MlpOutput>,
    ) -> Result<After> {
        let x = &before.x;
        let p = parts(x.shape()[1]);
        let modulation = before.modulation.view();
        let (attended, out_ax) = self.out.forward(attention, pass.part(self.layers.out))?;
        let mut x1 = x.empty_like(x.shape())?;
        gated_residual::forward(
            x.view(),
            modulation.columns(p.gate_1),
            attended.view(),
            tokens,
            x1.view_mut(),
        )?;
        let (mut normed, mut stats) = (x.empty_like(x.shape())?, x.empty_wide(&[x.shape()[0], 2])?);
        let shift_scale = modulation.columns(p.shift_scale_2);
        layer_norm_modulate::forward(x1.view(), shift_scale, tokens, normed.view_mut(), stats.view_mut())?;
        let (hidden_in, in_ax) = self.mlp_in.forward(normed.view(), pass.part(self.layers.mlp_in))?;
        let mut hidden = hidden_in.empty_like(hidden_in.shape())?;
        gelu::forward(hidden_in.view(), hidden.view_mut())?;
        let mlp = match known {
            Some(known) => known,
            None => {
                let (y, ax) = self.mlp_out.forward(hidden.view(), pass.part(self.layers.mlp_out))?;
                MlpOutput { y, ax }
            }
        };
        Ok(After { out_ax, attended, x1, stats, normed, in_ax, hidden_in, hidden, mlp })
    }

    /// From there to the stream's output.
    pub fn output(&self, before: &Before, after: &After, tokens: usize) -> Result<Tensor> {
        let mut out = after.x1.empty_like(after.x1.shape())?;
        let gate = before.modulation.view().columns(parts(after.x1.shape()[1]).gate_2);
        gated_residual::forward(after.x1.view(), gate, after.mlp.y.view(), tokens, out.view_mut())?;
        Ok(out)
    }

    /// Backward of [`Stream::after`]. `dout` becomes the gradient of the stream after the attention's
    /// residual.
    pub fn after_backward(
        &self,
        pass: Pass<'_>,
        (before, after): (&Before, &After),
        attention: View<'_>,
        tokens: usize,
        dout: Tensor,
        gradients: &mut Option<Gradients<'_>>,
    ) -> Result<Between> {
        let c = dout.shape()[1];
        let p = parts(c);
        let modulation = before.modulation.view();
        let mut dmodulation = self.modulation_gradient(pass, before, gradients)?;
        let mut dx = dout;

        let mut dmlp = dx.empty_like(dx.shape())?;
        gated_residual::backward(
            modulation.columns(p.gate_2.clone()),
            after.mlp.y.view(),
            dx.view(),
            tokens,
            dmlp.view_mut(),
            dmodulation.as_mut().map(|d| d.view_mut().columns(p.gate_2)),
        )?;
        let trained = pass.trained(self.layers.mlp_out, &after.mlp.ax, gradients);
        let mut dhidden = self.mlp_out.backward(after.hidden.view(), dmlp.view(), trained)?;
        gelu::backward(after.hidden_in.view(), dhidden.view_mut())?;
        let trained = pass.trained(self.layers.mlp_in, &after.in_ax, gradients);
        let dnormed = self.mlp_in.backward(after.normed.view(), dhidden.view(), trained)?;
        layer_norm_modulate::backward(
            after.x1.view(),
            modulation.columns(p.shift_scale_2.clone()),
            after.stats.view(),
            tokens,
            dnormed.view(),
            dx.view_mut(),
            dmodulation.as_mut().map(|d| d.view_mut().columns(p.shift_scale_2)),
        )?;

        let mut dattended = dmlp; // same shape, no longer needed
        gated_residual::backward(
            modulation.columns(p.gate_1.clone()),
            after.attended.view(),
            dx.view(),
            tokens,
            dattended.view_mut(),
            dmodulation.as_mut().map(|d| d.view_mut().columns(p.gate_1)),
        )?;
        let trained = pass.trained(self.layers.out, &after.out_ax, gradients);
        let d_attention = self.out.backward(attention, dattended.view(), trained)?;
        Ok(Between { dx, dmodulation, d_attention })
    }

    /// Backward of [`Stream::before`] from the joint gradients of q, k and v.
    ///
    /// `between`: what came from behind the attention; `None` if nothing did. Returns the gradient of the
    /// stream's input if `want_dx`.
    #[allow(clippy::too_many_arguments)] // mirrors `before`, whose tape it takes
    pub fn before_backward(
        &self,
        pass: Pass<'_>,
        before: &Before,
        between: Option<(Tensor, Option<Tensor>)>,
        positions: &Tensor,
        segment: Segment,
        joint: [View<'_>; 3],
        gradients: &mut Option<Gradients<'_>>,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let x = &before.x;
        let p = parts(x.shape()[1]);
        let (mut dx, mut dmodulation) = match between {
            Some((dx, dmodulation)) => (dx, dmodulation),
            None => {
                let mut dx = x.empty_like(x.shape())?;
                dx.fill(0.0)?;
                (dx, self.modulation_gradient(pass, before, gradients)?)
            }
        };
        let [dq, dk, dv] = joint;
        let mut dqkv = x.empty_like(before.qkv.shape())?;
        rms_norm_rope::backward(
            before.qkv.view(),
            self.head_norms.view(),
            positions.view(),
            before.rstd.view(),
            segment,
            dq,
            dk,
            dv,
            dqkv.view_mut(),
        )?;
        let trained = pass.trained(self.layers.qkv, &before.qkv_ax, gradients);
        if !want_dx && dmodulation.is_none() {
            if let Some(trained) = trained {
                trained.leaf(Some(&self.qkv.weight), before.normed.view(), dqkv.view())?;
            }
            return Ok(None);
        }
        let dnormed = self.qkv.backward(before.normed.view(), dqkv.view(), trained)?;
        layer_norm_modulate::backward(
            x.view(),
            before.modulation.view().columns(p.shift_scale_1.clone()),
            before.stats.view(),
            segment.tokens,
            dnormed.view(),
            dx.view_mut(),
            dmodulation.as_mut().map(|d| d.view_mut().columns(p.shift_scale_1)),
        )?;
        if let Some(dmodulation) = &dmodulation {
            let trained = pass.trained(self.layers.modulation, &before.modulation_ax, gradients);
            if let Some(trained) = trained {
                let weight = match &self.modulation {
                    Modulation::Resident(linear) => Some(&linear.weight),
                    Modulation::Streamed(_) => None,
                };
                trained.leaf(weight, pass.conditioned.silu.view(), dmodulation.view())?;
            }
        }
        Ok(Some(dx))
    }

    /// A zeroed gradient of the modulation, if its adapter is trained.
    fn modulation_gradient(
        &self,
        pass: Pass<'_>,
        before: &Before,
        gradients: &mut Option<Gradients<'_>>,
    ) -> Result<Option<Tensor>> {
        if pass.trained(self.layers.modulation, &before.modulation_ax, gradients).is_none() {
            return Ok(None);
        }
        let mut d = before.modulation.empty_like(before.modulation.shape())?;
        d.fill(0.0)?;
        Ok(Some(d))
    }
}

impl Before {
    /// Shows what golden values of this half can be read off from.
    pub fn trace(&self, block: usize, stream: &str, trace: Trace<'_>) {
        for (name, tensor) in [
            ("input", &self.x),
            ("mod", &self.modulation),
            ("stats", &self.stats),
            ("qkv", &self.qkv),
            ("rstd", &self.rstd),
        ] {
            trace(&format!("block{block}.{stream}_{name}"), tensor);
        }
    }
}

impl After {
    /// Shows the results of this half by the names of the golden data.
    pub fn trace(&self, block: usize, stream: &str, trace: Trace<'_>) {
        trace(&format!("block{block}.attn.{stream}"), &self.attended);
        trace(&format!("block{block}.{stream}_mlp.net.0"), &self.hidden);
        trace(&format!("block{block}.{stream}_mlp"), &self.mlp.y);
    }
}
