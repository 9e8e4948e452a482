//! The course of a training: how many steps, rounds of samples, measurements and saves, and what they take.
//!
//! Without a budget these are counted. With one they are found by rehearsal: the controller that will lead
//! the run is asked before each step, on a clock that moves by the predicted times.

use serde::{Deserialize, Serialize};

use crate::budget::{Budget, BudgetConfig, BudgetError, Decision, Phase, SampleVerdict};
use crate::job::PlanJob;

/// The course of a training.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Course {
    /// Steps.
    pub steps: u64,
    /// Seconds in steps alone.
    pub steps_s: f64,
    /// Rounds of samples between the first step and the last.
    pub sample_rounds: u64,
    /// Seconds in them.
    pub samples_s: f64,
    /// Rounds that are due and left out, because the budget has no time for them.
    pub sample_rounds_left_out: u64,
    /// Measurements of the validation pictures.
    pub validations: u64,
    /// Seconds in them.
    pub validations_s: f64,
    /// Files written while training.
    pub saves: u64,
    /// Seconds in them.
    pub saves_s: f64,
    /// Whether the round of the last step is among `sample_rounds`, so that none follows the training.
    pub last_round_is_drawn: bool,
}

impl Course {
    /// Seconds from the first step to the end of the last, with all that is done between.
    pub fn total_s(&self) -> f64 {
        self.steps_s + self.samples_s + self.validations_s + self.saves_s
    }
}

/// Predicted seconds of each part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    pub step_s: f64,
    pub save_s: f64,
    pub round_s: f64,
    pub validation_s: f64,
}

/// A course without a budget: everything that the job names.
pub(super) fn counted(job: &PlanJob, steps: u64, costs: Costs) -> Course {
    let samples = job.samples.as_ref().filter(|samples| samples.every_steps > 0);
    // The round that is due at the last step is the last one, which is counted as a phase of its own.
    let rounds = samples.map_or(0, |samples| {
        let due = |steps: u64| steps / samples.every_steps;
        let early = due(samples.start_step.saturating_sub(1).min(steps));
        let all = due(if samples.last { steps.saturating_sub(1) } else { steps });
        all.saturating_sub(early)
    });
    let validations = job.validation.map_or(0, |validation| {
        let first = u64::from(steps > 0 && validation.every_steps != 1);
        first + steps.checked_div(validation.every_steps).unwrap_or(0)
    });
    let saves = steps.checked_div(job.save_every).unwrap_or(0);
    Course {
        steps,
        steps_s: steps as f64 * costs.step_s,
        sample_rounds: rounds,
        samples_s: rounds as f64 * costs.round_s,
        validations,
        validations_s: validations as f64 * costs.validation_s,
        saves,
        saves_s: saves as f64 * costs.save_s,
        ..Course::default()
    }
}

/// Most steps that are rehearsed; a run of more is long enough for an estimate.
const REHEARSED_STEPS: u64 = 10_000;

/// A course under a budget, rehearsed. `None` if it would be too long to rehearse.
///
/// # Errors
/// [`BudgetError`] if the budget makes no sense.
pub(super) fn rehearsed(
    job: &PlanJob,
    config: &BudgetConfig,
    costs: Costs,
) -> Result<Option<Course>, BudgetError> {
    let mut budget = Budget::new(config.clone())?;
    if budget.forecast(0.0).steps_total.is_none_or(|steps| steps > REHEARSED_STEPS) {
        return Ok(None);
    }
    let mut now_s = 0.0;
    for phase in Phase::ALL.into_iter().filter(|phase| *phase < Phase::Train) {
        let takes_s = config.phases.get(phase);
        if takes_s > 0.0 {
            budget.phase_started(phase, now_s);
            now_s += takes_s;
            budget.phase_finished(phase, now_s);
        }
    }
    budget.phase_started(Phase::Train, now_s);
    Ok(Some(train(job, config, costs, &mut budget, now_s)))
}

fn train(job: &PlanJob, config: &BudgetConfig, costs: Costs, budget: &mut Budget, began_s: f64) -> Course {
    let (mut now_s, mut course) = (began_s, Course::default());
    let mut turns = Turns::new(config);
    // Bounded, for a clock that does not move: a step, or a save, of no time at all.
    for _ in 0..2 * REHEARSED_STEPS {
        let bucket = turns.bucket();
        match budget.decide(now_s, bucket) {
            Decision::Finish(_) => break,
            Decision::SaveLast => {
                now_s += costs.save_s;
                budget.observe_save(now_s, costs.save_s);
                course.saves += 1;
            }
            Decision::Step { .. } => {
                let step_s = config.buckets.get(bucket).and_then(|b| b.step_s).unwrap_or(costs.step_s);
                now_s += step_s;
                budget.observe_step(now_s, bucket, step_s);
                turns.taken(bucket);
                course.steps += 1;
                course.steps_s += step_s;
                now_s = beside_the_step(job, costs, budget, now_s, &mut course);
            }
        }
    }
    course.validations_s = course.validations as f64 * costs.validation_s;
    course.samples_s = course.sample_rounds as f64 * costs.round_s;
    course.saves_s = course.saves as f64 * costs.save_s;
    course
}

/// What is due after a step: measurement, numbered file, samples. Returns the moment after it.
fn beside_the_step(
    job: &PlanJob,
    costs: Costs,
    budget: &mut Budget,
    mut now_s: f64,
    course: &mut Course,
) -> f64 {
    let done = course.steps;
    let is_due = |every: u64| every > 0 && done.is_multiple_of(every);
    if let Some(validation) = &job.validation
        && (done == 1 || is_due(validation.every_steps))
        && budget.allows_validation(now_s)
    {
        now_s += costs.validation_s;
        budget.observe_validation(now_s, costs.validation_s);
        course.validations += 1;
    }
    if is_due(job.save_every) && budget.allows_save(now_s) {
        now_s += costs.save_s;
        budget.observe_save(now_s, costs.save_s);
        course.saves += 1;
    }
    if let Some(samples) = &job.samples
        && is_due(samples.every_steps)
        && done >= samples.start_step
    {
        if budget.allows_samples(now_s) == SampleVerdict::Go {
            now_s += costs.round_s;
            budget.observe_samples(now_s, costs.round_s);
            course.sample_rounds += 1;
            course.last_round_is_drawn = true;
            return now_s;
        }
        course.sample_rounds_left_out += 1;
    }
    course.last_round_is_drawn = false;
    now_s
}

/// Buckets in turn, each as often as its share says.
struct Turns {
    shares: Vec<f64>,
    owed: Vec<f64>,
}

impl Turns {
    fn new(config: &BudgetConfig) -> Self {
        let sane = |share: Option<f64>| share.filter(|s| s.is_finite() && *s > 0.0).unwrap_or(0.0);
        let shares: Vec<f64> = config.buckets.iter().map(|bucket| sane(bucket.share)).collect();
        let sum: f64 = shares.iter().sum();
        let shares: Vec<f64> = shares.iter().map(|share| share / sum.max(f64::MIN_POSITIVE)).collect();
        Self { owed: shares.clone(), shares }
    }

    /// The bucket that is owed most.
    fn bucket(&self) -> usize {
        let most = self.owed.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        most.map_or(0, |(bucket, _)| bucket)
    }

    fn taken(&mut self, bucket: usize) {
        self.owed.iter_mut().zip(&self.shares).for_each(|(owed, share)| *owed += share);
        if let Some(owed) = self.owed.get_mut(bucket) {
            *owed -= 1.0;
        }
    }
}
