//! What a run tells whoever watches it.

use std::path::PathBuf;

use tenggat_plan::{Forecast, Phase};

use crate::measure::score::{HeldOutError, Scores};

/// News of a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// A phase begins.
    PhaseStarted(Phase),
    /// A phase is over, whether it succeeded or not.
    PhaseFinished {
        /// Which.
        phase: Phase,
        /// How long it took.
        seconds: f64,
    },
    /// The first quantisation of a model is on its way, or done.
    Quantised {
        /// Bytes that are written.
        done: u64,
        /// Bytes of the quantised model.
        total: u64,
    },
    /// Something the user should know.
    Warning(String),
    /// What is trained on.
    Data {
        /// Entries of an epoch: pictures × resolutions × repeats × mirrored copies.
        entries: usize,
        /// Different picture sizes among them.
        buckets: usize,
        /// Parameters that are trained.
        trainable: usize,
    },
    /// A run that was cut off goes on.
    Resumed {
        /// Steps that it had done.
        steps: u64,
        /// Seconds that the run's clock is ahead of the process's for that.
        ahead_s: f64,
        /// Deadline on the run's clock.
        deadline_s: Option<f64>,
    },
    /// The run had been finished before; nothing is done.
    Done {
        /// Steps that it has done.
        steps: u64,
        /// What to do to get more.
        advice: String,
    },
    /// What is expected of the rest, after the first steps and whenever it changed much.
    Forecast(Forecast),
    /// Somebody moved the deadline.
    DeadlineMoved {
        /// The new one, in seconds on the run's clock.
        deadline_s: f64,
        /// Seconds by which it is later, negative if earlier; `None` if there was none before.
        by_s: Option<f64>,
    },
    /// A step is done.
    Step(Step),
    /// A LoRA file was written.
    Saved {
        /// The file.
        path: PathBuf,
        /// Updates in it.
        steps: u64,
    },
    /// Held-out errors are known.
    Scored(Scores),
    /// A LoRA was measured on the held-out pictures, to choose the best.
    Contender(Contender),
    /// A file for the user to look at was written.
    Wrote {
        /// What it shows.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// A LoRA of the run, measured on the held-out pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contender {
    /// Updates in it.
    pub steps: u64,
    /// Velocity error.
    pub error: HeldOutError,
    /// Whether it is the best so far.
    pub is_best: bool,
}

/// One finished step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Steps done.
    pub done: u64,
    /// Steps expected in all, if known.
    pub total: Option<u64>,
    /// Loss of this step.
    pub loss: f64,
    /// Loss averaged over about the last 50 steps.
    pub smoothed: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds of this step.
    pub step_s: f64,
    /// Seconds until the deadline, if there is one.
    pub left_s: Option<f64>,
}
