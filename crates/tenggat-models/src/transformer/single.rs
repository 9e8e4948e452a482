//! A single block: attention and MLP side by side on the joint stream of image and text.
//!
//! Shapes and dtypes as in `double.rs`, with `m = b·t` rows; `r` columns of a layer's `A·x`.
//!
//! `FluxSingleTransformerBlock` of diffusers `transformer_flux.py`. With the three parts of the modulation
//! (shift, scale, gate): `n = norm(x)·(1+scale)+shift`, `q|k|v|h = W·n`, and with o the attention's result:
//! `out = x + gate·Wₒ·[o | gelu(h)]`.

use std::ops::Range;

use tenggat_tensor::ops::attention::{self, Saved};
use tenggat_tensor::ops::{copy, gated_residual, gelu, layer_norm_modulate, rms_norm_rope};
use tenggat_tensor::weight::NextUse;
use tenggat_tensor::{Tensor, View};

use super::geometry::Geometry;
use super::layer::SingleLayer;
use super::linear::Linear;
use super::pass::Pass;
use super::rope::Positions;
use super::stream::Trace;
use crate::lora::Gradients;
use crate::{Error, Result};

/// Numbers of the fused layers within the block.
const MODULATION: usize = SingleLayer::Mod as usize;
const FUSED: usize = SingleLayer::QkvMlp as usize;
const OUT: usize = SingleLayer::Out as usize;

/// Frozen weights of a block.
#[derive(Debug)]
pub(super) struct Single {
    pub modulation: Linear,
    /// q | k | v | input of the activation.
    pub fused: Linear,
    /// Query and key norm weights, `[2, d]`.
    pub head_norms: Tensor,
    pub out: Linear,
}

/// What a block's backward pass reads.
#[derive(Debug)]
pub(super) struct Tape {
    /// The block's input, `[m, c]`.
    x: Tensor,
    /// shift | scale | gate, `[b, 3c]`.
    modulation: Tensor,
    /// `[b, r]`.
    modulation_ax: Option<Tensor>,
    /// Mean and reciprocal standard deviation of each row of `x`, `[m, 2]`, wide.
    stats: Tensor,
    /// n, `[m, c]`.
    normed: Tensor,
    /// q | k | v before their norms | h, `[m, 7c]`.
    fused: Tensor,
    /// `[m, r]`.
    fused_ax: Option<Tensor>,
    /// Reciprocal root mean squares of the heads of q, then of k, `[m, 2h]`, wide.
    rstd: Tensor,
    /// Queries, normed and rotated, `[m, c]`.
    q: Tensor,
    /// Keys, normed and rotated, `[m, c]`.
    k: Tensor,
    /// Values, `[m, c]`.
    v: Tensor,
    /// Attention output, `[m, c]`.
    o: Tensor,
    /// Log-sum-exp of the scores of each query, `[m, h]`, wide.
    lse: Tensor,
    /// o | gelu(h), `[m, 5c]`.
    joined: Tensor,
    output: Output,
}

/// Output of the last layer.
#[derive(Debug)]
struct Output {
    /// Wₒ·[o | gelu(h)], `[m, c]`.
    y: Tensor,
    /// `A·x` of its adapter, `[m, r]`, if it has one.
    ax: Option<Tensor>,
}

/// The results that are expensive to recompute and small to keep.
#[derive(Debug)]
pub(super) struct Results {
    o: Tensor,
    lse: Tensor,
    output: Output,
}

impl Tape {
    /// Keeps the block's input alone; [`Single::tape`] recomputes the rest.
    pub fn into_input(self) -> Tensor {
        self.x
    }

    /// Keeps the input, and the results with which [`Single::tape`] recomputes the rest without the attention
    /// and the last product.
    pub fn into_results(self) -> (Tensor, Results) {
        let Tape { x, o, lse, output, .. } = self;
        (x, Results { o, lse, output })
    }

    /// Shows results by the block's number and names of their own.
    pub fn trace(&self, block: usize, trace: Trace<'_>) {
        for (name, tensor) in [
            ("mod", &self.modulation),
            ("normed", &self.normed),
            ("fused", &self.fused),
            ("attn", &self.o),
            ("joined", &self.joined),
            ("out", &self.output.y),
        ] {
            trace(&format!("block{block}.{name}"), tensor);
        }
    }
}

/// Columns of the modulation.
fn shift_scale(c: usize) -> Range<usize> {
    0..2 * c
}

fn gate(c: usize) -> Range<usize> {
    2 * c..3 * c
}

impl Single {
    /// The frozen linears but for the modulation.
    fn linears(&self) -> [&Linear; 2] {
        [&self.fused, &self.out]
    }

    /// Tells whoever holds the weights what is to come.
    pub fn prefetch(&self, next: NextUse) {
        self.modulation.weight.prefetch(next);
        self.linears().into_iter().for_each(|linear| linear.weight.prefetch(next));
    }

    /// Gives the device back the memory of weights that lie in a file too. Whether that made room.
    pub fn release(&self) -> bool {
        self.linears().into_iter().fold(false, |room, linear| linear.weight.release() | room)
    }

    /// Bytes of the frozen matrices.
    pub fn bytes(&self) -> usize {
        self.modulation.bytes() + self.linears().map(Linear::bytes).iter().sum::<usize>()
    }

    /// The joint stream after the block, and the tape. In and out: `[m, c]`.
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, or weights cannot be read from their
    /// file.
    pub fn forward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        x: Tensor,
    ) -> Result<(Tensor, Tape)> {
        let tape = self.tape(pass, geometry, positions, x, None)?;
        let mut out = tape.x.empty_like(tape.x.shape())?;
        gated_residual::forward(
            tape.x.view(),
            tape.modulation.view().columns(gate(out.shape()[1])),
            tape.output.y.view(),
            geometry.joint_tokens(),
            out.view_mut(),
        )?;
        Ok((out, tape))
    }

    /// The tape, from the block's input, `[m, c]`. Results that are `known` are not recomputed.
    ///
    /// # Errors
    /// As [`Single::forward`].
    pub fn tape(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        x: Tensor,
        known: Option<Results>,
    ) -> Result<Tape> {
        let (rows, c, segment) = (x.shape()[0], x.shape()[1], geometry.whole());
        let (modulation, modulation_ax) =
            self.modulation.forward(pass.conditioned.silu.view(), pass.adapter(MODULATION))?;
        let (mut normed, mut stats) = (x.empty_like(x.shape())?, x.empty_wide(&[rows, 2])?);
        layer_norm_modulate::forward(
            x.view(),
            modulation.view().columns(shift_scale(c)),
            segment.tokens,
            normed.view_mut(),
            stats.view_mut(),
        )?;
        let (fused, fused_ax) = self.fused.forward(normed.view(), pass.adapter(FUSED))?;
        let inner = fused.shape()[1];
        let [mut q, mut k, mut v] =
            [x.empty_like(x.shape())?, x.empty_like(x.shape())?, x.empty_like(x.shape())?];
        let mut rstd = x.empty_wide(&[rows, 2 * segment.heads])?;
        rms_norm_rope::forward(
            fused.view().columns(0..3 * c),
            self.head_norms.view(),
            joint(positions)?,
            segment,
            q.view_mut(),
            k.view_mut(),
            v.view_mut(),
            rstd.view_mut(),
        )?;
        let (o, lse, output) = match known {
            Some(Results { o, lse, output }) => (o, lse, Some(output)),
            None => {
                let (mut o, mut lse) = (x.empty_like(x.shape())?, x.empty_wide(&[rows, segment.heads])?);
                let layout = geometry.layout(pass.conditioned.key_lens.as_ref());
                attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut())?;
                (o, lse, None)
            }
        };
        let mut joined = x.empty_like(&[rows, inner - 2 * c])?;
        copy::forward(o.view(), joined.view_mut().columns(0..c))?;
        gelu::forward(fused.view().columns(3 * c..inner), joined.view_mut().columns(c..inner - 2 * c))?;
        let output = match output {
            Some(output) => output,
            None => {
                let (y, ax) = self.out.forward(joined.view(), pass.adapter(OUT))?;
                Output { y, ax }
            }
        };
        Ok(Tape {
            x,
            modulation,
            modulation_ax,
            stats,
            normed,
            fused,
            fused_ax,
            rstd,
            q,
            k,
            v,
            o,
            lse,
            joined,
            output,
        })
    }

    /// The gradient of the block's input, `[m, c]`, if `want_dx` or the modulation's adapter needs it; writes
    /// the adapter's into `gradients`. `dout`: the gradient of the output; its memory is reused.
    ///
    /// # Errors
    /// As [`Single::forward`].
    #[allow(clippy::too_many_arguments)] // mirrors `forward`, whose tape it takes
    pub fn backward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        tape: &Tape,
        dout: Tensor,
        gradients: &mut Option<Gradients<'_>>,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (c, segment) = (dout.shape()[1], geometry.whole());
        let modulation = tape.modulation.view();
        let mut dmodulation = pass.zeroed(MODULATION, &tape.modulation, &tape.modulation_ax, gradients)?;
        let mut dx = dout;
        let mut dy = dx.empty_like(dx.shape())?;
        gated_residual::backward(
            modulation.columns(gate(c)),
            tape.output.y.view(),
            dx.view(),
            segment.tokens,
            dy.view_mut(),
            dmodulation.as_mut().map(|d| d.view_mut().columns(gate(c))),
        )?;
        let trained = pass.trained(OUT, &tape.output.ax, gradients);
        let djoined = self.out.backward(tape.joined.view(), dy.view(), trained)?;
        let dfused = self.attention_and_mlp_backward(pass, geometry, positions, tape, djoined)?;
        let trained = pass.trained(FUSED, &tape.fused_ax, gradients);
        if !want_dx && dmodulation.is_none() {
            if let Some(trained) = trained {
                trained.leaf(Some(&self.fused.weight), tape.normed.view(), dfused.view())?;
            }
            return Ok(None);
        }
        let dnormed = self.fused.backward(tape.normed.view(), dfused.view(), trained)?;
        layer_norm_modulate::backward(
            tape.x.view(),
            modulation.columns(shift_scale(c)),
            tape.stats.view(),
            segment.tokens,
            dnormed.view(),
            dx.view_mut(),
            dmodulation.as_mut().map(|d| d.view_mut().columns(shift_scale(c))),
        )?;
        if let Some(dmodulation) = &dmodulation
            && let Some(trained) = pass.trained(MODULATION, &tape.modulation_ax, gradients)
        {
            let weight = Some(&self.modulation.weight);
            trained.leaf(weight, pass.conditioned.silu.view(), dmodulation.view())?;
        }
        Ok(Some(dx))
    }

    /// The gradient of q | k | v | h, `[m, 7c]`, from that of o | gelu(h), `[m, 5c]`.
    ///
    /// # Errors
    /// As [`Single::forward`].
    fn attention_and_mlp_backward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        tape: &Tape,
        djoined: Tensor,
    ) -> Result<Tensor> {
        let (c, inner) = (tape.x.shape()[1], tape.fused.shape()[1]);
        let mut dfused = tape.fused.empty_like(tape.fused.shape())?;
        let dhidden = djoined.view().columns(c..inner - 2 * c);
        copy::forward(dhidden, dfused.view_mut().columns(3 * c..inner))?;
        gelu::backward(tape.fused.view().columns(3 * c..inner), dfused.view_mut().columns(3 * c..inner))?;
        // Attention takes rows without gaps.
        let mut d_o = tape.o.empty_like(tape.o.shape())?;
        copy::forward(djoined.view().columns(0..c), d_o.view_mut())?;
        drop(djoined);
        let [mut dq, mut dk, mut dv] =
            [d_o.empty_like(d_o.shape())?, d_o.empty_like(d_o.shape())?, d_o.empty_like(d_o.shape())?];
        let saved = Saved {
            q: tape.q.view(),
            k: tape.k.view(),
            v: tape.v.view(),
            o: tape.o.view(),
            lse: tape.lse.view(),
        };
        attention::backward(
            saved,
            geometry.layout(pass.conditioned.key_lens.as_ref()),
            d_o.view(),
            dq.view_mut(),
            dk.view_mut(),
            dv.view_mut(),
        )?;
        rms_norm_rope::backward(
            tape.fused.view().columns(0..3 * c),
            self.head_norms.view(),
            joint(positions)?,
            tape.rstd.view(),
            geometry.whole(),
            dq.view(),
            dk.view(),
            dv.view(),
            dfused.view_mut().columns(0..3 * c),
        )?;
        Ok(dfused)
    }
}

/// The table of the joint stream, `[t, d]`.
///
/// # Errors
/// It is missing.
fn joint(positions: &Positions) -> Result<View<'_>> {
    let missing = || Error::Unsupported("positions of a model without single blocks".into());
    positions.joint.as_ref().map(Tensor::view).ok_or_else(missing)
}
