//! Step times and memory of a job on a machine, as the cost model has them: the likely values that ranges are
//! put around.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cost::{Fit, Machine, OpClass, StepConfig, Work, fit};
use crate::job::{BucketShape, PlanJob};
use crate::program::Program;

/// A step in one bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BucketTime {
    /// Which bucket.
    pub bucket: BucketShape,
    /// Image tokens per picture.
    pub image_tokens: u64,
    /// Likely seconds per step.
    pub step_s: f64,
}

/// The step in the bucket with the most pixels, which decides about memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LargestBucket {
    /// Width in pixels.
    pub width_px: u64,
    /// Height in pixels.
    pub height_px: u64,
    /// Likely seconds of a step in it.
    pub step_s: f64,
    /// The same by kind of work, kernel gaps included.
    pub step_s_by_class: BTreeMap<OpClass, f64>,
    /// TFLOP of a step in it, recomputation included.
    pub step_tflop: f64,
}

/// What the cost model says of a job on a machine.
#[derive(Debug, Clone)]
pub(crate) struct Forecast {
    /// How it fits the memory.
    pub fit: Fit,
    /// Step times by bucket.
    pub buckets: Vec<BucketTime>,
    /// The step in the largest bucket.
    pub largest: LargestBucket,
}

impl Forecast {
    /// `None` if the job has no buckets.
    pub(crate) fn new(job: &PlanJob, machine: &Machine, program: Program) -> Option<Self> {
        let largest = job.largest_bucket()?;
        let fit = fitted(job, machine, program, largest);
        let time = |bucket: &BucketShape| BucketTime {
            bucket: *bucket,
            image_tokens: job.model.image_tokens(bucket.width_px, bucket.height_px),
            step_s: step_s(job, machine, program, &fit.config, bucket),
        };
        let work = work(job, machine, program, &fit.config, largest);
        let largest = LargestBucket {
            width_px: largest.width_px,
            height_px: largest.height_px,
            step_s: step_s(job, machine, program, &fit.config, largest),
            step_s_by_class: machine.rates.by_class(&work).into_iter().collect(),
            step_tflop: work.flops() / 1e12,
        };
        Some(Self { buckets: job.buckets.iter().map(time).collect(), fit, largest })
    }

    /// Makes every step take `factor` times as long; a factor that makes no sense changes nothing.
    pub(crate) fn correct(&mut self, factor: f64) {
        if factor > 0.0 && factor.is_finite() {
            self.buckets.iter_mut().for_each(|time| time.step_s *= factor);
            self.largest.step_s *= factor;
            self.largest.step_s_by_class.values_mut().for_each(|s| *s *= factor);
        }
    }

    /// Likely seconds per step, averaged over the buckets by their shares.
    pub(crate) fn mean_step_s(&self) -> f64 {
        let positive = |share: f64| if share.is_finite() { share.max(0.0) } else { 0.0 };
        let shares: f64 = self.buckets.iter().map(|b| positive(b.bucket.share)).sum();
        let sum: f64 = self.buckets.iter().map(|b| positive(b.bucket.share) * b.step_s).sum();
        if shares > 0.0 { sum / shares } else { self.buckets.iter().map(|b| b.step_s).fold(0.0, f64::max) }
    }
}

/// Likely seconds per step, averaged over the buckets; not a number if there are none.
pub(crate) fn mean_step_s(job: &PlanJob, machine: &Machine, program: Program) -> f64 {
    Forecast::new(job, machine, program).map_or(f64::NAN, |forecast| forecast.mean_step_s())
}

/// Likely peak of device memory, bytes.
pub(crate) fn peak_bytes(job: &PlanJob, machine: &Machine, program: Program) -> f64 {
    Forecast::new(job, machine, program).map_or(f64::NAN, |forecast| forecast.fit.memory.device_bytes())
}

/// The job as tenggat runs it in one bucket: on 8-bit units where the job wants that and the machine has
/// them.
pub(crate) fn own_step(job: &PlanJob, machine: &Machine, bucket: &BucketShape) -> StepConfig {
    let config = job.step_config(bucket, machine.activation_bytes);
    StepConfig { fp8_products: config.fp8_products && machine.rates.gemm_fp8.is_some(), ..config }
}

/// How the job fits. Only tenggat chooses how many blocks keep their activations, and knows what would make a
/// job fit.
fn fitted(job: &PlanJob, machine: &Machine, program: Program, largest: &BucketShape) -> Fit {
    let config = own_step(job, machine, largest);
    let Some(profile) = program.profile() else { return fit(&config, machine, job.memory_limit_bytes) };
    let memory = job.program_step(profile, largest).memory();
    let limit_bytes = job.memory_limit_bytes.unwrap_or(f64::INFINITY).min(machine.memory_bytes);
    let config = StepConfig { keep_all: 0, keep_results: 0, ..config };
    Fit {
        config,
        usable_bytes: limit_bytes,
        fits: memory.device_bytes() <= limit_bytes,
        memory,
        nearest: None,
    }
}

/// The operations of a step in one bucket, with as much kept as was fitted.
fn work(
    job: &PlanJob,
    machine: &Machine,
    program: Program,
    fitted: &StepConfig,
    bucket: &BucketShape,
) -> Work {
    match program.profile() {
        Some(profile) => job.program_step(profile, bucket).work(),
        None => kept_as(fitted, own_step(job, machine, bucket)).work(),
    }
}

/// Seconds of a step in one bucket, as a range.
fn step_s(
    job: &PlanJob,
    machine: &Machine,
    program: Program,
    fitted: &StepConfig,
    bucket: &BucketShape,
) -> f64 {
    match program.profile() {
        Some(profile) => job.program_step(profile, bucket).seconds(machine),
        None => machine.rates.step_seconds(&kept_as(fitted, own_step(job, machine, bucket)).work()),
    }
}

fn kept_as(fitted: &StepConfig, config: StepConfig) -> StepConfig {
    StepConfig { keep_all: fitted.keep_all, keep_results: fitted.keep_results, ..config }
}
