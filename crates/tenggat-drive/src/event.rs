//! What a drive tells whoever watches it.

use std::path::PathBuf;

use tenggat_plan::{Forecast, Phase};

/// News of a drive. Where `tenggat train` has the same news, the meaning is the same.
#[derive(Debug, Clone)]
pub enum Event {
    /// A phase begins.
    PhaseStarted(Phase),
    /// A phase is over.
    PhaseFinished {
        /// Which.
        phase: Phase,
        /// How long it took.
        seconds: f64,
    },
    /// Something the user should know.
    Warning(String),
    /// Steps take much longer than before, or none comes; what is seen and the likely cause.
    Slowed(String),
    /// A decision that is worth a line.
    Note(String),
    /// An interrupted run resumes.
    Resumed {
        /// Updates in the LoRA that it resumes from.
        steps: u64,
        /// Seconds of the budget that earlier drives have spent: the run's clock is ahead by so many.
        spent_before_s: f64,
        /// Deadline on the run's clock.
        deadline_s: f64,
    },
    /// What is expected of the rest.
    Forecast(Forecast),
    /// Somebody moved the deadline.
    DeadlineMoved {
        /// The new one, in seconds on the run's clock.
        deadline_s: f64,
        /// Seconds by which it is later, negative if earlier.
        by_s: f64,
    },
    /// Steps are done.
    Step(Step),
    /// The trainer's newest whole LoRA was published.
    Saved {
        /// The published file.
        path: PathBuf,
        /// Updates in it.
        steps: u64,
        /// Seconds that checking and publishing took.
        seconds: f64,
    },
}

/// The state after one or more steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Steps done.
    pub done: u64,
    /// Steps expected in all, if known.
    pub total: Option<u64>,
    /// The newest loss that the trainer has shown.
    pub loss: Option<f64>,
    /// The newest learning rate that the trainer has shown.
    pub lr: Option<f64>,
    /// Seconds of one of these steps.
    pub step_s: f64,
    /// Seconds on the run's clock.
    pub time_s: f64,
    /// Seconds until the deadline.
    pub left_s: f64,
}
