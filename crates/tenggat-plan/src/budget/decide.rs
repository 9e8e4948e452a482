//! What the training loop does next.

use serde::{Deserialize, Serialize};

use super::{Budget, Phase, cadence};

/// Share of the budget that may be left over once the schedule has reached its end; with more left, steps go on at
/// the floor.
const LEFT_OVER_SHARE: f64 = 0.01;

/// What the training loop does next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Run one step.
    Step {
        /// Progress for the learning-rate schedule at this step, in `[0, 1]`.
        progress: f64,
        /// Whether this step is meant to be the last.
        last: bool,
    },
    /// Write `last.safetensors`, report it with [`Budget::observe_save`], and ask again.
    SaveLast,
    /// Train no further; go on with the tail phases that [`Budget::allows`].
    Finish(FinishReason),
}

/// Why the training ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// All steps asked for are done.
    StepsDone,
    /// The schedule ran to its end and no more than 1 % of the budget is left over.
    BudgetSpent,
    /// The next step might not end in time, although the schedule has not reached its end: a stall or a sudden
    /// slowness took the time of the last steps.
    OutOfTime,
}

/// Whether a round of samples may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleVerdict {
    /// Make the pictures and report them with [`Budget::observe_samples`].
    Go,
    /// Skip this round: it would not leave time to end the training properly.
    WouldEndangerTheEnd,
    /// Skip this round: the steps asked for would no longer fit.
    WouldCutSteps,
    /// Skip this round: samples have had their share of the time (`sample_share_max`).
    ShareSpent,
}

impl Budget {
    /// What to do next, the next step being of shape bucket `next_bucket`.
    ///
    /// Asking twice without reporting anything gives the same answer.
    pub fn decide(&mut self, now_s: f64, next_bucket: usize) -> Decision {
        let now_s = self.tick(now_s);
        if self.phases.started_s(Phase::Train).is_none() {
            self.phases.start(Phase::Train, now_s);
        }
        let room_s = self.room_s(now_s);
        let asked = self.steps_left(None).0;
        if asked == Some(0) {
            return Decision::Finish(FinishReason::StepsDone);
        }
        if self.save_is_due(now_s, next_bucket, room_s) {
            return Decision::SaveLast;
        }
        let fit = match room_s {
            None => u64::MAX,
            Some(room_s) => match self.fit(room_s, next_bucket) {
                0 if self.progress >= 1.0 => return Decision::Finish(FinishReason::BudgetSpent),
                0 => return Decision::Finish(FinishReason::OutOfTime),
                fit => fit,
            },
        };
        self.step(asked.map_or(fit, |asked| asked.min(fit)))
    }

    /// A step with `left` steps to come, this one included.
    fn step(&mut self, left: u64) -> Decision {
        let first = self.steps_done == 0;
        let progress = match left {
            // The first step stands at the beginning, also when it is the only one: at the floor it would learn
            // nothing.
            _ if first => 0.0,
            0 | 1 => 1.0,
            _ => self.progress + (1.0 - self.progress) / left as f64,
        };
        self.pending = Some(progress);
        Decision::Step { progress, last: left <= 1 }
    }

    /// Steps that fit into the room, beginning with one of `bucket`; 0 if that one might not end in time or the end of
    /// the schedule has been reached.
    fn fit(&self, room_s: f64, bucket: usize) -> u64 {
        let (Some(high_s), Some(mixture)) = (self.step_high_s(bucket), self.pace.mixture()) else {
            // Nothing is known of steps: find out, if there is any room.
            return u64::from(room_s > 0.0) * u64::MAX;
        };
        if high_s > room_s {
            return 0;
        }
        let mean_s = self.pace.bucket_mean_s(bucket).unwrap_or(mixture.mean_s);
        // Past the end of the schedule a step is hardly worth anything, so it must not risk anything either.
        let left_over_s = LEFT_OVER_SHARE * self.deadline_s.unwrap_or(0.0);
        let spent = self.progress >= 1.0 && self.steps_done > 0;
        if spent && room_s < left_over_s.max(high_s + mean_s) {
            return 0;
        }
        self.steps_that_fit(room_s, mean_s, mixture)
    }

    /// Whether `last.safetensors` should be written before the next step.
    fn save_is_due(&mut self, now_s: f64, next_bucket: usize, room_s: Option<f64>) -> bool {
        if self.pace.observed() == 0 {
            return false;
        }
        let save_s = self.save_s().unwrap_or(0.0);
        let step_s = self.pace.bucket_mean_s(next_bucket).unwrap_or(0.0);
        let due_s = *self.next_save_s.get_or_insert_with(|| {
            let began_s = self.phases.started_s(Phase::Train).unwrap_or(now_s);
            began_s + cadence::first_after_s(self.deadline_s, save_s, step_s)
        });
        if now_s < due_s {
            return false;
        }
        // Near the end the final save is at hand: another one just before would only take the time of steps that the
        // schedule counts on.
        let never = self.saves.count() == 0;
        let interval_s = cadence::interval_s(self.deadline_s, save_s);
        room_s.is_none_or(|room_s| self.save_high_s() <= room_s && (never || room_s > interval_s))
    }

    /// Whether a save that the job asks for at this step may be written while training. It may be left out without
    /// loss of work: the final save follows.
    pub fn allows_save(&mut self, now_s: f64) -> bool {
        let now_s = self.tick(now_s);
        self.room_s(now_s).is_none_or(|room_s| self.save_high_s() <= room_s)
    }

    /// Whether a round of sample pictures that is due may be made now.
    pub fn allows_samples(&mut self, now_s: f64) -> SampleVerdict {
        let now_s = self.tick(now_s);
        let Some(room_s) = self.room_s(now_s) else {
            return SampleVerdict::Go;
        };
        let deadline_s = self.deadline_s.unwrap_or(f64::MAX);
        // With nothing known of its cost, a round must be allowed to be dear.
        let round_s = self.round_s().unwrap_or(0.05 * deadline_s) * (1.0 + 0.5 * self.rounds.recent_excess());
        let step_s = self.pace.mixture().map_or(0.0, |step| step.mean_s);
        if room_s - round_s < round_s.max(3.0 * step_s) {
            return SampleVerdict::WouldEndangerTheEnd;
        }
        let asked = self.steps_left(None).0;
        if let (Some(asked), false) = (asked, self.config.fill)
            && asked as f64 * step_s > room_s - round_s
        {
            return SampleVerdict::WouldCutSteps;
        }
        if self.sampled_s + round_s > self.config.sample_share_max * (now_s + room_s) {
            return SampleVerdict::ShareSpent;
        }
        SampleVerdict::Go
    }

    /// Whether the validation pictures may be measured now: not once they have had their share of the training time.
    /// Always without a deadline.
    pub fn allows_validation(&mut self, now_s: f64) -> bool {
        let now_s = self.tick(now_s);
        let (Some(plan), true) = (self.config.validation, self.deadline_s.is_some()) else { return true };
        let began_s = self.phases.started_s(Phase::Train).unwrap_or(now_s);
        self.validated_s <= plan.share_max * (now_s - began_s)
    }

    /// After an extension: sets the schedule back to the share of the steps done, if it is further.
    pub(super) fn stretch_schedule(&mut self, now_s: f64) {
        let room_s = self.room_s(now_s);
        let Some(left) = self.steps_left(room_s).0 else {
            return;
        };
        let done = self.steps_done as f64;
        let share = done / (done + left as f64).max(1.0);
        self.progress = self.progress.min(share);
    }
}
