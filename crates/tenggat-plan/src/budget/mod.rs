//! The controller that brings a run to its end before the deadline, and not long before it.
//!
//! [`Budget`] owns no clock and does nothing by itself. The training loop tells it what happened and when,
//! and asks before each step what comes next:
//!
//! 1. **Time left.** What remains until the deadline, less the phases after the last step, less a margin, is
//!    the time left for steps. The margin is a fixed part for ending the process plus three and a half
//!    standard deviations of what is still to come, learnt from the saves and steps seen.
//! 2. **Steps.** A step begins only if it would end inside it even if it were as slow as the slowest recent
//!    one.
//! 3. **Learning rate.** Each step moves the progress of the schedule by `(1 − progress) / n`, where `n` is
//!    the number of steps thought to remain, this one included. While the forecast holds this is the straight
//!    line from 0 to 1; when it changes, the rest of the schedule is stretched or squeezed without a jump;
//!    and at `n = 1` it is 1, so the step that is meant to be the last runs at the floor. `n` is counted with
//!    a reserve that shrinks with the square root of the steps left, so that the last steps are rarely cut
//!    off and little is left over.
//! 4. **Stalls.** `last.safetensors` is written every few minutes. After a stall, phases and parts of phases
//!    that no longer fit are left out; the final save only if it would end late and an earlier one exists.
//! 5. **After the last step.** Long phases are made of parts and ask [`Budget::allows_part`] before each, so
//!    that they end in time on a machine that has become slower, and may take more parts on one that has not.

mod cadence;
mod config;
mod decide;
mod estimate;
mod forecast;
mod pace;
mod parts;
mod phase;
mod time_left;

pub use config::{BucketConfig, BudgetConfig, BudgetError, SamplePlan, ValidationPlan};
pub use decide::{Decision, FinishReason, SampleVerdict};
pub use forecast::{Forecast, Note, RuledBy};
pub use parts::PartTime;
pub use phase::{Phase, PhaseCosts, PhaseRecord};

use estimate::Estimate;
use pace::Pace;
use phase::Phases;

/// Longest duration taken seriously, about thirty thousand years. Sums and products of such numbers stay
/// finite.
const LONGEST_S: f64 = 1e12;

/// Seconds as a number that arithmetic can trust: not negative, not undefined, not absurdly long.
fn sane_s(seconds: f64) -> Option<f64> {
    (0.0..=LONGEST_S).contains(&seconds).then_some(seconds)
}

/// How far back the average speed looks that the cost of later phases is corrected by: a share of the budget,
/// or seconds without one.
const STEADY_SHARE: f64 = 0.02;
const STEADY_S: f64 = 60.0;

/// From this progress on the expected cost of later phases stays as it is: the last steps of the schedule are
/// worth more than the last parts of a score, which are left out if the machine becomes slower now.
const SETTLED: f64 = 0.95;

/// The time controller of one run. Moments are seconds on the run's clock, see [`Clock`](crate::Clock).
#[derive(Debug, Clone)]
pub struct Budget {
    config: BudgetConfig,
    deadline_s: Option<f64>,
    /// The latest moment heard of; time never goes back even if the caller's does.
    now_s: f64,
    phases: Phases,
    pace: Pace,
    /// How much slower the machine is than when the training began, as taken for the phases after it.
    slowdown: f64,
    saves: Estimate,
    rounds: Estimate,
    validations: Estimate,
    validated_s: f64,
    sampled_s: f64,
    steps_done: u64,
    /// Progress of the last step that was run.
    progress: f64,
    /// Progress given to the step that is running.
    pending: Option<f64>,
    next_save_s: Option<f64>,
}

impl Budget {
    /// A controller for one run.
    ///
    /// # Errors
    /// [`BudgetError`] for a configuration that no run could keep. Predictions that are negative or undefined
    /// are no error: they count as unknown.
    pub fn new(config: BudgetConfig) -> Result<Self, BudgetError> {
        config.check()?;
        Ok(Self {
            deadline_s: config.deadline_s,
            now_s: 0.0,
            phases: Phases::new(config.phases),
            pace: Pace::new(&config.buckets, config.deadline_s.map_or(STEADY_S, |s| s * STEADY_SHARE)),
            slowdown: 1.0,
            saves: Estimate::default(),
            rounds: Estimate::default(),
            validations: Estimate::default(),
            validated_s: 0.0,
            sampled_s: 0.0,
            steps_done: config.steps_done,
            progress: sane_s(config.progress_done).unwrap_or(0.0).min(1.0),
            pending: None,
            next_save_s: None,
            config,
        })
    }

    /// Notes that a phase begins.
    pub fn phase_started(&mut self, phase: Phase, now_s: f64) {
        let now_s = self.tick(now_s);
        self.phases.start(phase, now_s);
    }

    /// Notes that a phase ended, and returns its duration in seconds if its start was noted.
    pub fn phase_finished(&mut self, phase: Phase, now_s: f64) -> Option<f64> {
        let now_s = self.tick(now_s);
        self.phases.finish(phase, now_s)
    }

    /// Notes that the step allowed by [`Decision::Step`] is done. Durations that are not positive numbers
    /// count the step but teach nothing.
    pub fn observe_step(&mut self, now_s: f64, bucket: usize, seconds: f64) {
        self.tick(now_s);
        self.pace.observe(bucket, seconds);
        self.steps_done = self.steps_done.saturating_add(1);
        if let Some(progress) = self.pending.take() {
            self.progress = progress;
        }
        if self.progress < SETTLED {
            self.slowdown = self.pace.slowdown();
        }
    }

    /// Notes that a LoRA file was written while training, `last.safetensors` or a numbered one.
    pub fn observe_save(&mut self, now_s: f64, seconds: f64) {
        let now_s = self.tick(now_s);
        self.saves.observe(seconds);
        self.next_save_s = Some(now_s + cadence::interval_s(self.deadline_s, self.save_s().unwrap_or(0.0)));
    }

    /// Notes that a round of sample pictures was made while training.
    pub fn observe_samples(&mut self, now_s: f64, seconds: f64) {
        self.tick(now_s);
        self.rounds.observe(seconds);
        self.sampled_s += sane_s(seconds).unwrap_or(0.0);
    }

    /// Notes that the validation pictures were measured while training.
    pub fn observe_validation(&mut self, now_s: f64, seconds: f64) {
        self.tick(now_s);
        self.validations.observe(seconds);
        self.validated_s += sane_s(seconds).unwrap_or(0.0);
    }

    /// Moves the deadline by `seconds` (earlier if negative) and returns the new one; `None` if there is no
    /// deadline.
    ///
    /// The learning rate follows: if the schedule had been further along than the steps done of those that
    /// now fit, it goes back to that point, so that the time gained is trained in earnest and not at the
    /// floor.
    pub fn extend(&mut self, now_s: f64, seconds: f64) -> Option<f64> {
        let deadline_s = self.deadline_s?;
        self.set_deadline(now_s, deadline_s + seconds)
    }

    /// Sets the deadline, also on a run that had none, and returns the one in force. A moment that has passed
    /// means now; an undefined one changes nothing.
    pub fn set_deadline(&mut self, now_s: f64, deadline_s: f64) -> Option<f64> {
        let now_s = self.tick(now_s);
        if deadline_s.is_nan() || deadline_s > LONGEST_S {
            return self.deadline_s;
        }
        let later = self.deadline_s.is_some_and(|old_s| deadline_s > old_s);
        self.deadline_s = Some(deadline_s.max(now_s));
        if later && self.pending.is_none() {
            self.stretch_schedule(now_s);
        }
        self.deadline_s
    }

    /// The deadline in force, in seconds on the run's clock.
    pub fn deadline_s(&self) -> Option<f64> {
        self.deadline_s
    }

    /// Steps done so far, those of an earlier part of the run included.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Whether all steps that were asked for are done. Never where the time alone ends the run.
    pub fn has_all_steps(&self) -> bool {
        self.steps_left(None).0 == Some(0)
    }

    /// Progress of the learning-rate schedule at the last step that was run; store it for resuming.
    pub fn progress(&self) -> f64 {
        self.progress
    }

    /// When each phase began and ended.
    pub fn phase_records(&self) -> &[PhaseRecord] {
        self.phases.records()
    }

    /// Takes note of the present and returns it, never earlier than before.
    fn tick(&mut self, now_s: f64) -> f64 {
        if sane_s(now_s).is_some_and(|s| s > self.now_s) {
            self.now_s = now_s;
        }
        self.now_s
    }
}
