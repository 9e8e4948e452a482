//! A run in a line of a table.

use serde::Serialize;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process works on it.
    Running,
    /// It came to its end.
    Finished,
    /// It was stopped, or its process ended unexpectedly; the same command resumes it.
    Stopped,
    /// It ended with an error.
    Failed,
}

impl State {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Finished => "finished",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

/// What is known of a run. Moments are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Its name: that of its folder.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Why, where that is not plain: the error, or that its process ended unexpectedly.
    pub reason: Option<String>,
    /// The command that trains: `train`, `task`, `demo` or `drive`.
    pub program: Option<String>,
    /// The phase under way.
    pub phase: Option<String>,
    /// How far that phase is: parts done and in all.
    pub progress: Option<(u64, u64)>,
    /// Steps done.
    pub step: u64,
    /// Steps expected in all.
    pub total: Option<u64>,
    /// Loss, averaged over about the last 50 steps.
    pub loss: Option<f64>,
    /// Seconds per step of late.
    pub step_s: Option<f64>,
    /// When it began.
    pub began_unix_s: Option<f64>,
    /// When it was heard of last.
    pub updated_unix_s: Option<f64>,
    /// When it must have ended.
    pub deadline_unix_s: Option<f64>,
    /// When it ended, or will end as far as is known.
    pub end_unix_s: Option<f64>,
    /// Seconds of the budget that are spent.
    pub spent_s: Option<f64>,
    /// Seconds of the budget.
    pub budget_s: Option<f64>,
    /// Its newest LoRA file, by its name in the folder.
    pub lora: Option<String>,
    /// The process that works on it.
    pub process: Option<u32>,
}

impl Overview {
    /// Share of the work that is done, by steps or, where their number is unknown, by time; in `[0, 1]`.
    pub fn share(&self) -> Option<f64> {
        let of = |done: f64, total: f64| (total > 0.0).then(|| (done / total).clamp(0.0, 1.0));
        let steps = self.total.and_then(|total| of(self.step as f64, total as f64));
        steps.or_else(|| of(self.spent_s?, self.budget_s?))
    }

    /// Whether this tells more than `before`. That time passes is no news.
    pub fn is_news_after(&self, before: &Overview) -> bool {
        Overview { spent_s: None, ..self.clone() } != Overview { spent_s: None, ..before.clone() }
    }
}
