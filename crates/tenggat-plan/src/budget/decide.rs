//! What the training loop does next.

use serde::{Deserialize, Serialize};

use super::{Budget, Phase, cadence};

/// Share of the budget that may be left over once the schedule has reached its end; with more left, steps go
/// on at the floor.
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
    /// Stop training and continue with the tail phases that [`Budget::allows`].
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
    /// The next step might not end in time, although the schedule has not reached its end: a stall or a
    /// sudden slowness took the time of the last steps.
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
    /// Skip this round: the remaining steps would no longer fit.
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
        let time_left_s = self.time_left_s(now_s);
        let asked = self.steps_left(None).0;
        if asked == Some(0) {
            return Decision::Finish(FinishReason::StepsDone);
        }
        if self.save_is_due(now_s, next_bucket, time_left_s) {
            return Decision::SaveLast;
        }
        let fit = match time_left_s {
            None => u64::MAX,
            Some(time_left_s) => match self.fit(time_left_s, next_bucket) {
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
            // The first step stands at the beginning, also when it is the only one: at the floor it would
            // learn nothing.
            _ if first => 0.0,
            0 | 1 => 1.0,
            _ => self.progress + (1.0 - self.progress) / left as f64,
        };
        self.pending = Some(progress);
        Decision::Step { progress, last: left <= 1 }
    }

    /// Steps that fit into the time left, beginning with one of `bucket`; 0 if that one might not end in time
    /// or the end of the schedule has been reached.
    fn fit(&self, time_left_s: f64, bucket: usize) -> u64 {
        let (Some(high_s), Some(mixture)) = (self.step_high_s(bucket), self.pace.mixture()) else {
            // Nothing is known of steps: find out, if there is any time.
            return u64::from(time_left_s > 0.0) * u64::MAX;
        };
        if high_s > time_left_s {
            return 0;
        }
        let mean_s = self.pace.bucket_mean_s(bucket).unwrap_or(mixture.mean_s);
        // Past the end of the schedule a step is hardly worth anything, so it must not risk anything either.
        let left_over_s = LEFT_OVER_SHARE * self.deadline_s.unwrap_or(0.0);
        let spent = self.progress >= 1.0 && self.steps_done > 0;
        if spent && time_left_s < left_over_s.max(high_s + mean_s) {
            return 0;
        }
        self.steps_that_fit(time_left_s, mean_s, mixture)
    }

    /// Whether `last.safetensors` should be written before the next step.
    fn save_is_due(&mut self, now_s: f64, next_bucket: usize, time_left_s: Option<f64>) -> bool {
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
        // Near the end the final save is at hand: another one just before would only take the time of steps
        // that the schedule counts on.
        let never = self.saves.count() == 0;
        let interval_s = cadence::interval_s(self.deadline_s, save_s);
        time_left_s.is_none_or(|time_left_s| {
            self.save_high_s() <= time_left_s && (never || time_left_s > interval_s)
        })
    }

    /// Whether a save that the job asks for at this step may be written while training. It may be left out
    /// without loss of work: the final save follows.
    pub fn allows_save(&mut self, now_s: f64) -> bool {
        let now_s = self.tick(now_s);
        self.time_left_s(now_s).is_none_or(|time_left_s| self.save_high_s() <= time_left_s)
    }

    /// Whether a round of sample pictures that is due may be made now.
    pub fn allows_samples(&mut self, now_s: f64) -> SampleVerdict {
        let now_s = self.tick(now_s);
        let Some(time_left_s) = self.time_left_s(now_s) else {
            return SampleVerdict::Go;
        };
        let deadline_s = self.deadline_s.unwrap_or(f64::MAX);
        // While its cost is unknown, a round must be allowed to be expensive.
        let round_s = self.round_s().unwrap_or(0.05 * deadline_s) * (1.0 + 0.5 * self.rounds.recent_excess());
        let step_s = self.pace.mixture().map_or(0.0, |step| step.mean_s);
        if time_left_s - round_s < round_s.max(3.0 * step_s) {
            return SampleVerdict::WouldEndangerTheEnd;
        }
        let asked = self.steps_left(None).0;
        if let (Some(asked), false) = (asked, self.config.fill)
            && asked as f64 * step_s > time_left_s - round_s
        {
            return SampleVerdict::WouldCutSteps;
        }
        if self.sampled_s + round_s > self.config.sample_share_max * (now_s + time_left_s) {
            return SampleVerdict::ShareSpent;
        }
        SampleVerdict::Go
    }

    /// Whether the validation pictures may be measured now: not once they have had their share of the
    /// training time. Always without a deadline.
    pub fn allows_validation(&mut self, now_s: f64) -> bool {
        let now_s = self.tick(now_s);
        let (Some(plan), true) = (self.config.validation, self.deadline_s.is_some()) else { return true };
        let began_s = self.phases.started_s(Phase::Train).unwrap_or(now_s);
        self.validated_s <= plan.share_max * (now_s - began_s)
    }

    /// After an extension: sets the schedule back to the share of the steps done, if it is further.
    pub(super) fn stretch_schedule(&mut self, now_s: f64) {
        let time_left_s = self.time_left_s(now_s);
        let Some(left) = self.steps_left(time_left_s).0 else {
            return;
        };
        let done = self.steps_done as f64;
        let share = done / (done + left as f64).max(1.0);
        self.progress = self.progress.min(share);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BucketConfig, BudgetConfig, PhaseCosts, SamplePlan, ValidationPlan};
    use super::*;

    const DEADLINE_S: f64 = 1000.0;

    fn config() -> BudgetConfig {
        BudgetConfig {
            deadline_s: Some(DEADLINE_S),
            buckets: vec![BucketConfig { step_s: Some(1.0), share: None }],
            ..BudgetConfig::default()
        }
    }

    /// Steps of 1 s and saves of `save_s` from the moment `from_s`; when the saves began, and how the end
    /// came.
    fn saves(budget: &mut Budget, save_s: f64, from_s: f64) -> (Vec<f64>, f64, FinishReason) {
        let (mut now_s, mut began_s) = (from_s, Vec::new());
        loop {
            match budget.decide(now_s, 0) {
                Decision::Step { .. } => {
                    now_s += 1.0;
                    budget.observe_step(now_s, 0, 1.0);
                }
                Decision::SaveLast => {
                    began_s.push(now_s);
                    now_s += save_s;
                    budget.observe_save(now_s, save_s);
                }
                Decision::Finish(reason) => return (began_s, now_s, reason),
            }
        }
    }

    /// The first save comes where the cadence has it, the others an interval apart, and none in the last
    /// interval.
    #[test]
    fn saves_keep_their_cadence() {
        let save_s = 1.0;
        let mut budget = Budget::new(BudgetConfig { save_s, ..config() }).unwrap();
        let (began_s, end_s, reason) = saves(&mut budget, save_s, 7.0);
        assert_eq!(reason, FinishReason::BudgetSpent);
        let first_s = 7.0 + cadence::first_after_s(Some(DEADLINE_S), save_s, 1.0);
        assert!((first_s..first_s + 1.0).contains(&began_s[0]), "{began_s:?}");
        let interval_s = cadence::interval_s(Some(DEADLINE_S), save_s);
        for pair in began_s.windows(2) {
            let between_s = pair[1] - pair[0] - save_s;
            assert!((interval_s - 1e-9..interval_s + 1.0).contains(&between_s), "{began_s:?}");
        }
        let last_s = *began_s.last().unwrap();
        assert!(last_s < end_s - interval_s && last_s > end_s - 2.5 * interval_s, "{last_s} {end_s}");
    }

    /// Where no file is there yet, one is written although the end is near, if there is time for it.
    #[test]
    fn a_first_save_is_written_late_rather_than_never() {
        let mut budget = Budget::new(BudgetConfig { save_s: 1.0, ..config() }).unwrap();
        budget.decide(900.0, 0);
        budget.observe_step(970.0, 0, 1.0);
        assert_eq!(budget.decide(970.0, 0), Decision::SaveLast);
        assert!(budget.allows_save(970.0));
        let high_s = budget.save_high_s();
        let time_left_s = budget.time_left_s(970.0).unwrap();
        let full_s = 970.0 + time_left_s - high_s;
        assert!(budget.clone().allows_save(full_s - 0.01) && !budget.clone().allows_save(full_s + 0.01));
        assert_ne!(budget.decide(full_s + 0.01, 0), Decision::SaveLast);
    }

    #[test]
    fn progress_goes_in_a_straight_line_over_what_is_left() {
        let mut budget = Budget::new(BudgetConfig { deadline_s: None, steps: Some(5), ..config() }).unwrap();
        for (k, expected) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().enumerate() {
            let last = k == 4;
            assert_eq!(budget.decide(0.0, 0), Decision::Step { progress: expected, last });
            budget.observe_step(0.0, 0, 1.0);
        }
        assert!(budget.has_all_steps());
        assert_eq!(budget.decide(0.0, 0), Decision::Finish(FinishReason::StepsDone));
    }

    /// At the end of the schedule steps go on at the floor while more than 1 % of the budget is left.
    #[test]
    fn what_is_left_at_the_end_of_the_schedule_is_used_down_to_one_percent() {
        let mut budget =
            Budget::new(BudgetConfig { steps_done: 10, progress_done: 1.0, ..config() }).unwrap();
        (0..400).for_each(|_| budget.observe_step(0.0, 0, 1.0));
        budget.observe_save(0.0, 0.01);
        budget.next_save_s = Some(f64::MAX);
        let end_s = budget.time_left_s(0.0).unwrap();
        let decide = |left_s: f64| budget.clone().decide(end_s - left_s, 0);
        assert!(matches!(decide(0.01 * DEADLINE_S + 0.1), Decision::Step { progress: 1.0, .. }));
        assert_eq!(decide(0.01 * DEADLINE_S - 0.1), Decision::Finish(FinishReason::BudgetSpent));
        budget.progress = 0.5;
        let decide = |left_s: f64| budget.clone().decide(end_s - left_s, 0);
        let high_s = budget.step_high_s(0).unwrap();
        assert!(matches!(decide(high_s + 0.01), Decision::Step { .. }));
        assert_eq!(decide(high_s - 0.01), Decision::Finish(FinishReason::OutOfTime));
    }

    /// After every round, the one just made included, rounds have had no more than their share of the time.
    #[test]
    fn rounds_of_samples_never_take_more_than_their_share() {
        for (share, every, round_s) in [(0.1, 10, 30.0), (0.25, 7, 11.0), (0.02, 50, 4.0)] {
            let samples = Some(SamplePlan { every_steps: every, round_s });
            let config = BudgetConfig { samples, sample_share_max: share, ..config() };
            let mut budget = Budget::new(config).unwrap();
            let (mut now_s, mut spent) = (0.0, 0);
            while let Decision::Step { .. } | Decision::SaveLast = budget.decide(now_s, 0) {
                now_s += 1.0;
                budget.observe_step(now_s, 0, 1.0);
                budget.next_save_s = Some(f64::MAX);
                if !budget.steps_done().is_multiple_of(every) {
                    continue;
                }
                match budget.allows_samples(now_s) {
                    SampleVerdict::Go => {
                        now_s += round_s;
                        budget.observe_samples(now_s, round_s);
                        assert!(budget.sampled_s <= share * DEADLINE_S, "{} s", budget.sampled_s);
                    }
                    SampleVerdict::ShareSpent => spent += 1,
                    other => assert!(now_s > 0.8 * DEADLINE_S, "{other:?} at {now_s} s"),
                }
            }
            // What is left of the share is less than a round.
            assert!(
                spent > 0 && budget.sampled_s + 1.1 * round_s > share * DEADLINE_S,
                "{}",
                budget.sampled_s
            );
        }
    }

    #[test]
    fn a_round_of_samples_is_skipped_for_a_reason() {
        let samples = Some(SamplePlan { every_steps: 10, round_s: 20.0 });
        let of = |config: BudgetConfig, now_s: f64| Budget::new(config).unwrap().allows_samples(now_s);
        let with = |samples, share| BudgetConfig { samples, sample_share_max: share, ..config() };
        let end_s = Budget::new(config()).unwrap().time_left_s(0.0).unwrap();
        // Another round, or three steps, must fit after it.
        assert_eq!(of(with(samples, 1.0), end_s - 40.1), SampleVerdict::Go);
        assert_eq!(of(with(samples, 1.0), end_s - 39.9), SampleVerdict::WouldEndangerTheEnd);
        let short = Some(SamplePlan { every_steps: 10, round_s: 1.0 });
        assert_eq!(of(with(short, 1.0), end_s - 4.1), SampleVerdict::Go);
        assert_eq!(of(with(short, 1.0), end_s - 3.9), SampleVerdict::WouldEndangerTheEnd);
        // A round of unknown cost may take a twentieth of the budget.
        let unknown = Some(SamplePlan { every_steps: 10, round_s: 0.0 });
        assert_eq!(of(with(unknown, 1.0), end_s - 100.1), SampleVerdict::Go);
        assert_eq!(of(with(unknown, 1.0), end_s - 99.9), SampleVerdict::WouldEndangerTheEnd);
        // 900 steps asked for need 900 s, unless the budget decides how many there are.
        let asked = |fill| BudgetConfig { steps: Some(900), fill, ..with(samples, 1.0) };
        assert_eq!(of(asked(false), end_s - 920.1), SampleVerdict::Go);
        assert_eq!(of(asked(false), end_s - 919.9), SampleVerdict::WouldCutSteps);
        assert_eq!(of(asked(true), end_s - 919.9), SampleVerdict::Go);
        let endless = BudgetConfig { deadline_s: None, ..asked(false) };
        assert_eq!(of(endless, 1e9), SampleVerdict::Go);
    }

    #[test]
    fn validation_has_its_share_of_the_training_time() {
        let validation = Some(ValidationPlan { every_steps: 1, round_s: 1.0, share_max: 0.1 });
        let mut budget = Budget::new(BudgetConfig { validation, ..config() }).unwrap();
        budget.phase_started(Phase::Train, 100.0);
        budget.observe_validation(120.0, 5.0);
        assert!(!budget.clone().allows_validation(149.9));
        assert!(budget.allows_validation(150.1));
        let endless = BudgetConfig { deadline_s: None, steps: Some(1), validation, ..config() };
        let mut endless = Budget::new(endless).unwrap();
        endless.observe_validation(1.0, 1e6);
        assert!(endless.allows_validation(2.0));
    }

    /// An extension sets the schedule back to the share of the steps done, and never ahead.
    #[test]
    fn an_extension_sets_the_schedule_back_and_never_ahead() {
        for (steps_done, progress_done) in [(90, 0.1), (90, 0.9)] {
            let config = BudgetConfig { deadline_s: Some(100.0), steps_done, progress_done, ..config() };
            let mut budget = Budget::new(config).unwrap();
            budget.extend(0.0, 10.0).unwrap();
            let total = budget.forecast(0.0).steps_total.unwrap();
            let share = steps_done as f64 / total as f64;
            assert!((0.2..0.8).contains(&share), "{share}");
            assert!((budget.progress() - share.min(progress_done)).abs() < 1e-12, "{}", budget.progress());
            // A deadline that comes earlier leaves it where it is.
            budget.extend(0.0, -10.0).unwrap();
            assert!((budget.progress() - share.min(progress_done)).abs() < 1e-12);
        }
    }

    #[test]
    fn phases_before_the_training_are_no_part_of_it() {
        let phases = PhaseCosts::default().with(Phase::Load, 50.0);
        let mut budget = Budget::new(BudgetConfig { phases, ..config() }).unwrap();
        let before = budget.forecast(0.0).before_s;
        budget.decide(50.0, 0);
        assert_eq!((before, budget.forecast(50.0).before_s), (50.0, 0.0));
        assert_eq!(budget.phases.started_s(Phase::Train), Some(50.0));
    }
}
