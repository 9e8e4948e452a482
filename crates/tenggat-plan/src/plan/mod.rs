//! The plan of a job on a machine: time, memory, price, before anything is rented or loaded.

mod course;
mod memory;
mod phases;
mod table;

pub use course::Course;
pub use memory::Verdict;
pub use phases::{FirstStart, upload_s};
pub use table::{PlanTable, aligned};

use serde::{Deserialize, Serialize};

use crate::budget::{
    BucketConfig, Budget, BudgetConfig, BudgetError, Phase, PhaseCosts, SamplePlan, ValidationPlan,
};
use crate::cost::{Fit, Machine};
use crate::evidence::{Evidence, step_range};
use crate::forecast::{BucketTime, Forecast, LargestBucket};
use crate::job::{PlanJob, SampleJob, Storage, ValidationJob};
use crate::program::Program;
use crate::quantity::format_duration;
use crate::range::Range;
use crate::reported_speeds::Report;
use course::{Costs, counted, rehearsed};
use phases::Scene;

/// The plan of a job on one machine by one program. `docs/plan-json.md` describes its JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the machine.
    pub machine: String,
    /// Who trains.
    pub program: Program,
    /// Name of the model.
    pub model: String,
    /// Whether rates of the machine are assumed, not measured.
    pub assumed: bool,
    /// Likely step times by bucket.
    pub buckets: Vec<BucketTime>,
    /// Seconds per step, averaged over the buckets by share.
    pub mean_step_s: Range,
    /// What the range of the step time stands on.
    pub evidence: Evidence,
    /// The step in the largest bucket.
    pub largest_bucket: LargestBucket,
    /// Likely durations of the phases but the training, seconds.
    pub phases: PhaseCosts,
    /// Likely seconds of one save while training.
    pub save_s: f64,
    /// Likely seconds of one round of samples; 0 if there are none.
    pub sample_round_s: f64,
    /// Likely seconds of one measurement of the validation pictures; 0 if there are none.
    pub validation_s: f64,
    /// Steps of the run: those asked for, or those that fit the budget. `None` if neither is given.
    pub steps: Option<u64>,
    /// Steps that fit the budget, at the likely step time.
    pub steps_that_fit: Option<u64>,
    /// Steps of the run at the slow and at the fast end of the step time's range, where the budget decides.
    pub steps_range: Option<[u64; 2]>,
    /// What the training consists of, at the likely step time.
    pub training: Option<Course>,
    /// Seconds of the whole run.
    pub total_s: Option<Range>,
    /// The budget, seconds.
    pub budget_s: Option<f64>,
    /// Seconds of the budget that stay unused.
    pub idle_s: Option<f64>,
    /// What a first start on a machine takes besides; in no total.
    pub first_start: FirstStart,
    /// How it fits the memory, at the likely peak.
    pub fit: Fit,
    /// Peak of device memory, bytes.
    pub memory_bytes: Range,
    /// Whether it fits.
    pub verdict: Verdict,
    /// What the run costs, in the currency of the price per hour.
    pub price: Option<Range>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What is asked besides the job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PlanOptions {
    /// Time for everything, seconds.
    pub budget_s: Option<f64>,
    /// Price of the machine per hour.
    pub price_per_hour: Option<f64>,
    /// Storage.
    pub storage: Storage,
    /// Speeds that were measured by the user.
    pub measured: Vec<Report>,
}

/// A job that cannot be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// No bucket.
    #[error(
        "the job has no images, so there is no step to plan; check `folder_path` and `resolution` of its \
         data sets"
    )]
    NoBuckets,
    /// A model that tenggat does not train.
    #[error(
        "tenggat does not train {model} yet; name a program that does with --trainer, such as ai-toolkit"
    )]
    NotTrainedHere {
        /// Name of the model.
        model: String,
    },
    /// A budget that makes no sense.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

impl Plan {
    /// Plans a job on a machine.
    ///
    /// # Errors
    /// [`PlanError`] if the job has no buckets, if its model is one that tenggat does not train and tenggat
    /// is to train it, or if the budget makes no sense. A job that does not fit into memory is no error:
    /// the plan then says which one would, and gives the times that the job would have.
    pub fn new(
        job: &PlanJob,
        machine: &Machine,
        program: Program,
        options: &PlanOptions,
    ) -> Result<Self, PlanError> {
        if program == Program::Tenggat && !(job.model.is_trained_here() && job.controls.is_empty()) {
            return Err(PlanError::NotTrainedHere { model: job.model.name.clone().into_owned() });
        }
        let mut forecast = Forecast::new(job, machine, program).ok_or(PlanError::NoBuckets)?;
        let likely_s = forecast.mean_step_s();
        let (mean_step_s, evidence) = step_range(job, machine, program, likely_s, &options.measured);
        // A measured speed moves every bucket alike.
        forecast.correct(mean_step_s.likely / likely_s);
        let scene = Scene { job, machine, storage: &options.storage, program };
        let (memory_bytes, verdict) = memory::verdict(job, machine, program, &forecast.fit);
        let mut plan = Self {
            machine: machine.name.clone(),
            program,
            model: job.model.name.clone().into_owned(),
            assumed: machine.assumed,
            buckets: forecast.buckets,
            mean_step_s,
            evidence,
            largest_bucket: forecast.largest,
            phases: scene.costs(),
            save_s: scene.save_s(),
            sample_round_s: scene.samples_s(),
            validation_s: job.validation.map_or(0.0, |validation| scene.validation_s(&validation)),
            steps: job.steps,
            steps_that_fit: None,
            steps_range: None,
            training: None,
            total_s: None,
            budget_s: options.budget_s,
            idle_s: None,
            first_start: scene.first_start(0),
            fit: forecast.fit,
            memory_bytes,
            verdict,
            price: None,
            notes: Vec::new(),
        };
        plan.lay_out(job)?;
        plan.first_start = scene.first_start(plan.training.map_or(0, |training| training.saves));
        plan.price = options.price_per_hour.zip(plan.total_s).map(|(per_hour, s)| s.times(per_hour / 3600.0));
        plan.note(job);
        Ok(plan)
    }

    /// The budget of the run, with this plan's likely figures.
    pub fn budget_config(&self, job: &PlanJob) -> BudgetConfig {
        let bucket =
            |time: &BucketTime| BucketConfig { step_s: Some(time.step_s), share: Some(time.bucket.share) };
        let every = |samples: &&SampleJob| samples.every_steps > 0;
        BudgetConfig {
            deadline_s: self.budget_s,
            steps: job.steps,
            fill: job.fill && self.budget_s.is_some(),
            phases: self.phases,
            save_s: self.save_s,
            buckets: self.buckets.iter().map(bucket).collect(),
            samples: job
                .samples
                .as_ref()
                .filter(every)
                .map(|samples| SamplePlan { every_steps: samples.every_steps, round_s: self.sample_round_s }),
            validation: job.validation.map(|ValidationJob { every_steps, share_max, .. }| ValidationPlan {
                every_steps,
                round_s: self.validation_s,
                share_max,
            }),
            ..BudgetConfig::default()
        }
    }

    fn costs(&self) -> Costs {
        Costs {
            step_s: self.mean_step_s.likely,
            save_s: self.save_s,
            round_s: self.sample_round_s,
            validation_s: self.validation_s,
        }
    }

    /// Steps and durations: counted, or by the same controller that will lead the run.
    fn lay_out(&mut self, job: &PlanJob) -> Result<(), PlanError> {
        match (self.budget_s, job.steps) {
            (Some(budget_s), _) => self.lay_out_within(budget_s, job)?,
            (None, Some(steps)) => {
                let course = counted(job, steps, self.costs());
                self.training = Some(course);
                self.total_s = Some(self.total_of(&course));
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn lay_out_within(&mut self, budget_s: f64, job: &PlanJob) -> Result<(), PlanError> {
        let config = self.budget_config(job);
        let without_steps = BudgetConfig { steps: None, fill: false, ..config.clone() };
        self.steps_that_fit = Budget::new(without_steps)?.forecast(0.0).steps_total;
        let forecast = Budget::new(config.clone())?.forecast(0.0);
        self.steps = forecast.steps_total;
        self.notes.extend(forecast.notes.iter().map(ToString::to_string));
        let [slow, fast] = [self.mean_step_s.high, self.mean_step_s.low].map(|s| self.steps_at(s, &config));
        self.steps_range = slow.transpose()?.zip(fast.transpose()?).map(|(slow, fast)| [slow, fast]);
        let course = match rehearsed(job, &config, self.costs())? {
            Some(course) => course,
            // Too many to rehearse: what the controller expects, without telling its parts apart.
            None => Course {
                steps: forecast.steps_total.unwrap_or(0),
                steps_s: forecast.training_s.unwrap_or(0.0),
                ..Course::default()
            },
        };
        if self.steps.is_some() && course.steps > 0 {
            self.steps = Some(course.steps);
        }
        // The step time decides how many steps there are; the end is at the budget's, or earlier if all are
        // done.
        let total = self.total_of(&course);
        let ends = if course.steps == 0 { Range::exactly(total.likely) } else { total };
        self.total_s = Some(ends.map(|s| s.min(budget_s.max(total.likely))));
        self.idle_s = Some((budget_s - total.likely).max(0.0));
        self.training = Some(course);
        Ok(())
    }

    /// Steps of the run if its steps take `step_s` on average; `None` if a step takes no time.
    fn steps_at(&self, step_s: f64, config: &BudgetConfig) -> Option<Result<u64, BudgetError>> {
        let factor = Some(step_s / self.mean_step_s.likely).filter(|f| f.is_finite() && *f > 0.0)?;
        let slower =
            |bucket: &BucketConfig| BucketConfig { step_s: bucket.step_s.map(|s| s * factor), ..*bucket };
        let config = BudgetConfig { buckets: config.buckets.iter().map(slower).collect(), ..config.clone() };
        let budget = Budget::new(config);
        budget.map(|mut budget| budget.forecast(0.0).steps_total).transpose()
    }

    /// Seconds of the whole run. What runs on the card (steps, samples, measurements) is as uncertain as a
    /// step; loading and saving are not.
    fn total_of(&self, course: &Course) -> Range {
        let drawn = course.last_round_is_drawn;
        let on_card = [Phase::ScoreBefore, Phase::FirstSample, Phase::FinalSample, Phase::ScoreAfter];
        let seconds = |phase: Phase| match phase {
            Phase::FinalSample if drawn => 0.0,
            phase => self.phases.get(phase),
        };
        let (on, beside): (Vec<Phase>, Vec<Phase>) =
            Phase::ALL.into_iter().partition(|phase| on_card.contains(phase));
        let sum = |phases: Vec<Phase>| phases.into_iter().map(seconds).sum::<f64>();
        let card_s = course.total_s() - course.saves_s + sum(on);
        let beside_s = course.saves_s + sum(beside);
        let step = self.mean_step_s;
        let ends = [step.low / step.likely, step.high / step.likely];
        let ends = if ends.iter().all(|end| end.is_finite()) { ends } else { [1.0; 2] };
        Range::around(card_s, ends).plus(beside_s)
    }

    /// Seconds of the phases but the training.
    pub fn other_phases_s(&self) -> f64 {
        Phase::ALL.into_iter().map(|phase| self.phases.get(phase)).sum()
    }

    fn note(&mut self, job: &PlanJob) {
        if self.verdict == Verdict::TooLarge {
            let advice = match (&self.fit.nearest, self.program) {
                (Some(nearest), _) => {
                    let changes: Vec<String> = nearest.changes.iter().map(ToString::to_string).collect();
                    format!("; the nearest job that fits has {}", changes.join(", "))
                }
                (None, Program::Tenggat) => "; no change of precision, rank or batch makes it fit".to_owned(),
                _ => String::new(),
            };
            self.notes.push(format!("does not fit into {}{advice}", self.machine));
        }
        self.note_samples();
        let few = self.training.is_some_and(|training| training.steps < 100 && training.steps > 0);
        let cut = job.steps.is_none_or(|steps| self.steps.is_some_and(|n| n < steps));
        if self.budget_s.is_some() && few && cut && self.notes.is_empty() {
            self.notes.push(format!(
                "only about {} steps fit the budget; a lower resolution, a coarser base or a longer budget \
                 would give more",
                self.steps.unwrap_or(0)
            ));
        }
        if phases::damages(job.precision) && job.ara_rank.is_none() {
            self.notes.push(format!(
                "{} without a recovery adapter damages the base; give one as `qtype: {}|path`",
                job.precision, job.precision
            ));
        }
    }

    /// Rounds of samples that the budget leaves out, and those that take much of the time.
    fn note_samples(&mut self) {
        let Some(training) = self.training else { return };
        let rounds = |n: u64| format!("{n} round{} of samples", if n == 1 { "" } else { "s" });
        if training.sample_rounds_left_out > 0 {
            self.notes.push(format!(
                "the budget leaves no time for {} of {} during training; each takes {}",
                training.sample_rounds_left_out,
                rounds(training.sample_rounds + training.sample_rounds_left_out),
                format_duration(self.sample_round_s)
            ));
        }
        let final_s = if training.last_round_is_drawn { 0.0 } else { self.phases.get(Phase::FinalSample) };
        let samples_s = training.samples_s + self.phases.get(Phase::FirstSample) + final_s;
        let share = self.total_s.map_or(0.0, |total| samples_s / total.likely);
        if share > WORTH_A_NOTE {
            self.notes.push(format!(
                "samples take {:.0} % of this run; fewer, or a larger `sample_every`, would save most of it",
                100.0 * share
            ));
        }
    }
}

/// Share of a run's time in samples that is worth a note.
const WORTH_A_NOTE: f64 = 0.25;
