//! A double block: two streams joined by one attention, forward and backward.
//!
//! Shapes: `b` samples; `t` tokens per sample, `tᵢ` of the image, `tₜ` of the text (padded), `t = tᵢ + tₜ`;
//! `h` heads of `d` channels; `c = h·d` channels of a stream. All tensors are row-major. Activations have the
//! dtype that the model computes in (f32 or f64 on a CPU, bf16 on a GPU); tensors called *wide* have its f32
//! counterpart on a GPU, and the same dtype on a CPU.
//!
//! The joint sequence is laid out [image, text, padding], so that the valid keys of a sample are its first
//! ones; upstream puts text first, which changes nothing: attention does not see order, and positions are per
//! token.

use tenggat_tensor::ops::attention::{self, Saved};
use tenggat_tensor::{Tensor, View};

use super::geometry::Geometry;
use super::pass::Pass;
use super::rope::Positions;
use super::stream::{After, Before, Between, MlpOutput, Stream, Trace};
use crate::Result;
use crate::lora::Gradients;

/// Frozen weights of a block.
#[derive(Debug)]
pub(super) struct Double {
    pub image: Stream,
    pub text: Stream,
    /// Whether nothing reads the text stream's output, as in the last block.
    pub last: bool,
}

/// All activations of a block: what its backward pass reads.
#[derive(Debug)]
pub(super) struct Tape {
    image: Before,
    text: Before,
    /// Queries, normed and rotated, `[b·t, c]`.
    q: Tensor,
    /// Keys, normed and rotated, `[b·t, c]`.
    k: Tensor,
    /// Values, `[b·t, c]`.
    v: Tensor,
    /// Attention output, `[b·t, c]`.
    o: Tensor,
    /// Log-sum-exp of the scores of each query, `[b·t, h]`, wide.
    lse: Tensor,
    image_after: After,
    /// None in the last block.
    text_after: Option<After>,
}

/// The results of a block that are expensive to recompute and small to keep: attention output, log-sum-exp,
/// MLP outputs.
#[derive(Debug)]
pub(super) struct Results {
    /// Attention output, `[b·t, c]`.
    o: Tensor,
    /// Log-sum-exp, `[b·t, h]`, wide.
    lse: Tensor,
    image_mlp: MlpOutput,
    /// None in the last block.
    text_mlp: Option<MlpOutput>,
}

impl Tape {
    /// Keeps the block's inputs alone, image `[b·tᵢ, c]` and text `[b·tₜ, c]`; [`Double::tape`] recomputes
    /// the rest.
    pub fn into_inputs(self) -> (Tensor, Tensor) {
        (self.image.x, self.text.x)
    }

    /// Keeps the inputs, image and text, and the results with which [`Double::tape`] recomputes the rest
    /// without the attention and the MLP's second product.
    pub fn into_results(self) -> (Tensor, Tensor, Results) {
        let Tape { image, text, o, lse, image_after, text_after, .. } = self;
        let results =
            Results { o, lse, image_mlp: image_after.mlp, text_mlp: text_after.map(|after| after.mlp) };
        (image.x, text.x, results)
    }

    /// Shows the activations by the names of the golden data.
    pub fn trace(&self, block: usize, trace: Trace<'_>) {
        self.image.trace(block, "img", trace);
        self.text.trace(block, "txt", trace);
        self.image_after.trace(block, "img", trace);
        if let Some(after) = &self.text_after {
            after.trace(block, "txt", trace);
        }
    }
}

impl Double {
    /// The outputs of both streams, and the tape. Image in and out: `[b·tᵢ, c]`; text in and out:
    /// `[b·tₜ, c]`. There is no text output if nothing reads it ([`Double::last`]).
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, or weights cannot be read from their
    /// file.
    pub fn forward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        image: Tensor,
        text: Tensor,
    ) -> Result<(Tensor, Option<Tensor>, Tape)> {
        let tape = self.tape(pass, geometry, positions, (image, text), None)?;
        let text_out = |after| self.text.output(&tape.text, after, geometry.text_tokens);
        let text_out = tape.text_after.as_ref().map(text_out).transpose()?;
        let image_out = self.image.output(&tape.image, &tape.image_after, geometry.image_tokens)?;
        Ok((image_out, text_out, tape))
    }

    /// The tape, from the block's inputs, image `[b·tᵢ, c]` and text `[b·tₜ, c]`. Results that are `known`
    /// are not recomputed.
    ///
    /// # Errors
    /// As [`Double::forward`].
    pub fn tape(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        (image, text): (Tensor, Tensor),
        known: Option<Results>,
    ) -> Result<Tape> {
        let (device, dtype) = (image.device(), image.dtype());
        let mut joint = [
            geometry.joint(&device, dtype)?,
            geometry.joint(&device, dtype)?,
            geometry.joint(&device, dtype)?,
        ];
        // Text is a small part of the work: it goes beside the image, where the device can do both.
        let (text, image) = device.both(
            &mut joint,
            |joint| {
                let joint = joint.each_mut().map(Tensor::view_mut);
                self.text.before(pass, text, &positions.text, geometry.segment(false), joint)
            },
            |joint| {
                let joint = joint.each_mut().map(Tensor::view_mut);
                self.image.before(pass, image, &positions.image, geometry.segment(true), joint)
            },
        )?;
        let [q, k, v] = joint;
        let (o, lse, mut image_mlp, mut text_mlp) = match known {
            Some(Results { o, lse, image_mlp, text_mlp }) => (o, lse, Some(image_mlp), text_mlp),
            None => {
                let mut o = geometry.joint(&device, dtype)?;
                let mut lse = o.empty_wide(&[o.shape()[0], geometry.heads])?;
                let layout = geometry.layout(pass.conditioned.key_lens.as_ref());
                attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut())?;
                (o, lse, None, None)
            }
        };

        let (text_after, image_after) = device.both(
            &mut (),
            |()| {
                let (tokens, mlp) = (geometry.text_tokens, text_mlp.take());
                let after = |attended: View<'_>| self.text.after(pass, &text, attended, tokens, mlp);
                (!self.last).then(|| geometry.with_rows(&o, false, after)).transpose()
            },
            |()| {
                let (tokens, mlp) = (geometry.image_tokens, image_mlp.take());
                let after = |attended: View<'_>| self.image.after(pass, &image, attended, tokens, mlp);
                geometry.with_rows(&o, true, after)
            },
        )?;
        Ok(Tape { image, text, q, k, v, o, lse, image_after, text_after })
    }

    /// The gradients of the block's inputs, image `[b·tᵢ, c]` and text `[b·tₜ, c]`, if `want_dx`; writes the
    /// adapter's into `gradients`.
    ///
    /// `dimage`, `dtext`: gradients of the outputs, in the same shapes; `dtext` is `None` where nothing reads
    /// the text output. `tape` and `pass` are those of the forward pass.
    ///
    /// # Errors
    /// As [`Double::forward`].
    #[allow(clippy::too_many_arguments)] // mirrors `forward`, whose tape it takes
    pub fn backward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        tape: &Tape,
        dimage: Tensor,
        dtext: Option<Tensor>,
        gradients: &mut Option<Gradients<'_>>,
        want_dx: bool,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = tape.o.device();
        let d_o = tape.o.empty_like(tape.o.shape())?;
        let mut shared = (gradients, d_o);
        let (text, image) = device.both(
            &mut shared,
            |(gradients, d_o)| {
                let (Some(after), Some(dtext)) = (&tape.text_after, dtext) else {
                    geometry.zero_rows(d_o, false)?;
                    return Ok(None);
                };
                let (tapes, tokens) = ((&tape.text, after), geometry.text_tokens);
                let text = geometry.with_rows(&tape.o, false, |attended| {
                    geometry.write_rows(d_o, false, |d_o| {
                        self.text.after_backward(pass, tapes, attended, tokens, dtext, d_o, gradients)
                    })
                })?;
                Ok::<_, crate::Error>(Some(text))
            },
            |(gradients, d_o)| {
                let (tapes, tokens) = ((&tape.image, &tape.image_after), geometry.image_tokens);
                geometry.with_rows(&tape.o, true, |attended| {
                    geometry.write_rows(d_o, true, |d_o| {
                        self.image.after_backward(pass, tapes, attended, tokens, dimage, d_o, gradients)
                    })
                })
            },
        )?;
        let (gradients, d_o) = shared;

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
        let joint = [dq.view(), dk.view(), dv.view()];
        let rest = |b: Between| (b.dx, b.dmodulation);
        let mut shared = gradients;
        let (dtext, dimage) = device.both(
            &mut shared,
            |gradients| {
                self.text.before_backward(
                    pass,
                    &tape.text,
                    text.map(rest),
                    &positions.text,
                    geometry.segment(false),
                    joint,
                    gradients,
                    want_dx,
                )
            },
            |gradients| {
                self.image.before_backward(
                    pass,
                    &tape.image,
                    Some(rest(image)),
                    &positions.image,
                    geometry.segment(true),
                    joint,
                    gradients,
                    want_dx,
                )
            },
        )?;
        Ok((dimage, dtext))
    }
}
