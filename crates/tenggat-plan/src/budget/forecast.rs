//! What a budget expects of the rest of the run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quantity::format_duration;

/// What decides when the training ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuledBy {
    /// The job's number of steps.
    Steps,
    /// The deadline.
    Deadline,
}

/// The rest of the run, as expected now. No field is ever negative or undefined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Steps finished.
    pub steps_done: u64,
    /// Steps of the whole run; `None` while no step time is known and only the deadline rules.
    pub steps_total: Option<u64>,
    /// What decides when the training ends.
    pub ruled_by: RuledBy,
    /// Expected seconds per step, over the mixture of buckets; `None` while unknown.
    pub step_s: Option<f64>,
    /// Share of the training that is done, in `[0, 1]`.
    pub progress: f64,
    /// Seconds until the deadline; `None` without one.
    pub left_s: Option<f64>,
    /// Expected seconds until the training begins.
    pub before_s: f64,
    /// Seconds of training still to come, with its saves and samples; `None` while unknown.
    pub training_s: Option<f64>,
    /// Expected seconds of the phases after the last step that are still to come.
    pub tail_s: f64,
    /// Seconds kept free before the deadline.
    pub margin_s: f64,
    /// Expected moment at which the process ends, in seconds on the run's clock; `None` while unknown.
    pub end_s: Option<f64>,
    /// Seconds between the expected end and the deadline beyond the margin; 0 without a deadline.
    pub idle_s: f64,
    /// What the user should know.
    pub notes: Vec<Note>,
}

/// Something that the user should know about the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The steps end well before the deadline.
    EndsEarly {
        /// Steps asked for.
        steps: u64,
        /// Steps that would fit.
        would_fit: u64,
        /// Seconds left over.
        idle_s: f64,
    },
    /// The deadline comes before the steps are done.
    StepsCut {
        /// Steps asked for.
        steps: u64,
        /// Steps that fit.
        fit: u64,
    },
    /// There is no time for a single step.
    NoTimeForSteps {
        /// Seconds until the deadline.
        left_s: f64,
        /// Seconds until the training could begin: loading, quantising, encoding.
        before_s: f64,
        /// Seconds that must be kept for what follows the last step.
        needed_s: f64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndsEarly { steps, would_fit, idle_s } => write!(
                f,
                "{steps} steps end {} before the deadline, and about {would_fit} would fit; set `fill: true` \
                 to use the whole budget",
                format_duration(*idle_s)
            ),
            Self::StepsCut { steps, fit } => write!(
                f,
                "only about {fit} of the {steps} steps fit before the deadline; the learning rate is \
                 annealed over those"
            ),
            Self::NoTimeForSteps { left_s, before_s, needed_s } => {
                let before = if *before_s > 0.0 {
                    format!("{} pass before the first step, and ", format_duration(*before_s))
                } else {
                    String::new()
                };
                write!(
                    f,
                    "no step fits in the {} left: {before}saving and closing take {}; give a longer budget",
                    format_duration(*left_s),
                    format_duration(*needed_s)
                )
            }
        }
    }
}
