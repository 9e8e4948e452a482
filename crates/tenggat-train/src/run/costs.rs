//! What is known of a run's costs when its training begins: the phases before it, timed, and the budget made of them.

use tenggat_models::lora::Lora;
use tenggat_plan::{
    BucketConfig, Budget, BudgetConfig, Clock, Phase, PhaseCosts, SamplePlan, ValidationPlan, upload_s,
};

use super::data::Prepared;
use super::{Event, Options, Result, VALIDATION_SHARE};
use crate::job::{Deliver, Job};
use crate::optimiser::Optimiser;

/// Expected seconds of drawing the report's pictures.
const REPORT_S: f64 = 0.6;
/// Expected seconds of the final save until one was timed, per trainable parameter: 16 MB/s.
pub(super) const SAVE_S_PER_PARAMETER: f64 = 1.2e-7;

/// Expected speed of writing the state of a run until it was timed, bytes per second.
const STATE_BYTES_PER_S: f64 = 2e8;

/// Expected seconds of writing the state of the run until it was timed.
pub(super) fn state_s(job: &Job, lora: &Lora, optimiser: &Optimiser, averaged: bool) -> f64 {
    let copies = if averaged { 2 } else { 1 };
    let bytes = copies * lora.parameters.len() * lora.parameters.dtype().bytes() + optimiser.state_bytes();
    if job.resume { bytes as f64 / STATE_BYTES_PER_S } else { 0.0 }
}

/// Times the phases before there is a budget.
pub(super) struct Phases<'a> {
    pub clock: &'a dyn Clock,
    pub records: Vec<(Phase, f64, f64)>,
}

impl Phases<'_> {
    pub fn time<T>(
        &mut self,
        phase: Phase,
        show: &mut dyn FnMut(Event),
        work: impl FnOnce(&mut dyn FnMut(Event)) -> Result<T>,
    ) -> Result<T> {
        let began_s = self.clock.now_s();
        show(Event::PhaseStarted(phase));
        let result = work(show)?;
        let now_s = self.clock.now_s();
        self.records.push((phase, began_s, now_s));
        show(Event::PhaseFinished { phase, seconds: now_s - began_s });
        Ok(result)
    }
}

/// The controller of a run's time, told of the phases that are over. `write_s` and `measure_s` are the expected seconds of
/// writing a LoRA and of measuring it first, `lora_bytes` its size; the last pair is the steps done before and their progress of the schedule.
pub(super) fn budget(
    job: &Job,
    options: &Options<'_>,
    data: &Prepared,
    ((write_s, measure_s), lora_bytes): ((f64, f64), usize),
    phases: &Phases<'_>,
    (steps_done, progress_done): (u64, f64),
) -> Result<Budget> {
    let mut costs = PhaseCosts::default().with(Phase::FinalSave, 2.0 * write_s + measure_s);
    let mut round_s = 0.0;
    for &(phase, began_s, ended_s) in &phases.records {
        costs = costs.with(phase, ended_s - began_s);
        match phase {
            // A choice is made before it is saved.
            Phase::ScoreBefore if job.save.deliver == Deliver::Newest => {
                costs = costs.with(Phase::ScoreAfter, ended_s - began_s)
            }
            Phase::FirstSample => {
                costs = costs.with(Phase::FinalSample, ended_s - began_s);
                round_s = ended_s - began_s;
            }
            _ => {}
        }
    }
    if options.report {
        costs = costs.with(Phase::Report, REPORT_S);
    }
    if job.push.is_some() {
        costs = costs.with(Phase::Upload, upload_s(lora_bytes as f64));
    }
    let shares = data.bucket_shares();
    let mut budget = Budget::new(BudgetConfig {
        deadline_s: options.deadline_s,
        steps: job.train.steps,
        fill: job.limits.fill && options.deadline_s.is_some(),
        margin_s: job.limits.margin_s,
        phases: costs,
        save_s: write_s + measure_s,
        buckets: shares.iter().map(|&share| BucketConfig { step_s: None, share: Some(share) }).collect(),
        steps_done,
        progress_done,
        samples: (job.sample.enabled && job.sample.every > 0)
            .then_some(SamplePlan { every_steps: job.sample.every, round_s }),
        // The first step's measurement tells how long they take.
        validation: job.train.validation.as_ref().map(|validation| ValidationPlan {
            every_steps: validation.every,
            round_s: 0.0,
            share_max: VALIDATION_SHARE,
        }),
        ..BudgetConfig::default()
    })?;
    for &(phase, began_s, ended_s) in &phases.records {
        budget.phase_started(phase, began_s);
        budget.phase_finished(phase, ended_s);
    }
    Ok(budget)
}
