//! What is known about a run's costs when training begins: the times of earlier phases, and the budget made
//! from them.

use tenggat_models::lora::Lora;
use tenggat_plan::{
    BucketConfig, Budget, BudgetConfig, Phase, PhaseCosts, PhaseRecord, SamplePlan, ValidationPlan, upload_s,
};

use super::Result;
use super::options::Options;
use crate::data::batch::Prepared;
use crate::job::{Deliver, Job};
use crate::step::optimiser::Optimiser;

/// Expected seconds of rendering the report's images.
const REPORT_S: f64 = 0.6;
/// Expected seconds of the final save until one was timed, per trainable parameter: 16 MB/s.
pub(super) const SAVE_S_PER_PARAMETER: f64 = 1.2e-7;

/// Expected speed of writing the checkpoint until it was timed, bytes per second.
const STATE_BYTES_PER_S: f64 = 2e8;

/// Expected seconds of writing the checkpoint until it was timed.
pub(super) fn state_s(job: &Job, lora: &Lora, optimiser: &Optimiser, averaged: bool) -> f64 {
    let copies = if averaged { 2 } else { 1 };
    let bytes = copies * lora.parameters.len() * lora.parameters.dtype().bytes() + optimiser.state_bytes();
    if job.resume { bytes as f64 / STATE_BYTES_PER_S } else { 0.0 }
}

/// Expected costs of a run, and what an earlier part of it has done.
pub(super) struct Costs {
    /// Expected seconds of writing a LoRA and the checkpoint.
    pub write_s: f64,
    /// Expected seconds of measuring a LoRA before it is written.
    pub measure_s: f64,
    /// Size of the LoRA.
    pub lora_bytes: usize,
    /// Steps done before.
    pub steps_done: u64,
    /// Progress of the schedule that they reached.
    pub progress_done: f64,
}

/// The controller of a run's time, told of the phases that are over.
///
/// # Errors
/// No run could keep this budget.
pub(super) fn budget(
    job: &Job,
    options: &Options<'_>,
    data: &Prepared,
    costs: &Costs,
    records: &[PhaseRecord],
) -> Result<Budget> {
    let save_s = costs.write_s + costs.measure_s;
    let over: Vec<(Phase, f64, f64)> =
        records.iter().filter_map(|r| Some((r.phase, r.started_s, r.finished_s?))).collect();
    let of_round = over.iter().find(|(phase, ..)| *phase == Phase::FirstSample);
    let round_s = of_round.map_or(0.0, |(_, began_s, ended_s)| ended_s - began_s);
    let shares = data.bucket_shares();
    let mut budget = Budget::new(BudgetConfig {
        deadline_s: options.deadline_s,
        steps: job.train.steps,
        fill: job.limits.fill && options.deadline_s.is_some(),
        margin_s: job.limits.margin_s,
        phases: phase_costs(job, options, costs, &over),
        save_s,
        buckets: shares.iter().map(|&share| BucketConfig { step_s: None, share: Some(share) }).collect(),
        steps_done: costs.steps_done,
        progress_done: costs.progress_done,
        samples: (job.sample.enabled && job.sample.every > 0)
            .then_some(SamplePlan { every_steps: job.sample.every, round_s }),
        // The first step's measurement tells how long they take.
        validation: job.train.validation.as_ref().map(|validation| ValidationPlan {
            every_steps: validation.every,
            round_s: 0.0,
            share_max: ValidationPlan::SHARE_MAX,
        }),
        ..BudgetConfig::default()
    })?;
    for (phase, began_s, ended_s) in over {
        budget.phase_started(phase, began_s);
        budget.phase_finished(phase, ended_s);
    }
    Ok(budget)
}

/// Seconds of the phases that are over, and predictions from them for later phases.
fn phase_costs(job: &Job, options: &Options<'_>, costs: &Costs, over: &[(Phase, f64, f64)]) -> PhaseCosts {
    let mut phases = PhaseCosts::default().with(Phase::FinalSave, 2.0 * costs.write_s + costs.measure_s);
    for &(phase, began_s, ended_s) in over {
        phases = phases.with(phase, ended_s - began_s);
        match phase {
            // A choice is made before it is saved.
            Phase::ScoreBefore if job.save.deliver == Deliver::Newest => {
                phases = phases.with(Phase::ScoreAfter, ended_s - began_s);
            }
            Phase::FirstSample => phases = phases.with(Phase::FinalSample, ended_s - began_s),
            _ => {}
        }
    }
    if options.report {
        phases = phases.with(Phase::Report, REPORT_S);
    }
    if job.push.is_some() {
        phases = phases.with(Phase::Upload, upload_s(costs.lora_bytes as f64));
    }
    phases
}
