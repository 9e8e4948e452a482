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
/// ... and by as much as its whole mean (another job arrives on the machine) as far as this share of the
/// budget pays for it.
const SUDDEN_SHARE: f64 = 0.005;
/// Relative deviation assumed of saves before the first one.
const UNMEASURED_SAVE_DEVIATION: f64 = 0.2;
/// Share of the time for ending the process that an unusually slow part may reach into: such parts are rare.
const SLACK_IN_CLOSING: f64 = 0.5;
/// Standard deviations by which a single step may be slow and still end inside the time left.
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
    /// logarithmic scale; and a spread seen in `n` saves may itself be wrong, for which it is raised by `√(1
    /// + 4/n)`.
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
        // Rounds of samples during training are the better rehearsal of the last one: more of them, and
        // later.
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

    /// Seconds kept free before the deadline: for ending the process, and three and a half standard
    /// deviations of what is still to come.
    pub(super) fn margin_s(&self) -> f64 {
        self.closing_s() + TAIL_DEVIATIONS * self.tail().1
    }

    /// Seconds that steps may still take, negative if the tail no longer fits; `None` without a deadline.
    pub(super) fn time_left_s(&self, now_s: f64) -> Option<f64> {
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

    /// Seconds to spare for more work in the present phase, never negative: what is left once the phases that
    /// have not begun and the margin are set aside. Infinite without a deadline.
    pub fn spare_s(&self, now_s: f64) -> f64 {
        let now_s = sane_s(now_s).unwrap_or(self.now_s).max(self.now_s);
        self.time_left_s(now_s).map_or(f64::INFINITY, |s| s.max(0.0))
    }

    /// Whether one more part of the present phase may begin, given what its parts took so far.
    ///
    /// Long phases after the training (scoring, sample pictures) should be made of parts and ask before each.
    /// The phase then ends in time even if the machine has become slower, and it may add parts that were
    /// not planned while there is time for them.
    pub fn allows_part(&mut self, now_s: f64, part: PartTime) -> bool {
        let now_s = self.tick(now_s);
        let most_s = part.hardly_more_s();
        let lent_s = (most_s - part.usual_s()).min(SLACK_IN_CLOSING * self.closing_s());
        most_s - lent_s <= self.spare_s(now_s)
    }

    /// Whether a phase after the last step may begin.
    ///
    /// The final save may begin if it is all but certain to end before the deadline, or if steps were done
    /// and nothing was saved before: then a late file is better than none. The others may begin if they
    /// would end before the time for ending the process; phases before the training always may.
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

    /// Seconds that the next step must be able to take inside the time left; `None` if nothing is known of
    /// steps.
    pub(super) fn step_high_s(&self, bucket: usize) -> Option<f64> {
        let mean_s = self.pace.bucket_mean_s(bucket)?;
        Some(mean_s + self.step_excess_s(mean_s))
    }

    /// Seconds by which a step of `mean_s` must be able to exceed its mean: for its spread, for a slowness
    /// seen recently, for one never seen.
    fn step_excess_s(&self, mean_s: f64) -> f64 {
        let spread = STEP_DEVIATIONS * self.pace.relative_deviation();
        let paid_s = SUDDEN_SHARE * self.deadline_s.unwrap_or(0.0);
        let sudden_s = paid_s.clamp(SUDDEN_SLOWNESS * mean_s, mean_s);
        (mean_s * spread.max(self.pace.recent_excess())).max(sudden_s)
    }

    /// How many steps fit into `time_left_s`, the next one taking `first_s`.
    ///
    /// Solves `j·a + z·σ·√j = left − first − e` for the j steps after it. The time per step a includes its
    /// share of saves and samples as long as more than one of them is still to come; e is the excess over
    /// the mean that a step of the slowest bucket must be allowed before it may begin, so that the step
    /// counted as the last is indeed begun, whatever its bucket.
    pub(super) fn steps_that_fit(&self, time_left_s: f64, first_s: f64, step: StepTime) -> u64 {
        let slowest_s = self.pace.slowest_bucket_s().unwrap_or(first_s);
        let excess_s = slowest_s + self.step_excess_s(slowest_s) - step.mean_s;
        let rest_s = time_left_s - first_s - excess_s;
        if rest_s <= 0.0 {
            return 1;
        }
        let each_s = step.mean_s + self.overhead_per_step_s(time_left_s, step.mean_s);
        let reserve_s = COUNT_DEVIATIONS * step.deviation_s;
        let root = ((reserve_s * reserve_s + 4.0 * each_s * rest_s).sqrt() - reserve_s) / (2.0 * each_s);
        // The cast saturates, so that an absurdly small step time cannot overflow.
        1_u64.saturating_add((root * root) as u64)
    }

    /// Seconds of periodic saves, samples and validation per step over the next `time_left_s`.
    fn overhead_per_step_s(&self, time_left_s: f64, step_s: f64) -> f64 {
        let save_s = self.save_s().unwrap_or(0.0);
        let interval_s = cadence::interval_s(self.deadline_s, save_s);
        let saves = if time_left_s > interval_s { save_s * step_s / interval_s } else { 0.0 };
        let samples = self.config.samples.map_or(0.0, |plan| {
            let every = plan.every_steps.max(1) as f64;
            let due = time_left_s > every * step_s;
            let round_s = self.round_s().unwrap_or(0.0);
            if due { (round_s / every).min(beside(self.config.sample_share_max) * step_s) } else { 0.0 }
        });
        let validation = self.config.validation.filter(|plan| plan.every_steps > 0).map_or(0.0, |plan| {
            let every = plan.every_steps as f64;
            let round_s = self.validations.mean().or(sane_s(plan.round_s)).unwrap_or(0.0);
            // Without a deadline nothing is left out.
            let most_s =
                if self.deadline_s.is_some() { beside(plan.share_max) * step_s } else { f64::INFINITY };
            if time_left_s > every * step_s { (round_s / every).min(most_s) } else { 0.0 }
        });
        saves + samples + validation
    }

    /// Steps still to come as far as anything limits them: `None` if only an unknown step time does.
    pub(super) fn steps_left(&self, time_left_s: Option<f64>) -> (Option<u64>, RuledBy) {
        let asked = self.config.steps.map(|steps| steps.saturating_sub(self.steps_done));
        let fit = match (time_left_s, self.pace.mixture()) {
            (Some(time_left_s), _) if time_left_s <= 0.0 => Some(0),
            (Some(time_left_s), Some(step)) if time_left_s < step.mean_s => Some(0),
            (Some(time_left_s), Some(step)) => Some(self.steps_that_fit(time_left_s, step.mean_s, step)),
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
        let time_left_s = self.time_left_s(now_s);
        let (mut steps_left, ruled_by) = self.steps_left(time_left_s);
        if Phase::TAIL.into_iter().any(|phase| self.phases.begun(phase)) {
            steps_left = Some(0);
        }
        let step = self.pace.mixture();
        let training_s = steps_left.zip(step).map(|(steps, step)| {
            let each_s = step.mean_s + self.overhead_per_step_s(time_left_s.unwrap_or(f64::MAX), step.mean_s);
            let needed_s = steps as f64 * each_s;
            time_left_s.map_or(needed_s, |time_left_s| needed_s.min(time_left_s.max(0.0)))
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
        forecast.notes.extend(self.note(&forecast, time_left_s));
        forecast
    }

    fn note(&self, forecast: &Forecast, time_left_s: Option<f64>) -> Option<Note> {
        let (time_left_s, left_s) = (time_left_s?, forecast.left_s?);
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
                let fit = self.steps_that_fit(time_left_s, step.mean_s, step);
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
mod tests;
