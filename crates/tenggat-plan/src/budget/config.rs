//! Configuration of a budget.

use serde::{Deserialize, Serialize};

use super::phase::PhaseCosts;
use super::sane_s;

/// A shape bucket as planned.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct BucketConfig {
    /// Predicted seconds per step; `None` if there is no prediction.
    pub step_s: Option<f64>,
    /// Share of the steps; shares need not sum to 1. `None`: learnt from the steps as they come.
    pub share: Option<f64>,
}

/// Rounds of sample pictures during training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplePlan {
    /// Steps between two rounds.
    pub every_steps: u64,
    /// Predicted seconds for one round (all prompts).
    pub round_s: f64,
}

/// Measurements on validation pictures during training: after the first step, then at intervals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationPlan {
    /// Steps between two measurements; 0 for the first step's alone.
    pub every_steps: u64,
    /// Predicted seconds for one; 0 if there is no prediction.
    pub round_s: f64,
    /// Largest share of the training time that they may take where there is a deadline.
    pub share_max: f64,
}

impl ValidationPlan {
    /// Share of the training time that validation may take, unless a caller wants another.
    pub const SHARE_MAX: f64 = 0.1;
}

/// Everything [`Budget`](super::Budget) is given before the run. All fields are public; start from
/// `default()`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetConfig {
    /// The moment the process must have ended, in seconds on the run's clock (which reads 0 at the clock's
    /// start, so a budget of two hours is 7200 however much of it is already spent). `None`: no
    /// deadline.
    pub deadline_s: Option<f64>,
    /// Steps the job asks for. `None`: as many as fit; needs a deadline.
    pub steps: Option<u64>,
    /// Lets the budget overrule `steps` upwards. Without it, a run whose steps end early ends early.
    pub fill: bool,
    /// Seconds kept free before the deadline whatever the measurements say. `None`: 2 % of the deadline, at
    /// least 0.1 s and at most 0.75 s; the observed spread adds to it.
    pub margin_s: Option<f64>,
    /// Predicted seconds of each phase.
    pub phases: PhaseCosts,
    /// Predicted seconds of writing `last.safetensors` while training; the final save is predicted
    /// separately.
    pub save_s: f64,
    /// Shape buckets, in the order of the indices given to `decide` and `observe_step`. May be empty.
    pub buckets: Vec<BucketConfig>,
    /// Rounds of sample pictures, if any.
    pub samples: Option<SamplePlan>,
    /// Measurements on validation pictures, if any.
    pub validation: Option<ValidationPlan>,
    /// Largest share of the time so far that rounds of samples may have taken before further ones are
    /// skipped.
    pub sample_share_max: f64,
    /// Steps already done by an earlier part of this run.
    pub steps_done: u64,
    /// Progress of the learning-rate schedule reached by that earlier part.
    pub progress_done: f64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            deadline_s: None,
            steps: None,
            fill: false,
            margin_s: None,
            phases: PhaseCosts::default(),
            save_s: 0.0,
            buckets: Vec::new(),
            samples: None,
            validation: None,
            sample_share_max: 0.25,
            steps_done: 0,
            progress_done: 0.0,
        }
    }
}

/// A budget that cannot be kept by any run.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// The deadline is not a positive number of seconds.
    #[error("deadline of {0} s on the run's clock: expected a positive number of seconds")]
    Deadline(f64),
    /// Neither a deadline nor a number of steps.
    #[error(
        "neither a budget nor a number of steps is given, so the run would never end; set `steps`, \
         `--budget` or `--deadline`"
    )]
    Endless,
    /// `fill` without a deadline.
    #[error(
        "`fill` uses the whole budget, but none is given; set `--budget` or `--deadline`, or leave `fill` out"
    )]
    FillWithoutDeadline,
    /// The margin is not a number of seconds.
    #[error("margin of {0} s: expected a number of seconds, 0 or more")]
    Margin(f64),
    /// The margin takes half of the budget or more.
    #[error("a margin of {0} s takes half of the budget or more; give a smaller margin or a longer budget")]
    MarginEatsBudget(f64),
}

impl BudgetConfig {
    /// Refuses what no run can keep.
    pub(super) fn check(&self) -> Result<(), BudgetError> {
        match self.deadline_s {
            Some(deadline_s) if sane_s(deadline_s).is_none_or(|s| s == 0.0) => {
                return Err(BudgetError::Deadline(deadline_s));
            }
            None if self.fill => return Err(BudgetError::FillWithoutDeadline),
            None if self.steps.is_none() => return Err(BudgetError::Endless),
            _ => {}
        }
        match self.margin_s {
            Some(margin_s) if sane_s(margin_s).is_none() => Err(BudgetError::Margin(margin_s)),
            Some(margin_s) if self.deadline_s.is_some_and(|s| margin_s >= s / 2.0) => {
                Err(BudgetError::MarginEatsBudget(margin_s))
            }
            _ => Ok(()),
        }
    }
}
