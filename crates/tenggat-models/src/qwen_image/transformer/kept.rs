//! What of a forward pass stays for the backward pass.

use tenggat_tensor::Tensor;

use super::block::{Results, Tape};

/// Blocks whose activations stay for the backward pass. Of the others, which are the first ones, the inputs
/// stay, from which the rest is computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeptBlocks {
    /// Blocks, from the last, whose activations all stay.
    pub whole: usize,
    /// Blocks before those of which the results of the attention and of the MLP stay: a tenth of the
    /// activations, with which there is four tenths less to compute again (by the plan;
    /// `bench/results/2026-11-28-kept-results.md`).
    pub results: usize,
}

impl KeptBlocks {
    /// All activations of all blocks.
    pub const ALL: KeptBlocks = KeptBlocks { whole: usize::MAX, results: 0 };
    /// The inputs alone.
    pub const INPUTS: KeptBlocks = KeptBlocks { whole: 0, results: 0 };

    /// The same of a model with so many blocks: no more than there are.
    pub fn of(self, layers: usize) -> Self {
        let whole = self.whole.min(layers);
        KeptBlocks { whole, results: self.results.min(layers - whole) }
    }
}

/// What stays of one block.
#[derive(Debug)]
pub(super) enum Kept {
    All(Box<Tape>),
    Results(Tensor, Tensor, Box<Results>),
    Inputs(Tensor, Tensor),
}

impl Kept {
    /// What stays of a block that is followed by `to_come` − 1 others.
    pub fn of(tape: Tape, kept: KeptBlocks, to_come: usize) -> Self {
        if to_come <= kept.whole {
            return Kept::All(Box::new(tape));
        }
        if to_come <= kept.whole + kept.results {
            let (image, text, results) = tape.into_results();
            return Kept::Results(image, text, Box::new(results));
        }
        let (image, text) = tape.into_inputs();
        Kept::Inputs(image, text)
    }
}
