//! Which activations the forward pass saves for the backward pass; the rest is recomputed.

use super::block::{Results, State, Tape};

/// How many blocks keep what for the backward pass. All others, which are the first ones, keep their inputs
/// alone and recompute everything from them.
///
/// The planner decides on the numbers: `tenggat_plan::fit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recompute {
    /// Blocks, counted from the last, that keep all activations and recompute nothing.
    pub keep_all: usize,
    /// Blocks before those that keep the results of attention and MLP: a tenth of the activations, with which
    /// four tenths less are recomputed (by the plan; `bench/results/2026-11-28-kept-results.md`).
    pub keep_results: usize,
}

impl Recompute {
    /// Every block keeps all activations.
    pub const NOTHING: Recompute = Recompute { keep_all: usize::MAX, keep_results: 0 };
    /// Every block keeps its inputs alone.
    pub const EVERYTHING: Recompute = Recompute { keep_all: 0, keep_results: 0 };

    /// The same for a model of `layers` blocks: no number exceeds what there is.
    pub fn of(self, layers: usize) -> Self {
        let keep_all = self.keep_all.min(layers);
        Recompute { keep_all, keep_results: self.keep_results.min(layers - keep_all) }
    }
}

/// What one block saves for its backward pass.
#[derive(Debug)]
pub(super) enum Saved {
    /// All activations.
    All(Tape),
    /// The inputs, and the results that are expensive to recompute.
    Results(State, Box<Results>),
    /// The inputs.
    Inputs(State),
}

impl Saved {
    /// What a block with `following` blocks after it saves of its activations.
    pub fn of(tape: Tape, recompute: Recompute, following: usize) -> Self {
        if following < recompute.keep_all {
            return Saved::All(tape);
        }
        if following < recompute.keep_all + recompute.keep_results {
            let (state, results) = tape.into_results();
            return Saved::Results(state, Box::new(results));
        }
        Saved::Inputs(tape.into_inputs())
    }
}
