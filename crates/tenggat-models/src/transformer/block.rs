//! A block of either kind, and what passes from one to the next.
//!
//! Shapes as in `double.rs`.

use tenggat_tensor::Tensor;
use tenggat_tensor::weight::NextUse;

use super::double::{self, Double};
use super::geometry::Geometry;
use super::pass::Pass;
use super::rope::Positions;
use super::single::{self, Single};
use super::stream::Trace;
use crate::lora::Gradients;
use crate::{Error, Result};

/// A block.
#[derive(Debug)]
pub(super) enum Block {
    /// Two streams joined by an attention.
    Double(Box<Double>),
    /// One joint stream.
    Single(Box<Single>),
}

/// What passes from block to block, or its gradient on the way back.
#[derive(Debug)]
pub(super) enum State {
    /// Image `[b·tᵢ, c]` and text `[b·tₜ, c]`, which is missing where nothing reads it.
    Streams { image: Tensor, text: Option<Tensor> },
    /// Per sample its image, then its text: `[b·t, c]`.
    Joint(Tensor),
}

impl State {
    /// As one stream; text that is missing becomes zero.
    ///
    /// # Errors
    /// Out of device memory, or the device failed.
    fn joint(self, geometry: &Geometry) -> Result<Tensor> {
        let (image, text) = match self {
            State::Joint(joint) => return Ok(joint),
            State::Streams { image, text } => (image, text),
        };
        let mut joint = geometry.joint(&image.device(), image.dtype())?;
        geometry.scatter(&image, true, &mut joint)?;
        match text {
            Some(text) => geometry.scatter(&text, false, &mut joint)?,
            None => geometry.zero_rows(&mut joint, false)?,
        }
        Ok(joint)
    }

    /// As two.
    ///
    /// # Errors
    /// Out of device memory, or the device failed.
    fn streams(self, geometry: &Geometry) -> Result<(Tensor, Option<Tensor>)> {
        match self {
            State::Streams { image, text } => Ok((image, text)),
            State::Joint(joint) => {
                Ok((geometry.gather(&joint, true)?, Some(geometry.gather(&joint, false)?)))
            }
        }
    }

    /// The image alone, `[b·tᵢ, c]`.
    ///
    /// # Errors
    /// Out of device memory, or the device failed.
    pub fn image(self, geometry: &Geometry) -> Result<Tensor> {
        match self {
            State::Streams { image, .. } => Ok(image),
            State::Joint(joint) => geometry.gather(&joint, true),
        }
    }

    /// Shows it by the names of the golden data.
    pub fn trace(&self, block: usize, trace: Trace<'_>) {
        match self {
            State::Joint(joint) => trace(&format!("block{block}.joint"), joint),
            State::Streams { image, text } => {
                trace(&format!("block{block}.hidden_states"), image);
                if let Some(text) = text {
                    trace(&format!("block{block}.encoder_hidden_states"), text);
                }
            }
        }
    }
}

/// What a block's backward pass reads.
#[derive(Debug)]
pub(super) enum Tape {
    Double(Box<double::Tape>),
    Single(Box<single::Tape>),
}

/// The results of a block that are expensive to recompute and small to keep.
#[derive(Debug)]
pub(super) enum Results {
    Double(double::Results),
    Single(single::Results),
}

impl Tape {
    /// Keeps the block's inputs alone; [`Block::tape`] recomputes the rest.
    pub fn into_inputs(self) -> State {
        match self {
            Tape::Single(tape) => State::Joint(tape.into_input()),
            Tape::Double(tape) => {
                let (image, text) = tape.into_inputs();
                State::Streams { image, text: Some(text) }
            }
        }
    }

    /// Keeps the inputs, and the results with which [`Block::tape`] recomputes the rest without the attention
    /// and the last products.
    pub fn into_results(self) -> (State, Results) {
        match self {
            Tape::Single(tape) => {
                let (x, results) = tape.into_results();
                (State::Joint(x), Results::Single(results))
            }
            Tape::Double(tape) => {
                let (image, text, results) = tape.into_results();
                (State::Streams { image, text: Some(text) }, Results::Double(results))
            }
        }
    }

    /// Shows the activations by the names of the golden data.
    pub fn trace(&self, block: usize, trace: Trace<'_>) {
        match self {
            Tape::Double(tape) => tape.trace(block, trace),
            Tape::Single(tape) => tape.trace(block, trace),
        }
    }
}

impl Block {
    /// The state after the block, and the tape.
    ///
    /// # Errors
    /// The shapes do not fit, the device failed or is out of memory, or weights cannot be read from their
    /// file.
    pub fn forward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        state: State,
    ) -> Result<(State, Tape)> {
        match self {
            Block::Double(block) => {
                let (image, text) = both(state.streams(geometry)?)?;
                let (image, text, tape) = block.forward(pass, geometry, positions, image, text)?;
                Ok((State::Streams { image, text }, Tape::Double(Box::new(tape))))
            }
            Block::Single(block) => {
                let (x, tape) = block.forward(pass, geometry, positions, state.joint(geometry)?)?;
                Ok((State::Joint(x), Tape::Single(Box::new(tape))))
            }
        }
    }

    /// The tape, from the state before the block. Results that are `known` are not recomputed.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn tape(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        state: State,
        known: Option<Results>,
    ) -> Result<Tape> {
        let other = || Error::Unsupported("results of a block of the other kind".into());
        match self {
            Block::Double(block) => {
                let known = match known {
                    Some(Results::Single(_)) => return Err(other()),
                    Some(Results::Double(results)) => Some(results),
                    None => None,
                };
                let inputs = both(state.streams(geometry)?)?;
                let tape = block.tape(pass, geometry, positions, inputs, known)?;
                Ok(Tape::Double(Box::new(tape)))
            }
            Block::Single(block) => {
                let known = match known {
                    Some(Results::Double(_)) => return Err(other()),
                    Some(Results::Single(results)) => Some(results),
                    None => None,
                };
                let x = state.joint(geometry)?;
                let tape = block.tape(pass, geometry, positions, x, known)?;
                Ok(Tape::Single(Box::new(tape)))
            }
        }
    }

    /// The gradient of the state before the block, if `want_dx`, from `d`, that of the state after; writes
    /// the adapter's into `gradients`.
    ///
    /// # Errors
    /// As [`Block::forward`].
    #[allow(clippy::too_many_arguments)] // mirrors `forward`, whose tape it takes
    pub fn backward(
        &self,
        pass: Pass<'_>,
        geometry: &Geometry,
        positions: &Positions,
        tape: &Tape,
        d: State,
        gradients: &mut Option<Gradients<'_>>,
        want_dx: bool,
    ) -> Result<Option<State>> {
        match (self, tape) {
            (Block::Double(block), Tape::Double(tape)) => {
                let (dimage, dtext) = d.streams(geometry)?;
                let (dimage, dtext) =
                    block.backward(pass, geometry, positions, tape, dimage, dtext, gradients, want_dx)?;
                Ok(dimage.map(|image| State::Streams { image, text: dtext }))
            }
            (Block::Single(block), Tape::Single(tape)) => {
                let d = d.joint(geometry)?;
                let dx = block.backward(pass, geometry, positions, tape, d, gradients, want_dx)?;
                Ok(dx.map(State::Joint))
            }
            _ => Err(Error::Unsupported("the tape of a block of the other kind".into())),
        }
    }

    /// Tells whoever holds the weights what is to come.
    pub fn prefetch(&self, next: NextUse) {
        match self {
            Block::Single(block) => block.prefetch(next),
            Block::Double(block) => {
                block.image.prefetch(next);
                block.text.prefetch(next);
            }
        }
    }

    /// Gives the device back the memory of weights that lie in a file too. Whether that made room.
    pub fn release(&self) -> bool {
        match self {
            Block::Single(block) => block.release(),
            Block::Double(block) => block.image.release() | block.text.release(),
        }
    }

    /// Bytes of the frozen matrices in memory, or mapped into it.
    pub fn bytes(&self) -> usize {
        match self {
            Block::Single(block) => block.bytes(),
            Block::Double(block) => block.image.bytes() + block.text.bytes(),
        }
    }
}

/// Both streams, where both are needed.
fn both((image, text): (Tensor, Option<Tensor>)) -> Result<(Tensor, Tensor)> {
    let text = text.ok_or_else(|| Error::Unsupported("a block after the last that writes text".into()))?;
    Ok((image, text))
}
