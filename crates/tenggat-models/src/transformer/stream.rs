//! One stream of a block (image or text): everything but the attention that joins the two.
//!
//! Shapes: `m = b·tokens` rows, `tokens` per sample and of this stream alone; `c` channels; `h` heads of `d`
//! channels; `r` columns of a layer's `A·x`, see [`crate::lora::Adapter::forward`]. Dtypes as in `double.rs`;
//! *wide* tensors are f32 where activations are bf16.
//!
//! `QwenImageTransformerBlock` of diffusers `transformer_qwenimage.py` and `FluxTransformerBlock` of
//! `transformer_flux.py`. With the six parts of the modulation
//! (shift₁, scale₁, gate₁, shift₂, scale₂, gate₂): `n₁ = norm(x)·(1+scale₁)+shift₁`, `qkv = Wₐ·n₁`, then
//! after the attention gave o: `x₁ = x + gate₁·Wₒ·o`, `n₂ = norm(x₁)·(1+scale₂)+shift₂`,
//! `out = x₁ + gate₂·W₂·gelu(W₁·n₂)`.

use std::ops::Range;

use tenggat_tensor::ops::rms_norm_rope::{self, Segment};
use tenggat_tensor::ops::{copy, gated_residual, gelu, layer_norm_modulate};
use tenggat_tensor::weight::NextUse;
use tenggat_tensor::{Tensor, View, ViewMut};

use super::layer::Layer;
use super::linear::Linear;
use super::modulation::Modulation;
use super::pass::Pass;
use crate::Result;
use crate::lora::Gradients;

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

/// Which of the block's layers the stream's are, by their numbers within it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layers {
    pub modulation: usize,
    pub qkv: usize,
    pub out: usize,
    pub mlp_in: usize,
    pub mlp_out: usize,
}

impl Layers {
    pub const IMAGE: Layers = Layers {
        modulation: Layer::ImgMod as usize,
        qkv: Layer::ImgQkv as usize,
        out: Layer::ImgOut as usize,
        mlp_in: Layer::ImgMlpIn as usize,
        mlp_out: Layer::ImgMlpOut as usize,
    };
    pub const TEXT: Layers = Layers {
        modulation: Layer::TxtMod as usize,
        qkv: Layer::TxtQkv as usize,
        out: Layer::TxtOut as usize,
        mlp_in: Layer::TxtMlpIn as usize,
        mlp_out: Layer::TxtMlpOut as usize,
    };
}

/// Activations before the attention. `…_ax`: `A·x` of a layer's adapter, if it has one.
#[derive(Debug)]
pub(super) struct Before {
    /// The stream's input, `[m, c]`.
    pub x: Tensor,
    /// shift₁ | scale₁ | gate₁ | shift₂ | scale₂ | gate₂, `[b, 6c]`.
    modulation: Tensor,
    /// `[b, r]`.
    modulation_ax: Option<Tensor>,
    /// Mean and reciprocal standard deviation of each row of `x`, `[m, 2]`, wide.
    stats: Tensor,
    /// n₁, `[m, c]`.
    normed: Tensor,
    /// q | k | v before their norms, `[m, 3c]`.
    qkv: Tensor,
    /// Of q, k and v side by side, `[m, r]`.
    qkv_ax: Option<Tensor>,
    /// Reciprocal root mean squares of the heads of q, then of k, `[m, 2h]`, wide.
    rstd: Tensor,
}

/// Activations after the attention. `…_ax`: `A·x` of a layer's adapter, if it has one.
#[derive(Debug)]
pub(super) struct After {
    /// `[m, r]`.
    out_ax: Option<Tensor>,
    /// Wₒ·o, `[m, c]`.
    attended: Tensor,
    /// The stream after the attention's residual, `[m, c]`.
    x1: Tensor,
    /// Mean and reciprocal standard deviation of each row of `x1`, `[m, 2]`, wide.
    stats: Tensor,
    /// n₂, `[m, c]`.
    normed: Tensor,
    /// `[m, r]`.
    in_ax: Option<Tensor>,
    /// W₁·n₂, `[m, 4c]`.
    hidden_in: Tensor,
    /// gelu(W₁·n₂), `[m, 4c]`.
    hidden: Tensor,
    pub mlp: MlpOutput,
}

/// Output of the MLP's second layer.
#[derive(Debug)]
pub(super) struct MlpOutput {
    /// W₂·gelu(W₁·n₂), `[m, c]`.
    y: Tensor,
    /// `A·x` of its adapter, `[m, r]`, if it has one.
    ax: Option<Tensor>,
}

/// Gradients on their way from the end of a stream to the attention.
pub(super) struct Between {
    /// Of x₁, `[m, c]`.
    pub dx: Tensor,
    /// Of the modulation, `[b, 6c]`; shift₁ and scale₁ are added in [`Stream::before_backward`]. `None` if no
    /// adapter of the modulation is trained.
    pub dmodulation: Option<Tensor>,
}

/// Columns of the modulation; shift and scale lie side by side, as the norm takes them.
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

    /// Bytes of the frozen matrices in memory, or mapped into it.
    pub fn bytes(&self) -> usize {
        let modulation = if let Modulation::Resident(linear) = &self.modulation { linear.bytes() } else { 0 };
        let linears = [&self.qkv, &self.out, &self.mlp_in, &self.mlp_out];
        modulation + linears.map(Linear::bytes).iter().sum::<usize>()
    }

    /// Modulation `[b, 6c]`, and `A·x` of its adapter `[b, r]`.
    ///
    /// # Errors
    /// Streamed modulation has no table; the shapes do not fit, or the device failed.
    fn modulate(&self, pass: Pass<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let (conditioning, adapter) = (pass.conditioned.silu.view(), pass.adapter(self.layers.modulation));
        match (&self.modulation, &pass.conditioned.modulation) {
            (Modulation::Resident(linear), _) => linear.forward(conditioning, adapter),
            (Modulation::Streamed(streamed), Some(all)) => {
                let base = all.view().columns(streamed.columns.clone());
                let mut y = all.empty_like(&base.shape())?;
                copy::forward(base, y.view_mut())?;
                let ax = adapter.map(|adapter| adapter.forward(conditioning, y.view_mut())).transpose()?;
                Ok((y, ax))
            }
            (Modulation::Streamed(_), None) => {
                Err(crate::Error::Unsupported("streamed modulation without its table".into()))
            }
        }
    }

    /// Computes this stream's rows of the joint q, k and v, each `[b·t, c]`, from its input `x`, `[m, c]`.
    ///
    /// `positions`: cosines and sines of the rotary embedding, `[tokens, d]`, wide; `segment`: where the rows
    /// go, with the tokens of this stream and of both per sample.
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, or weights cannot be read from their
    /// file.
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
        let (qkv, qkv_ax) = self.qkv.forward(normed.view(), pass.adapter(self.layers.qkv))?;
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

    /// Computes everything from `attention`, this stream's rows of the attention output, `[m, c]`, to the
    /// output of the MLP. `tokens`: per sample. A `known` MLP output is taken as it is.
    ///
    /// # Errors
    /// As [`Stream::before`].
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
        let (attended, out_ax) = self.out.forward(attention, pass.adapter(self.layers.out))?;
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
        let (hidden_in, in_ax) = self.mlp_in.forward(normed.view(), pass.adapter(self.layers.mlp_in))?;
        let mut hidden = hidden_in.empty_like(hidden_in.shape())?;
        gelu::forward(hidden_in.view(), hidden.view_mut())?;
        let mlp = match known {
            Some(known) => known,
            None => {
                let (y, ax) = self.mlp_out.forward(hidden.view(), pass.adapter(self.layers.mlp_out))?;
                MlpOutput { y, ax }
            }
        };
        Ok(After { out_ax, attended, x1, stats, normed, in_ax, hidden_in, hidden, mlp })
    }

    /// The stream's output, `[m, c]`: x₁ + gate₂·MLP output.
    ///
    /// # Errors
    /// The shapes do not fit, or the device failed.
    pub fn output(&self, before: &Before, after: &After, tokens: usize) -> Result<Tensor> {
        let mut out = after.x1.empty_like(after.x1.shape())?;
        let gate = before.modulation.view().columns(parts(after.x1.shape()[1]).gate_2);
        gated_residual::forward(after.x1.view(), gate, after.mlp.y.view(), tokens, out.view_mut())?;
        Ok(out)
    }

    /// Backward of [`Stream::output`] and [`Stream::after`], from `dout`, the gradient of the output,
    /// `[m, c]`; its memory is reused for [`Between::dx`]. Writes the gradient of o, this stream's rows of
    /// the attention output, to `d_attention`, `[m, c]`, and the adapter's into `gradients`.
    ///
    /// # Errors
    /// As [`Stream::before`].
    #[allow(clippy::too_many_arguments)] // mirrors `after`, whose tape it takes
    pub fn after_backward(
        &self,
        pass: Pass<'_>,
        (before, after): (&Before, &After),
        attention: View<'_>,
        tokens: usize,
        dout: Tensor,
        d_attention: ViewMut<'_>,
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
        self.out.backward_to(attention, dattended.view(), trained, d_attention)?;
        Ok(Between { dx, dmodulation })
    }

    /// Backward of [`Stream::before`], from the joint gradients of q, k and v, each `[b·t, c]`. Returns the
    /// gradient of the stream's input, `[m, c]`; `None` if neither `want_dx` nor the modulation's adapter
    /// needs it. Writes the adapter's gradients into `gradients`.
    ///
    /// `between`: `dx` and `dmodulation` of [`Between`]; `None` if nothing reads the stream after the
    /// attention.
    ///
    /// # Errors
    /// As [`Stream::before`].
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

    /// A zeroed gradient of the modulation, `[b, 6c]`, if its adapter is trained.
    ///
    /// # Errors
    /// Out of device memory.
    fn modulation_gradient<'a>(
        &self,
        pass: Pass<'a>,
        before: &'a Before,
        gradients: &mut Option<Gradients<'_>>,
    ) -> Result<Option<Tensor>> {
        pass.zeroed(self.layers.modulation, &before.modulation, &before.modulation_ax, gradients)
    }
}

impl Before {
    /// Shows the activations of this half that the golden data have.
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
