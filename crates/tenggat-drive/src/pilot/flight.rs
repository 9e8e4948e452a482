//! What is known of the session that is under way.

use tenggat_plan::{Budget, Pace};

use super::Next;
use crate::trainer::Stage;

/// Seconds between two looks, at least and at most.
const SOONEST_S: f64 = 0.01;
const LATEST_S: f64 = 0.25;

/// Steps between two looks at how many are thought to fit; a fit that moved by less than this share is
/// settled.
const FIT_EVERY: u64 = 20;
const SETTLED: f64 = 0.03;

/// How many steps were thought to fit a while ago.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fit {
    now: (u64, u64),
    before: (u64, u64),
}

impl Fit {
    /// Notes that after `measured` steps so many are thought to fit; whether that has been so for a while.
    pub fn is_settled(&mut self, measured: u64, fit: u64) -> bool {
        if measured >= self.now.0 + FIT_EVERY {
            (self.before, self.now) = (self.now, (measured, fit));
        }
        let near = |other: u64| (other as f64 - fit as f64).abs() <= SETTLED * fit as f64;
        self.before.0 > 0 && near(self.before.1) && near(self.now.1)
    }
}

/// Steps after which the typical step of a session's opening is known.
const OPENING: u64 = 12;

/// One life of the trainer's process.
pub(super) struct Flight {
    /// The budget of this session; its clock is the run's.
    pub budget: Budget,
    /// When the process was started.
    pub started_s: f64,
    /// Updates that it should go on after.
    pub from: u64,
    pub stage: Stage,
    pub stage_since_s: f64,
    /// When the first step began.
    pub trains_since_s: Option<f64>,
    /// Updates done.
    pub step: u64,
    /// When that was first seen.
    pub step_at_s: f64,
    /// Seconds since then that went to saves and sample pictures.
    pub paused_s: f64,
    /// Steps measured in this session.
    pub measured: u64,
    /// How many steps are thought to fit.
    pub fit: Fit,
    /// Notices that steps become slow.
    pub pace: Pace,
    /// Stall limits already told: 0 none, 1 told, 2 acted.
    pub stall_told: u8,
    /// When the next forecast is worth showing.
    pub forecast_due_s: f64,
    /// A save that was asked for.
    pub wish: Option<Wish>,
    /// Set once the session is coming to its end.
    pub landing: Option<Landing>,
    /// Whether the resume was checked.
    pub checked: bool,
    /// Whether first samples were drawn, and how long the round took.
    pub first_round_s: f64,
}

/// A save that was asked for while the training goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub asked_s: f64,
    /// Updates done when it was asked for.
    pub at_step: u64,
    /// When the trainer took it up.
    pub taken_s: Option<f64>,
    /// Whether it was seen at it.
    pub seen: bool,
    /// Times asked.
    pub tries: u32,
}

impl Wish {
    pub(super) fn new(now_s: f64, at_step: u64) -> Self {
        Wish { asked_s: now_s, at_step, taken_s: None, seen: false, tries: 1 }
    }
}

impl Flight {
    pub(super) fn new(budget: Budget, now_s: f64, from: u64) -> Self {
        Flight {
            budget,
            started_s: now_s,
            from,
            stage: Stage::Starting,
            stage_since_s: now_s,
            trains_since_s: None,
            step: from,
            step_at_s: now_s,
            paused_s: 0.0,
            measured: 0,
            fit: Fit::default(),
            pace: Pace::new(OPENING),
            stall_told: 0,
            forecast_due_s: 0.0,
            wish: None,
            landing: None,
            checked: false,
            first_round_s: 0.0,
        }
    }

    /// Whether the training has begun.
    pub(super) fn begun(&self) -> bool {
        self.trains_since_s.is_some()
    }

    pub(super) fn is_landing(&self) -> bool {
        self.landing.is_some()
    }

    /// Seconds of the present step so far.
    pub(super) fn running_s(&self, now_s: f64) -> f64 {
        let pausing = matches!(self.stage, Stage::Saving | Stage::Sampling);
        let pause_s = self.paused_s + if pausing { now_s - self.stage_since_s } else { 0.0 };
        (now_s - self.step_at_s - pause_s).max(0.0)
    }

    /// Expected seconds of a step; `None` before anything is known.
    pub(super) fn mean_s(&mut self, now_s: f64) -> Option<f64> {
        self.budget.forecast(now_s).step_s
    }

    /// Seconds until the next look: a few in every step, and more often near the end.
    pub(super) fn poll_s(&mut self, now_s: f64, kill_s: f64) -> f64 {
        let most_s = self.mean_s(now_s).map_or(0.1, |s| s / 8.0);
        let usual_s = if self.wish.is_some() || self.landing.is_some() { most_s.min(0.05) } else { most_s };
        usual_s.clamp(SOONEST_S, LATEST_S).min((kill_s - now_s).max(0.002))
    }
}

/// The end of a session.
pub(super) struct Landing {
    /// What follows it.
    pub next: Next,
    /// The save before the end; `None` once it is done, or if there is nothing to save.
    pub wish: Option<Wish>,
    /// When the trainer was asked to stop.
    pub stopped_s: Option<f64>,
    /// Whether all that was worth saving is published.
    pub saved: bool,
    pub interrupted: bool,
}

impl Landing {
    /// Whether all that was worth saving is published.
    pub(super) fn is_saved(&self) -> bool {
        self.saved
    }

    /// Of a trainer that hangs: nothing more is expected of it.
    pub(super) fn without_save(next: Next, now_s: f64) -> Self {
        Landing { next, wish: None, stopped_s: Some(now_s), saved: false, interrupted: true }
    }
}
