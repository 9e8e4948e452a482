//! The plan of a job on a machine: time, memory, price, before anything is rented or loaded.

mod job;
mod phases;
mod table;

pub use job::{BucketShape, PlanJob, SampleJob, Storage, Surroundings, ValidationJob};
pub use phases::upload_s;
pub use table::PlanTable;
pub(crate) use table::aligned;

use serde::{Deserialize, Serialize};

use crate::budget::{
    BucketConfig, Budget, BudgetConfig, BudgetError, Forecast, Phase, PhaseCosts, RuledBy, SamplePlan,
    ValidationPlan,
};
use crate::cost::{Fit, Machine, OpClass, fit};
use crate::trainer::Trainer;
use phases::Scene;

/// A step in one bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BucketTime {
    /// Which bucket.
    pub bucket: BucketShape,
    /// Image tokens per picture.
    pub image_tokens: u64,
    /// Seconds per step.
    pub step_s: f64,
}

/// The plan of a job on one machine by one trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the machine.
    pub machine: String,
    /// Who trains.
    pub trainer: Trainer,
    /// Whether rates of the machine are assumed, not measured.
    pub assumed: bool,
    /// Step times by bucket.
    pub buckets: Vec<BucketTime>,
    /// Seconds per step, averaged by share.
    pub step_s: f64,
    /// Seconds of a step in the largest bucket by kind of work; empty for other trainers.
    pub step_by_class: Vec<(OpClass, f64)>,
    /// TFLOP of a step in the largest bucket.
    pub step_tflop: f64,
    /// Durations of the phases but the training.
    pub phases: PhaseCosts,
    /// Seconds of one save while training.
    pub save_s: f64,
    /// Seconds of one round of samples; 0 if there are none.
    pub sample_round_s: f64,
    /// Seconds of one measurement of the validation pictures; 0 if there are none.
    pub validation_s: f64,
    /// Steps of the run: those asked for, or those that fit the budget. `None` if neither is given.
    pub steps: Option<u64>,
    /// Steps that fit the budget.
    pub steps_that_fit: Option<u64>,
    /// Seconds of training, with its saves and samples.
    pub training_s: Option<f64>,
    /// Seconds of the whole run.
    pub total_s: Option<f64>,
    /// The budget, seconds.
    pub budget_s: Option<f64>,
    /// How it fits the memory.
    pub fit: Fit,
    /// What the run costs.
    pub price: Option<f64>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What is asked besides the job.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PlanOptions {
    /// Time for everything, seconds.
    pub budget_s: Option<f64>,
    /// Price of the machine per hour.
    pub price_per_hour: Option<f64>,
    /// Storage.
    pub storage: Storage,
}

/// A job that cannot be planned.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// No bucket.
    #[error(
        "the job has no pictures, so there is no step to plan; check `folder_path` and `resolution` of its data sets"
    )]
    NoBuckets,
    /// A budget that makes no sense.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

impl Plan {
    /// Plans a job on a machine.
    ///
    /// # Errors
    /// [`PlanError`] if the job has no buckets or the budget makes no sense. A job that does not fit into memory is
    /// no error: the plan then says which one would, and gives the times that the job would have.
    pub fn new(
        job: &PlanJob,
        machine: &Machine,
        trainer: Trainer,
        options: &PlanOptions,
    ) -> Result<Self, PlanError> {
        let largest = job.largest_bucket().ok_or(PlanError::NoBuckets)?;
        let adapt =
            |bucket: &BucketShape| trainer.adapt(&job.step_config(bucket, machine.activation_bytes), machine);
        let mut fit = fit(&adapt(largest), machine, job.memory_limit_bytes);
        if trainer == Trainer::AiToolkit {
            // Only tenggat chooses how many blocks keep their activations, and knows the changes that make a job fit.
            fit.config = adapt(largest);
            fit.memory = fit.config.memory(machine);
            fit.nearest = None;
        }
        let crate::cost::StepConfig { kept_blocks, result_blocks, .. } = fit.config;
        let time = |bucket: &BucketShape| {
            let config = crate::cost::StepConfig { kept_blocks, result_blocks, ..adapt(bucket) };
            let step_s = trainer.step_seconds(&config, machine);
            BucketTime { bucket: *bucket, image_tokens: config.shape.image_tokens, step_s }
        };
        let buckets: Vec<BucketTime> = job.buckets.iter().map(time).collect();
        let scene = Scene { job, machine, storage: &options.storage, trainer, config: fit.config };
        let work = fit.config.work();
        let own = trainer == Trainer::Tenggat;
        let mut plan = Self {
            machine: machine.name.clone(),
            trainer,
            assumed: machine.assumed,
            step_s: mean_step_s(&buckets),
            step_by_class: if own { machine.rates.by_class(&work) } else { Vec::new() },
            step_tflop: work.flops() / 1e12,
            buckets,
            phases: scene.costs(),
            save_s: scene.save_s(),
            sample_round_s: job.samples.map_or(0.0, |samples| scene.round_s(&samples)),
            validation_s: job.validation.map_or(0.0, |validation| scene.validation_s(&validation)),
            steps: job.steps,
            steps_that_fit: None,
            training_s: None,
            total_s: None,
            budget_s: options.budget_s,
            fit,
            price: None,
            notes: Vec::new(),
        };
        plan.lay_out(job)?;
        plan.price = options.price_per_hour.zip(plan.total_s).map(|(per_hour, s)| per_hour * s / 3600.0);
        plan.note(job);
        Ok(plan)
    }

    /// The budget of the run, with this plan's predictions.
    pub fn budget_config(&self, job: &PlanJob) -> BudgetConfig {
        let bucket =
            |time: &BucketTime| BucketConfig { step_s: Some(time.step_s), share: Some(time.bucket.share) };
        let every = |samples: &SampleJob| samples.every_steps > 0;
        BudgetConfig {
            deadline_s: self.budget_s,
            steps: job.steps,
            fill: job.fill && self.budget_s.is_some(),
            phases: self.phases,
            save_s: self.save_s,
            buckets: self.buckets.iter().map(bucket).collect(),
            samples: job
                .samples
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

    /// Steps and durations, by the same controller that will lead the run.
    fn lay_out(&mut self, job: &PlanJob) -> Result<(), PlanError> {
        match (self.budget_s, job.steps) {
            (Some(_), _) => {
                let config = self.budget_config(job);
                let without_steps = BudgetConfig { steps: None, fill: false, ..config.clone() };
                self.steps_that_fit = Budget::new(without_steps)?.forecast(0.0).steps_total;
                let forecast = Budget::new(config)?.forecast(0.0);
                self.steps = forecast.steps_total;
                self.training_s = forecast.training_s;
                self.total_s = forecast.end_s;
                self.notes.extend(forecast.notes.iter().map(ToString::to_string));
                self.note_unused(&forecast);
            }
            (None, Some(steps)) => {
                let rounds = job.samples.filter(|s| s.every_steps > 0).map_or(0, |s| steps / s.every_steps);
                let saves = steps.checked_div(job.save_every).unwrap_or(0);
                let measured = job.validation.map_or(0, |validation| {
                    let first = u64::from(steps > 0 && validation.every_steps != 1);
                    first + steps.checked_div(validation.every_steps).unwrap_or(0)
                });
                let training_s = steps as f64 * self.step_s
                    + rounds as f64 * self.sample_round_s
                    + measured as f64 * self.validation_s
                    + saves as f64 * self.save_s;
                self.training_s = Some(training_s);
                self.total_s = Some(training_s + self.other_phases_s());
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn other_phases_s(&self) -> f64 {
        Phase::ALL.into_iter().map(|phase| self.phases.get(phase)).sum()
    }

    fn note_unused(&mut self, forecast: &Forecast) {
        let short = forecast.ruled_by == RuledBy::Deadline && forecast.steps_total.is_some_and(|n| n < 100);
        if short && forecast.notes.is_empty() {
            self.notes.push(format!(
                "only about {} steps fit the budget; a lower resolution, a coarser base or a longer budget would give more",
                forecast.steps_total.unwrap_or(0)
            ));
        }
    }

    fn note(&mut self, job: &PlanJob) {
        if !self.fit.fits {
            let advice = match (&self.fit.nearest, self.trainer) {
                (Some(nearest), _) => {
                    let changes: Vec<String> = nearest.changes.iter().map(ToString::to_string).collect();
                    format!("; the nearest job that fits has {}", changes.join(", "))
                }
                (None, Trainer::Tenggat) => "; no change of precision, rank or batch makes it fit".to_owned(),
                (None, Trainer::AiToolkit) => String::new(),
            };
            self.notes.push(format!("does not fit into {}{advice}", self.machine));
        }
        if phases::damages(job.precision) && job.ara_rank.is_none() {
            self.notes.push(format!(
                "{} without a recovery adapter damages the base; give one as `qtype: {}|path`",
                job.precision, job.precision
            ));
        }
    }
}

fn mean_step_s(buckets: &[BucketTime]) -> f64 {
    let positive = |share: f64| if share.is_finite() { share.max(0.0) } else { 0.0 };
    let shares: f64 = buckets.iter().map(|b| positive(b.bucket.share)).sum();
    let sum: f64 = buckets.iter().map(|b| positive(b.bucket.share) * b.step_s).sum();
    if shares > 0.0 { sum / shares } else { buckets.iter().map(|b| b.step_s).fold(0.0, f64::max) }
}
