//! How much time there is, for what.

use super::forecast::{Forecast, Note, RuledBy};
use super::pace::StepTime;
use super::{Budget, PartTime, Phase, cadence, sane_s};

/// Standard deviations of what follows the last step that are kept free.
const TAIL_DEVIATIONS: f64 = 3.5;
/// Standard deviations of the sum of the steps left that are kept free when they are counted.
const COUNT_DEVIATIONS: f64 = 2.5;
/// A step may always be slower by this share of its mean, however steady the steps were so far, ...
const SUDDEN_SLOWNESS: f64 = 0.5;
/// ... and by as much as its whole mean (another job arrives on the machine) as far as this share of the budget pays
/// for it.
const SUDDEN_SHARE: f64 = 0.005;
/// Relative deviation assumed of saves before the first one.
const UNMEASURED_SAVE_DEVIATION: f64 = 0.2;
/// Share of the time for ending the process that an unusually slow part may reach into: such parts are rare.
const SLACK_IN_CLOSING: f64 = 0.5;
/// Standard deviations by which a single step may be slow and still end inside the room.
const STEP_DEVIATIONS: f64 = 4.0;
/// The part of the margin for ending the process: a share of the deadline within bounds in seconds.
const CLOSING_SHARE: f64 = 0.02;
const CLOSING_LEAST_S: f64 = 0.1;
const CLOSING_MOST_S: f64 = 0.75;
/// Steps that would end earlier than this share of the budget before the deadline are worth a note.
const EARLY_SHARE: f64 = 0.05;

/// A share of all the time as a share of the rest of it, at most 1.
fn beside(share: f64) -> f64 {
    (share / (1.0 - share)).clamp(0.0, 1.0)
}

impl Budget {
    /// Expected seconds of a save while training: measured, else predicted.
    pub(super) fn save_s(&self) -> Option<f64> {
        let predicted = sane_s(self.config.save_s).filter(|s| *s > 0.0);
        self.saves.mean().or(predicted)
    }

    /// Seconds that a save while training will hardly exceed.
    pub(super) fn save_high_s(&self) -> f64 {
        let mean_s = self.save_s().unwrap_or(0.0);
        mean_s * (1.0 + TAIL_DEVIATIONS * self.save_deviation())
    }

    /// The standard deviation of a save that the margin counts with, as a share of the mean.
    ///
    /// Durations of writing to disks and networks have a long upper end, so the deviations are counted on a
    /// logarithmic scale; and a spread seen in `n` saves may itself be wrong, for which it is raised by `√(1 + 4/n)`.
    fn save_deviation(&self) -> f64 {
        let Some(mean_s) = self.saves.mean() else {
            return UNMEASURED_SAVE_DEVIATION;
        };
        let doubt = (1.0 + 4.0 / self.saves.count() as f64).sqrt();
        let relative = (self.saves.deviation() / mean_s * doubt).min(0.4);
        let excess = (TAIL_DEVIATIONS * relative).exp() - 1.0;
        excess.max(self.saves.recent_excess()) / TAIL_DEVIATIONS
    }

    /// Expected seconds of one round of samples.
    pub(super) fn round_s(&self) -> Option<f64> {
        let predicted = self.config.samples.and_then(|s| sane_s(s.round_s));
        self.rounds.mean().or(predicted.filter(|s| *s > 0.0))
    }

    /// Expected seconds and standard deviation of a phase that is still to come.
    fn expected_phase(&self, phase: Phase) -> (f64, f64) {
        let slowdown = match phase {
            // Neither writing a file nor sending it slows down with the card.
            Phase::FinalSave | Phase::Upload => 1.0,
            _ => self.slowdown,
        };
        let (mut mean_s, mut deviation_s) = self.phases.expected(phase, slowdown);
        if phase == Phase::FinalSave
            && let Some(measured_s) = self.saves.mean()
        {
            let predicted_s = sane_s(self.config.save_s).unwrap_or(0.0);
            mean_s = if predicted_s > 0.0 && mean_s > 0.0 {
                mean_s * measured_s / predicted_s
            } else {
                mean_s.max(measured_s)
            };
            deviation_s = mean_s * self.save_deviation();
        }
        // Rounds of samples during training are the better rehearsal of the last one: more of them, and later.
        if phase == Phase::FinalSample
            && mean_s > 0.0
            && let Some(round_s) = self.rounds.mean()
        {
            let predicted_s = self.config.samples.map_or(0.0, |plan| plan.round_s);
            let all_s = self.config.phases.get(phase);
            mean_s = match sane_s(predicted_s) {
                Some(predicted_s) if predicted_s > 0.0 => all_s * round_s / predicted_s,
                _ => all_s.max(round_s),
            };
        }
        (mean_s, deviation_s)
    }

    /// Sum of the tail phases that have not begun: expected seconds and standard deviation.
    fn tail(&self) -> (f64, f64) {
        let (sum_s, variance) = Phase::TAIL
            .into_iter()
            .filter(|phase| !self.phases.begun(*phase))
            .map(|phase| self.expected_phase(phase))
            .fold((0.0, 0.0), |(sum, variance), (mean, deviation)| {
                (sum + mean, variance + deviation * deviation)
            });
        (sum_s, variance.sqrt())
    }

    /// Seconds for ending the process, kept free whatever is measured.
    fn closing_s(&self) -> f64 {
        self.config.margin_s.unwrap_or_else(|| {
            let deadline_s = self.deadline_s.unwrap_or(f64::MAX);
            (deadline_s * CLOSING_SHARE).clamp(CLOSING_LEAST_S, CLOSING_MOST_S)
        })
    }

    /// Seconds kept free before the deadline: for ending the process, and three and a half standard deviations of what is still
    /// to come.
    pub(super) fn margin_s(&self) -> f64 {
        self.closing_s() + TAIL_DEVIATIONS * self.tail().1
    }

    /// Seconds that steps may still take, negative if the tail no longer fits; `None` without a deadline.
    pub(super) fn room_s(&self, now_s: f64) -> Option<f64> {
        Some(self.deadline_s? - now_s - self.before_s(now_s) - self.tail().0 - self.margin_s())
    }

    /// Expected seconds until the training begins; 0 once it has.
    fn before_s(&self, now_s: f64) -> f64 {
        if self.phases.begun(Phase::Train) {
            return 0.0;
        }
        let before = Phase::ALL.into_iter().filter(|phase| *phase < Phase::Train);
        before.map(|phase| self.rest_of_phase(phase, now_s)).sum()
    }

    /// Expected seconds until a phase is over, whether it has begun or not.
    fn rest_of_phase(&self, phase: Phase, now_s: f64) -> f64 {
        let expected_s = self.expected_phase(phase).0;
        match self.phases.running_since_s(phase) {
            Some(since_s) => (expected_s - (now_s - since_s)).max(0.0),
            None if self.phases.begun(phase) => 0.0,
            None => expected_s,
        }
    }

    /// Seconds to spare for more work in the present phase, never negative: what is left once the phases that have not
    /// begun and the margin are set aside. Infinite without a deadline.
    pub fn spare_s(&self, now_s: f64) -> f64 {
        let now_s = sane_s(now_s).unwrap_or(self.now_s).max(self.now_s);
        self.room_s(now_s).map_or(f64::INFINITY, |s| s.max(0.0))
    }

    /// Whether one more part of the present phase may begin, given what its parts took so far.
    ///
    /// Long phases after the training (scoring, sample pictures) should be made of parts and ask before each. The phase
    /// then ends in time even if the machine has become slower, and it may add parts that were not planned while there
    /// is time for them.
    pub fn allows_part(&mut self, now_s: f64, part: PartTime) -> bool {
        let now_s = self.tick(now_s);
        let most_s = part.hardly_more_s();
        let lent_s = (most_s - part.usual_s()).min(SLACK_IN_CLOSING * self.closing_s());
        most_s - lent_s <= self.spare_s(now_s)
    }

    /// Whether a phase after the last step may begin.
    ///
    /// The final save may begin if it is all but certain to end before the deadline, or if steps were done and nothing
    /// was saved before: then a late file is better than none. The others may begin if they would end before the time for ending the process;
    /// phases before the training always may.
    pub fn allows(&mut self, phase: Phase, now_s: f64) -> bool {
        let now_s = self.tick(now_s);
        let Some(deadline_s) = self.deadline_s else {
            return true;
        };
        let (mean_s, deviation_s) = self.expected_phase(phase);
        let left_s = deadline_s - now_s;
        match phase {
            Phase::FinalSave => {
                let unsaved = self.saves.count() == 0 && self.steps_done > self.config.steps_done;
                unsaved || mean_s + 2.0 * deviation_s <= left_s
            }
            _ if Phase::TAIL.contains(&phase) => {
                mean_s + 2.5 * deviation_s + 0.8 * self.closing_s() <= left_s
            }
            _ => true,
        }
    }

    /// Seconds that the next step must be able to take inside the room; `None` if nothing is known of steps.
    pub(super) fn step_high_s(&self, bucket: usize) -> Option<f64> {
        let mean_s = self.pace.bucket_mean_s(bucket)?;
        Some(mean_s + self.step_excess_s(mean_s))
    }

    /// Seconds by which a step of `mean_s` must be able to exceed its mean: for its spread, for a slowness seen
    /// recently, for one never seen.
    fn step_excess_s(&self, mean_s: f64) -> f64 {
        let spread = STEP_DEVIATIONS * self.pace.relative_deviation();
        let paid_s = SUDDEN_SHARE * self.deadline_s.unwrap_or(0.0);
        let sudden_s = paid_s.clamp(SUDDEN_SLOWNESS * mean_s, mean_s);
        (mean_s * spread.max(self.pace.recent_excess())).max(sudden_s)
    }

    /// How many steps fit into `room_s`, the next one taking `first_s`.
    ///
    /// Solves `j·a + z·σ·√j = room − first − e` for the j steps after it. The time per step a includes its share of
    /// saves and samples as long as more than one of them is still to come; e is the excess over the mean that
    /// a step of the slowest bucket must be allowed before it may begin, so that the step counted as the last is indeed
    /// begun, whatever its bucket.
    pub(super) fn steps_that_fit(&self, room_s: f64, first_s: f64, step: StepTime) -> u64 {
        let slowest_s = self.pace.slowest_bucket_s().unwrap_or(first_s);
        let excess_s = slowest_s + self.step_excess_s(slowest_s) - step.mean_s;
        let rest_s = room_s - first_s - excess_s;
        if rest_s <= 0.0 {
            return 1;
        }
        let each_s = step.mean_s + self.overhead_per_step_s(room_s, step.mean_s);
        let reserve_s = COUNT_DEVIATIONS * step.deviation_s;
        let root = ((reserve_s * reserve_s + 4.0 * each_s * rest_s).sqrt() - reserve_s) / (2.0 * each_s);
        // The cast saturates, so that an absurdly small step time cannot overflow.
        1_u64.saturating_add((root * root) as u64)
    }

    /// Seconds of periodic saves, samples and validation per step over the next `room_s`.
    fn overhead_per_step_s(&self, room_s: f64, step_s: f64) -> f64 {
        let save_s = self.save_s().unwrap_or(0.0);
        let interval_s = cadence::interval_s(self.deadline_s, save_s);
        let saves = if room_s > interval_s { save_s * step_s / interval_s } else { 0.0 };
        let samples = self.config.samples.map_or(0.0, |plan| {
            let every = plan.every_steps.max(1) as f64;
            let due = room_s > every * step_s;
            let round_s = self.round_s().unwrap_or(0.0);
            if due { (round_s / every).min(beside(self.config.sample_share_max) * step_s) } else { 0.0 }
        });
        let validation = self.config.validation.filter(|plan| plan.every_steps > 0).map_or(0.0, |plan| {
            let every = plan.every_steps as f64;
            let round_s = self.validations.mean().or(sane_s(plan.round_s)).unwrap_or(0.0);
            // Without a deadline nothing is left out.
            let most_s =
                if self.deadline_s.is_some() { beside(plan.share_max) * step_s } else { f64::INFINITY };
            if room_s > every * step_s { (round_s / every).min(most_s) } else { 0.0 }
        });
        saves + samples + validation
    }

    /// Steps still to come as far as anything limits them: `None` if only an unknown step time does.
    pub(super) fn steps_left(&self, room_s: Option<f64>) -> (Option<u64>, RuledBy) {
        let asked = self.config.steps.map(|steps| steps.saturating_sub(self.steps_done));
        let fit = match (room_s, self.pace.mixture()) {
            (Some(room_s), _) if room_s <= 0.0 => Some(0),
            (Some(room_s), Some(step)) if room_s < step.mean_s => Some(0),
            (Some(room_s), Some(step)) => Some(self.steps_that_fit(room_s, step.mean_s, step)),
            _ => None,
        };
        let asked = if self.config.fill && self.deadline_s.is_some() { None } else { asked };
        match (asked, fit) {
            (Some(asked), Some(fit)) if fit < asked => (Some(fit), RuledBy::Deadline),
            (Some(asked), _) => (Some(asked), RuledBy::Steps),
            (None, fit) => (fit, RuledBy::Deadline),
        }
    }

    /// What is expected of the rest of the run.
    pub fn forecast(&mut self, now_s: f64) -> Forecast {
        let now_s = self.tick(now_s);
        let room_s = self.room_s(now_s);
        let (mut steps_left, ruled_by) = self.steps_left(room_s);
        if Phase::TAIL.into_iter().any(|phase| self.phases.begun(phase)) {
            steps_left = Some(0);
        }
        let step = self.pace.mixture();
        let training_s = steps_left.zip(step).map(|(steps, step)| {
            let each_s = step.mean_s + self.overhead_per_step_s(room_s.unwrap_or(f64::MAX), step.mean_s);
            let needed_s = steps as f64 * each_s;
            room_s.map_or(needed_s, |room_s| needed_s.min(room_s.max(0.0)))
        });
        let before_s = self.before_s(now_s);
        let tail_s: f64 = Phase::TAIL.into_iter().map(|phase| self.rest_of_phase(phase, now_s)).sum();
        let margin_s = self.margin_s();
        let end_s = training_s.map(|training_s| now_s + before_s + training_s + tail_s);
        let idle_s = match (end_s, self.deadline_s) {
            (Some(end_s), Some(deadline_s)) => (deadline_s - margin_s - end_s).max(0.0),
            _ => 0.0,
        };
        let mut forecast = Forecast {
            steps_done: self.steps_done,
            steps_total: steps_left.map(|steps| self.steps_done.saturating_add(steps)),
            ruled_by,
            step_s: step.map(|step| step.mean_s),
            progress: self.progress,
            left_s: self.deadline_s.map(|deadline_s| (deadline_s - now_s).max(0.0)),
            before_s,
            training_s,
            tail_s,
            margin_s,
            end_s,
            idle_s,
            notes: Vec::new(),
        };
        forecast.notes.extend(self.note(&forecast, room_s));
        forecast
    }

    fn note(&self, forecast: &Forecast, room_s: Option<f64>) -> Option<Note> {
        let (room_s, left_s) = (room_s?, forecast.left_s?);
        let total = forecast.steps_total?;
        if total == 0 && self.steps_done == self.config.steps_done {
            let needed_s = forecast.tail_s + forecast.margin_s;
            return Some(Note::NoTimeForSteps { left_s, before_s: forecast.before_s, needed_s });
        }
        let steps = self.config.steps?;
        match forecast.ruled_by {
            RuledBy::Deadline if total < steps => Some(Note::StepsCut { steps, fit: total }),
            RuledBy::Steps if forecast.idle_s > EARLY_SHARE * self.deadline_s? => {
                let step = self.pace.mixture()?;
                let fit = self.steps_that_fit(room_s, step.mean_s, step);
                Some(Note::EndsEarly {
                    steps,
                    would_fit: self.steps_done.saturating_add(fit),
                    idle_s: forecast.idle_s,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BucketConfig, BudgetConfig, PhaseCosts, SamplePlan, ValidationPlan};
    use super::*;

    const DEADLINE_S: f64 = 1000.0;

    /// Steps of 1 s before a deadline of 1000 s, and these phases.
    fn budget(phases: PhaseCosts) -> Budget {
        Budget::new(config(phases)).unwrap()
    }

    fn config(phases: PhaseCosts) -> BudgetConfig {
        BudgetConfig {
            deadline_s: Some(DEADLINE_S),
            buckets: vec![BucketConfig { step_s: Some(1.0), share: None }],
            phases,
            ..BudgetConfig::default()
        }
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9 * expected.abs().max(1.0), "{got}, expected {expected}");
    }

    /// 2 % of the deadline within 0.1 and 0.75 s, or what the job says.
    #[test]
    fn seconds_for_ending_the_process() {
        let closing = |deadline_s, margin_s| {
            let config = BudgetConfig { deadline_s, margin_s, ..config(PhaseCosts::default()) };
            Budget::new(config).unwrap().closing_s()
        };
        for (deadline_s, expected) in [(2.0, 0.1), (20.0, 0.4), (1000.0, 0.75)] {
            close(closing(Some(deadline_s), None), expected);
        }
        close(closing(Some(1000.0), Some(3.0)), 3.0);
    }

    /// Three and a half standard deviations of all phases of the tail together, a fifth of each where nothing was measured.
    #[test]
    fn the_margin_grows_with_what_is_uncertain() {
        let phases = PhaseCosts::default().with(Phase::FinalSave, 3.0).with(Phase::ScoreAfter, 4.0);
        let budget = budget(phases.with(Phase::Load, 10.0));
        close(budget.tail().0, 7.0);
        close(budget.tail().1, 0.2 * (3.0_f64 * 3.0 + 4.0 * 4.0).sqrt());
        close(budget.margin_s(), 0.75 + 3.5 * 0.2 * 5.0);
        close(budget.room_s(0.0).unwrap(), DEADLINE_S - 10.0 - 7.0 - budget.margin_s());
    }

    /// A phase that runs counts with its rest, one that is over no more, and none of the preparation once training began.
    #[test]
    fn room_is_what_the_phases_to_come_leave() {
        let phases = PhaseCosts::default().with(Phase::Load, 10.0).with(Phase::Cache, 5.0);
        let mut budget = budget(phases.with(Phase::Report, 2.0));
        let fixed_s = 2.0 + budget.margin_s();
        let room = |budget: &Budget, now_s: f64| budget.room_s(now_s).unwrap();
        close(room(&budget, 0.0), DEADLINE_S - 15.0 - fixed_s);
        budget.phase_started(Phase::Load, 0.0);
        close(room(&budget, 4.0), DEADLINE_S - 4.0 - 6.0 - 5.0 - fixed_s);
        close(room(&budget, 12.0), DEADLINE_S - 12.0 - 5.0 - fixed_s);
        budget.phase_finished(Phase::Load, 14.0);
        close(room(&budget, 14.0), DEADLINE_S - 14.0 - 5.0 - fixed_s);
        budget.phase_started(Phase::Train, 14.0);
        close(room(&budget, 14.0), DEADLINE_S - 14.0 - fixed_s);
        close(budget.spare_s(14.0), room(&budget, 14.0));
        assert_eq!(budget.spare_s(2.0 * DEADLINE_S), 0.0);
        // A phase of the tail that has begun is no longer kept free for.
        budget.phase_started(Phase::Report, 500.0);
        close(room(&budget, 500.0), DEADLINE_S - 500.0 - 0.75);
    }

    /// What a score before training took against its prediction holds for the one after it, at the speed of today.
    #[test]
    fn a_rehearsed_phase_errs_as_its_rehearsal_did() {
        let phases = PhaseCosts::default().with(Phase::ScoreBefore, 2.0).with(Phase::ScoreAfter, 4.0);
        let mut budget = budget(phases.with(Phase::FinalSample, 8.0));
        budget.phase_started(Phase::ScoreBefore, 0.0);
        budget.phase_finished(Phase::ScoreBefore, 3.0);
        for (slowdown, unrehearsed) in [(1.0, 1.0), (1.5, 1.5), (0.5, 1.0)] {
            budget.slowdown = slowdown;
            let (mean_s, deviation_s) = budget.expected_phase(Phase::ScoreAfter);
            close(mean_s, 4.0 * 3.0 / 2.0 * slowdown);
            close(deviation_s, 0.04 * mean_s);
            // Predicted alone: no cheaper on a machine that has become faster.
            let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSample);
            close(mean_s, 8.0 * unrehearsed);
            close(deviation_s, 0.2 * mean_s);
        }
        // Rounds of samples during training are the better rehearsal.
        budget.slowdown = 1.0;
        budget.config.samples = Some(SamplePlan { every_steps: 10, round_s: 4.0 });
        budget.observe_samples(10.0, 6.0);
        close(budget.expected_phase(Phase::FinalSample).0, 8.0 * 6.0 / 4.0);
        budget.config.samples = None;
        close(budget.expected_phase(Phase::FinalSample).0, 8.0);
    }

    /// The final save errs as those before it did, whatever the speed of the steps.
    #[test]
    fn the_final_save_errs_as_the_others_did() {
        let phases = PhaseCosts::default().with(Phase::FinalSave, 4.0);
        let mut budget = Budget::new(BudgetConfig { save_s: 2.0, ..config(phases) }).unwrap();
        budget.slowdown = 3.0;
        let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSave);
        close(mean_s, 4.0);
        close(deviation_s, 0.2 * 4.0);
        (1..=5).for_each(|k| budget.observe_save(10.0 * f64::from(k), 3.0));
        let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSave);
        close(mean_s, 4.0 * 3.0 / 2.0);
        close(deviation_s, budget.save_deviation() * mean_s);
        // Without a prediction of the others there is nothing to compare: the longer of the two.
        for (final_s, expected_s) in [(4.0, 4.0), (1.0, 3.0)] {
            let phases = PhaseCosts::default().with(Phase::FinalSave, final_s);
            let mut budget = Budget::new(config(phases)).unwrap();
            budget.observe_save(10.0, 3.0);
            close(budget.expected_phase(Phase::FinalSave).0, expected_s);
        }
    }

    /// `(exp(3.5·r) − 1) / 3.5` with r the relative deviation, `√(1 + 4/n)` times as large after n saves, 0.4 at most.
    #[test]
    fn a_spread_seen_in_few_saves_is_doubted() {
        assert_eq!(budget(PhaseCosts::default()).save_deviation(), UNMEASURED_SAVE_DEVIATION);
        for (n, doubt) in [(2_u32, 3.0_f64.sqrt()), (4, 2.0_f64.sqrt()), (400, 1.01_f64.sqrt())] {
            let mut budget = budget(PhaseCosts::default());
            (0..n).for_each(|k| budget.observe_save(f64::from(k), if k % 2 == 0 { 0.99 } else { 1.01 }));
            let mean_s = budget.saves.mean().unwrap();
            let relative = doubt * budget.saves.deviation() / mean_s;
            assert!(relative < 0.4, "{n}");
            let expected = ((3.5 * relative).exp() - 1.0) / 3.5;
            close(budget.save_deviation(), expected.max(budget.saves.recent_excess() / 3.5));
            close(budget.save_high_s(), mean_s * (1.0 + 3.5 * budget.save_deviation()));
        }
        let mut wild = budget(PhaseCosts::default());
        [1.0, 2.0, 1.0, 2.0].into_iter().for_each(|s| wild.observe_save(1.0, s));
        close(wild.save_deviation(), ((3.5_f64 * 0.4).exp() - 1.0) / 3.5);
    }

    /// With a file on disk the final save begins if it ends in time at two standard deviations; without one always.
    #[test]
    fn a_final_save_that_may_be_late_begins_only_where_nothing_was_saved() {
        let phases = PhaseCosts::default().with(Phase::FinalSave, 4.0);
        let mut budget = Budget::new(BudgetConfig { save_s: 4.0, ..config(phases) }).unwrap();
        let allows =
            |budget: &Budget, left_s: f64| budget.clone().allows(Phase::FinalSave, DEADLINE_S - left_s);
        // Nothing trained, nothing to lose.
        assert!(!allows(&budget, 4.0));
        budget.observe_step(1.0, 0, 1.0);
        assert!(allows(&budget, 0.0));
        (1..=3).for_each(|k| budget.observe_save(10.0 * f64::from(k), 4.0));
        let (mean_s, deviation_s) = budget.expected_phase(Phase::FinalSave);
        assert!(deviation_s > 0.1);
        assert!(!allows(&budget, mean_s + deviation_s));
        assert!(!allows(&budget, mean_s + 1.99 * deviation_s));
        assert!(allows(&budget, mean_s + 2.01 * deviation_s));
    }

    /// Two and a half standard deviations and most of the time for ending the process.
    #[test]
    fn a_phase_after_the_training_begins_if_it_ends_in_time() {
        let phases = PhaseCosts::default().with(Phase::Report, 4.0).with(Phase::Load, 1.0);
        let mut budget = budget(phases);
        let least_s = 4.0 + 2.5 * 0.2 * 4.0 + 0.8 * 0.75;
        assert!(budget.allows(Phase::Report, DEADLINE_S - least_s - 0.01));
        assert!(!budget.allows(Phase::Report, DEADLINE_S - least_s + 0.01));
        assert!(budget.allows(Phase::Load, DEADLINE_S));
        let endless = BudgetConfig { deadline_s: None, steps: Some(1), ..config(phases) };
        assert!(Budget::new(endless).unwrap().allows(Phase::Report, 1e9));
    }

    /// A part that is slow as never before may reach into half of the time for ending the process.
    #[test]
    fn a_part_begins_if_it_ends_in_time() {
        let mut part = PartTime::default();
        part.observe(1.0);
        let end_s = DEADLINE_S - 0.75;
        let needed_s = 2.0 * 1.0 - 0.5 * 0.75;
        let mut budget = budget(PhaseCosts::default());
        assert!(budget.allows_part(end_s - needed_s - 0.01, part));
        assert!(!budget.allows_part(end_s - needed_s + 0.01, part));
    }

    /// Four standard deviations, or the largest excess seen, or a sudden slowness: half of the step, or all of it as far as
    /// half a percent of the budget pays for that.
    #[test]
    fn a_step_may_be_slow_and_still_end_in_time() {
        let high_s = |deadline_s: f64, seen: &[f64]| {
            let config = BudgetConfig { deadline_s: Some(deadline_s), ..config(PhaseCosts::default()) };
            let mut budget = Budget::new(config).unwrap();
            seen.iter().for_each(|s| budget.observe_step(1.0, 0, *s));
            let (mean_s, relative) =
                (budget.pace.bucket_mean_s(0).unwrap(), budget.pace.relative_deviation());
            (budget.step_high_s(0).unwrap() / mean_s - 1.0, relative, budget.pace.recent_excess())
        };
        let (excess, relative, _) = high_s(1000.0, &[]);
        close(excess, 4.0 * relative);
        let steady = [1.0; 400];
        for (deadline_s, expected) in [(1000.0, 1.0), (160.0, 0.8), (20.0, 0.5)] {
            close(high_s(deadline_s, &steady).0, expected);
        }
        let mut stalled = vec![1.0; 400];
        stalled.extend([9.0, 1.0]);
        let (excess, relative, recent) = high_s(1000.0, &stalled);
        assert!(recent > 1.9 && recent > 4.0 * relative);
        close(excess, recent);
    }

    /// The number of steps solves `j·a + 2.5·σ·√j ≤ room − first − e`.
    #[test]
    fn the_steps_that_fit_leave_a_reserve() {
        let budget = budget(PhaseCosts::default());
        let step = budget.pace.mixture().unwrap();
        let excess_s = budget.step_high_s(0).unwrap() - step.mean_s;
        for room_s in [3.5, 10.0, 100.0, 900.0] {
            let rest_s = room_s - 1.0 - (step.mean_s + excess_s - step.mean_s);
            let needed_s = |j: f64| j * step.mean_s + 2.5 * step.deviation_s * j.sqrt();
            let fit = budget.steps_that_fit(room_s, 1.0, step);
            let after_first = (fit - 1) as f64;
            assert!(needed_s(after_first) <= rest_s + 1e-9, "{fit} in {room_s} s");
            assert!(needed_s(after_first + 1.0) > rest_s, "{fit} in {room_s} s");
        }
        assert_eq!(budget.steps_that_fit(1.0, 1.0, step), 1);
    }

    /// A save every interval, a round every so many steps up to its share, as long as another one is to come.
    #[test]
    fn saves_samples_and_validation_take_their_share_of_each_step() {
        let of = |config: BudgetConfig, room_s| Budget::new(config).unwrap().overhead_per_step_s(room_s, 1.0);
        let plain = || config(PhaseCosts::default());
        let interval_s = cadence::interval_s(Some(DEADLINE_S), 1.0);
        let saving = || BudgetConfig { save_s: 1.0, ..plain() };
        close(of(saving(), 1.1 * interval_s), 1.0 / interval_s);
        close(of(saving(), 0.9 * interval_s), 0.0);
        for (share, expected) in [(0.5, 0.4), (0.2, 0.25)] {
            let samples = Some(SamplePlan { every_steps: 10, round_s: 4.0 });
            let sampling = || BudgetConfig { samples, sample_share_max: share, ..plain() };
            close(of(sampling(), 10.1), expected);
            close(of(sampling(), 9.9), 0.0);
            let validation = Some(ValidationPlan { every_steps: 10, round_s: 4.0, share_max: share });
            let validating = || BudgetConfig { validation, ..plain() };
            close(of(validating(), 10.1), expected);
            close(of(validating(), 9.9), 0.0);
            let endless = BudgetConfig { deadline_s: None, steps: Some(1), ..validating() };
            close(of(endless, f64::MAX), 0.4);
        }
    }

    #[test]
    fn a_forecast_adds_up() {
        let phases = PhaseCosts::default().with(Phase::Load, 10.0).with(Phase::FinalSave, 4.0);
        let asked = BudgetConfig { steps: Some(100), ..config(phases) };
        let mut budget = Budget::new(asked.clone()).unwrap();
        let forecast = budget.forecast(2.0);
        close(forecast.training_s.unwrap(), 100.0);
        close(forecast.end_s.unwrap(), 2.0 + 10.0 + 100.0 + 4.0);
        close(forecast.idle_s, DEADLINE_S - forecast.margin_s - forecast.end_s.unwrap());
        close(forecast.left_s.unwrap(), DEADLINE_S - 2.0);
        assert!(matches!(forecast.notes[..], [Note::EndsEarly { steps: 100, .. }]), "{:?}", forecast.notes);
        // Less than a twentieth of the budget early is not worth a word.
        for (steps, words) in [(925, 1), (940, 0)] {
            let config = BudgetConfig { steps: Some(steps), ..asked.clone() };
            let mut budget = Budget::new(config).unwrap();
            (0..400).for_each(|_| budget.observe_step(0.0, 0, 1.0));
            budget.steps_done = 0;
            let forecast = budget.forecast(0.0);
            assert_eq!(forecast.notes.len(), words, "{forecast:?}");
        }
        budget.phase_started(Phase::FinalSave, 500.0);
        let forecast = budget.forecast(501.0);
        assert_eq!((forecast.steps_total, forecast.tail_s), (Some(0), 3.0));
    }
}
