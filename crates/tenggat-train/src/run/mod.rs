//! A run from job to LoRA: load → cache → score → train → save → score → report, one call each, in [`run`].

mod base;
mod data;
pub mod deadline;
mod encoding;
mod error;
mod event;
mod folder;
mod held_out;
mod memory;
mod report;
mod resume;
mod sampling;
mod saving;
mod scoring;
mod state_file;
mod training;
mod validation;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tenggat_models::dropout::Dropout;
use tenggat_models::lora::Lora;
use tenggat_plan::{
    BucketConfig, Budget, BudgetConfig, Clock, FinishReason, Phase, PhaseCosts, SamplePlan, Schedule, Shape,
    Warmup,
};
use tenggat_tensor::ops::loss;
use tenggat_tensor::{DType, Device};

pub use error::{Error, Result};
pub use event::{Event, Scores, Step};
pub use folder::LAST;
pub use state_file::STATE;

use crate::adapter;
use crate::dataset;
use crate::ema::Ema;
use crate::job::{self, FirstRound, Job, Loss, LrScheduler};
use crate::lora_file;
use crate::metrics::Metrics;
use crate::optimiser::{Method, Optimiser};
use crate::painter::Painter;
use crate::score::Judge;
use crate::step::{Objective, Trainer};
use crate::tensorboard::TensorBoard;
use base::Base;
use data::Prepared;
use deadline::Requests;
use encoding::Encoders;
use folder::RunFolder;
use resume::{Continued, Start};
use sampling::Sampling;
use saving::Saver;
use scoring::Scoring;
use state_file::End;
use training::{State, Training};
use validation::Validation;

/// What a run is given besides its job.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The device that computes.
    pub device: &'a Device,
    /// Where the present comes from; reads 0 when the budget begins to run.
    pub clock: &'a dyn Clock,
    /// Moment by which the process must have ended, on the clock.
    pub deadline_s: Option<f64>,
    /// Whether the deadline is a moment, which stays where it is while a run is cut off. Otherwise it is a time to be spent,
    /// and what an earlier part of the run spent counts.
    pub deadline_is_moment: bool,
    /// Folder of the model.
    pub model: &'a Path,
    /// Folder that keeps quantised models for later runs; without one they are quantised every time.
    pub quantised: Option<&'a Path>,
    /// Folder of held-out pictures to score before and after.
    pub held_out: Option<&'a Path>,
    /// Whether the loss curve, and with held-out pictures their sheet, are drawn at the end.
    pub report: bool,
    /// Moves what an earlier run left aside, instead of going on with it.
    pub start_over: bool,
    /// Set by a signal: finish the step, save, and end.
    pub stop: &'a AtomicBool,
}

/// What came out of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The finished LoRA.
    pub lora: PathBuf,
    /// Updates in it.
    pub steps: u64,
    /// Seconds per step, on average.
    pub step_s: f64,
    /// Errors of the bare model, if there were held-out pictures.
    pub before: Option<Scores>,
    /// Errors with the LoRA.
    pub after: Option<Scores>,
}

/// Expected seconds of drawing the report's pictures.
const REPORT_S: f64 = 0.6;
/// Share of the time left that the sample pictures before the first step may take.
const FIRST_SAMPLES_SHARE: f64 = 0.1;
/// Expected seconds of the final save until one was timed, per trainable parameter: 16 MB/s.
const SAVE_S_PER_PARAMETER: f64 = 1.2e-7;

/// Expected speed of writing the state of a run until it was timed, bytes per second.
const STATE_BYTES_PER_S: f64 = 2e8;

/// Runs a job. A run of the same job that was cut off is gone on with, so that it ends as if it had not been.
///
/// # Errors
/// The model, the pictures or the folder of the results cannot be used, or the training diverges. What was saved
/// before stays on disk.
pub fn run(job: &Job, options: &Options<'_>, show: &mut dyn FnMut(Event)) -> Result<Summary> {
    let method = Method::of(&job.train.optimiser, job.train.lr);
    if options.deadline_s.is_none() && job.train.steps.is_none() {
        return Err(Error::Job("the job has no `train.steps`; set it, or give a --budget".into()));
    }
    let start = resume::decide(job, options, &mut |text| show(Event::Warning(text)));
    match &start {
        Start::Aside(why) => {
            let aside = RunFolder::move_aside(&job.folder)?;
            let text = format!("the results of an earlier run are now in {}, {why}", aside.display());
            show(Event::Warning(text));
        }
        Start::Done(steps, advice) => {
            show(Event::Done { steps: *steps, advice: advice.clone() });
            return Ok(Summary::done(&job.folder, &job.name, *steps));
        }
        Start::Fresh | Start::Continue(_) | Start::FromLora(..) => {}
    }
    let folder = RunFolder::open(&job.folder, &job.name)?;
    let ahead_s = if let Start::Continue(saved) = &start { resume::ahead_s(saved, options) } else { 0.0 };
    let clock = &Continued { clock: options.clock, before_s: ahead_s };
    let moved_s = if options.deadline_is_moment { ahead_s } else { 0.0 };
    let deadline_s = options.deadline_s.map(|s| s + moved_s);
    let options = &Options { clock, deadline_s, ..*options };
    let steps_before = start.steps();
    if steps_before > 0 {
        show(Event::Resumed { steps: steps_before, ahead_s, deadline_s });
    }
    let requests = Requests::new(&job.folder);
    let config = folder.file("config.yaml");
    crate::atomic::write(&config, job.text.as_bytes()).map_err(|e| Error::file("write", &config, e))?;
    let mut phases = Phases { clock, records: Vec::new() };

    let Base { model, vae, text, scheduler } =
        phases.time(Phase::Load, show, |_| base::load(job, options))?;

    let (data, held, mut validation, mut sampling) = phases.time(Phase::Cache, show, |show| {
        let (items, mut bad) = dataset::load(&job.datasets, job.compat, job.seed)?;
        let encoders = Encoders {
            device: options.device,
            vae: &vae,
            text: &text,
            text_width: model.config().joint_attention_dim,
            model: options.model,
        };
        let mut remarks = Vec::new();
        let (data, broken) = Prepared::new(items, job, &encoders, &mut remarks)?;
        bad.extend(broken);
        for bad in bad {
            show(Event::Warning(format!("left out: {}", bad.error)));
        }
        remarks.into_iter().for_each(|remark| show(Event::Warning(remark)));
        let mut held = None;
        if let Some(path) = options.held_out {
            let (pictures, broken) = held_out::load(path, job, options.device, &vae, &text)?;
            for bad in broken {
                show(Event::Warning(format!("left out of the held-out pictures: {}", bad.error)));
            }
            held = Some(pictures);
        }
        let painter = Painter { model: &model, vae: &vae, scheduler: &scheduler };
        let sampling = Sampling::new(job, &text, painter, clock)?;
        let judge = Judge { model: &model, vae: &vae, scheduler: &scheduler };
        let encoders = (options.device, &vae, &text);
        let (validation, broken) = Validation::new(job.train.validation.as_ref(), judge, encoders)?;
        for bad in broken {
            show(Event::Warning(format!("left out of the validation pictures: {}", bad.error)));
        }
        Ok((data, held, validation, sampling))
    })?;
    drop(text);

    let layout = model.lora_layout(job.network.kind, |module| job.network.trains(module));
    if layout.is_empty() {
        return Err(Error::Job(
            "no module is trained: `only_if_contains` or `ignore_if_contains` leaves none".into(),
        ));
    }
    let trainable = layout.trained_ranges().iter().map(ExactSizeIterator::len).sum();
    show(Event::Data { entries: data.items.len(), buckets: data.bucket_shares().len(), trainable });

    let judge = Judge { model: &model, vae: &vae, scheduler: &scheduler };
    let mut scoring = held.as_ref().map(|held| Scoring::new(judge, held, clock));
    if let Some(scoring) = &mut scoring {
        phases.time(Phase::ScoreBefore, show, |show| {
            show(Event::Scored(scoring.before(options.deadline_s)?));
            Ok(())
        })?;
    }

    let mut lora = adapter::initialise(layout, job.seed, options.device, DType::F32)?;
    if let Some(path) = &job.network.pretrained {
        let lacking = lora_file::start_from(&lora_file::load(path)?, &mut lora)?;
        if lacking > 0 {
            let text = format!("{} lacks {lacking} of the modules trained; those start anew", path.display());
            show(Event::Warning(text));
        }
    }
    let mut ema =
        job.train.ema_decay.map(|decay| Ema::new(decay, !job.compat.constant_ema, &lora)).transpose()?;
    let mut optimiser = Optimiser::new(method, max_grad_norm(job), &lora)?;
    match &start {
        Start::Continue(saved) => {
            saved.restore(&mut lora.parameters, &mut optimiser, ema.as_mut())?;
            if saved.progress.data != data.fingerprint() {
                let text =
                    "the pictures or captions are others than before, and so is the order of the batches";
                show(Event::Warning(text.into()));
            }
        }
        Start::FromLora(file, _) => {
            lora_file::start_from(file, &mut lora)?;
            // The average begins at the weights.
            ema = job.train.ema_decay.map(|d| Ema::new(d, !job.compat.constant_ema, &lora)).transpose()?;
        }
        Start::Fresh | Start::Aside(_) | Start::Done(..) => {}
    }
    if let Some(sampling) = &mut sampling
        && (job.sample.first == FirstRound::Always
            || job.sample.first == FirstRound::AtStart && steps_before == 0)
    {
        phases.time(Phase::FirstSample, show, |show| {
            let began_s = clock.now_s();
            let until_s = options.deadline_s.map(|s| began_s + FIRST_SAMPLES_SHARE * (s - began_s));
            let mut may_go_on = |_| until_s.is_none_or(|until_s| clock.now_s() < until_s);
            if !sampling.round(&lora, steps_before, &folder, &mut may_go_on, show)? {
                show(Event::Warning("the first sample pictures would take too much of the budget".into()));
            }
            Ok(())
        })?;
    }
    let save_s = trainable as f64 * SAVE_S_PER_PARAMETER + state_s(job, &lora, &optimiser, ema.is_some());
    let before = (steps_before, start.progress(job, deadline_s));
    let mut budget = budget(job, options, &data, save_s, &phases, before)?;
    let kept_blocks = memory::kept_blocks(job, &model, &data, show);
    let trainer = Trainer::new(&model, lora, optimiser, kept_blocks)?.minimising(objective(job));
    let mut state = State::new(trainer, ema);
    let log = folder.file("metrics.jsonl");
    let metrics = if steps_before > 0 {
        Metrics::resume(&log, steps_before).inspect(|_| {
            let before = crate::metrics::read(&log).unwrap_or_default();
            if let Some(validation) = &mut validation {
                validation.remember(before.iter().filter_map(|record| record.val_loss));
            }
            state.take_back(&before);
        })
    } else {
        Metrics::create(&log)
    };
    let metrics = metrics.map_err(|e| Error::file("write", &log, e))?;
    let board = match &job.log_dir {
        None => None,
        Some(parent) => {
            let folder = parent.join(&job.name);
            let board = TensorBoard::create(&folder, steps_before);
            Some(board.map_err(|e| Error::file("write to", &folder, e))?)
        }
    };
    let kept_state = job.resume.then(|| folder.file(STATE));
    let mut training = Training {
        job,
        model: &model,
        scheduler: &scheduler,
        saver: Saver::new(job, kept_state, data.fingerprint()),
        data,
        schedule: schedule(job, options.deadline_s.is_some()),
        metrics,
        board,
        validation,
        began_s: clock.now_s(),
        requests,
        sampling,
        folder,
    };
    let train_began_s = clock.now_s();
    budget.phase_started(Phase::Train, train_began_s);
    show(Event::PhaseStarted(Phase::Train));
    let end = training.run(&mut state, &mut budget, options, show)?;
    let mut sampling = training.sampling.take();
    let Training { saver, mut metrics, folder, .. } = training;
    let trained_s = clock.now_s() - train_began_s;
    budget.phase_finished(Phase::Train, clock.now_s());
    show(Event::PhaseFinished { phase: Phase::Train, seconds: trained_s });

    let steps = budget.steps_done();
    budget.phase_started(Phase::FinalSave, clock.now_s());
    let lora = folder.finished();
    saver.save(state.best(), &lora, steps)?;
    crate::atomic::copy(&lora, &folder.file(LAST)).map_err(|e| Error::file("write", &lora, e))?;
    let end = end.map(|reason| if reason == FinishReason::StepsDone { End::Steps } else { End::Time });
    // The LoRA is safe; what goes wrong now is no reason to say that the run failed.
    if let Err(e) = metrics.sync().and_then(|()| saver.save_state(&state, &budget, clock.now_s(), end)) {
        show(Event::Warning(format!("the state of the run is not kept: {e}; it cannot be gone on with")));
    }
    budget.phase_finished(Phase::FinalSave, clock.now_s());
    show(Event::Saved { path: lora.clone(), steps });

    if let Some(sampling) = &mut sampling
        && !sampling.has_drawn(steps)
        && budget.allows(Phase::FinalSample, clock.now_s())
    {
        budget.phase_started(Phase::FinalSample, clock.now_s());
        let mut may_go_on = |part_s| budget.allows_part(clock.now_s(), part_s);
        sampling.round(state.best(), steps, &folder, &mut may_go_on, show)?;
        budget.phase_finished(Phase::FinalSample, clock.now_s());
    }
    if let Some(scoring) = &mut scoring
        && budget.allows(Phase::ScoreAfter, clock.now_s())
    {
        budget.phase_started(Phase::ScoreAfter, clock.now_s());
        show(Event::PhaseStarted(Phase::ScoreAfter));
        scoring.after(state.best(), &mut budget)?;
        let seconds = budget.phase_finished(Phase::ScoreAfter, clock.now_s()).unwrap_or(0.0);
        show(Event::PhaseFinished { phase: Phase::ScoreAfter, seconds });
    }
    if options.report && budget.allows(Phase::Report, clock.now_s()) {
        budget.phase_started(Phase::Report, clock.now_s());
        let pictures = scoring.as_ref().map(Scoring::redrawn).unwrap_or_default();
        report::write(job, &folder, &state.curve, &pictures, show)?;
        budget.phase_finished(Phase::Report, clock.now_s());
    }
    let mut compared = None;
    if let Some(scoring) = &mut scoring {
        scoring.fill(state.best(), &mut budget)?;
        compared = scoring.compared();
        match compared {
            Some((_, trained)) => show(Event::Scored(trained)),
            None => show(Event::Warning("no time was left to score the LoRA; it is saved".into())),
        }
    }
    let (before, after) = compared.unzip();
    let taken = steps.saturating_sub(steps_before).max(1);
    Ok(Summary { lora, steps, step_s: trained_s / taken as f64, before, after })
}

impl Summary {
    /// Of a run that had been finished before.
    fn done(folder: &Path, name: &str, steps: u64) -> Self {
        let finished = folder.join(format!("{name}.safetensors"));
        let newest = || RunFolder::numbered_in(folder, name).pop().map(|(_, path)| path);
        let lora = if finished.exists() { finished } else { newest().unwrap_or(finished) };
        Summary { lora, steps, step_s: 0.0, before: None, after: None }
    }
}

/// Largest norm of the gradient. Adafactor bounds its updates itself; ai-toolkit does not clip for it either.
fn max_grad_norm(job: &Job) -> Option<f64> {
    (job.train.optimiser.kind != job::Optimiser::Adafactor).then_some(job.train.max_grad_norm)
}

/// Expected seconds of writing the state of the run until it was timed.
fn state_s(job: &Job, lora: &Lora, optimiser: &Optimiser, averaged: bool) -> f64 {
    let copies = if averaged { 2 } else { 1 };
    let bytes = copies * lora.parameters.len() * lora.parameters.dtype().bytes() + optimiser.state_bytes();
    if job.resume { bytes as f64 / STATE_BYTES_PER_S } else { 0.0 }
}

/// Times the phases before there is a budget.
struct Phases<'a> {
    clock: &'a dyn Clock,
    records: Vec<(Phase, f64, f64)>,
}

impl Phases<'_> {
    fn time<T>(
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

fn budget(
    job: &Job,
    options: &Options<'_>,
    data: &Prepared,
    save_s: f64,
    phases: &Phases<'_>,
    (steps_done, progress_done): (u64, f64),
) -> Result<Budget> {
    let mut costs = PhaseCosts::default().with(Phase::FinalSave, 2.0 * save_s);
    let mut round_s = 0.0;
    for &(phase, began_s, ended_s) in &phases.records {
        costs = costs.with(phase, ended_s - began_s);
        match phase {
            Phase::ScoreBefore => costs = costs.with(Phase::ScoreAfter, ended_s - began_s),
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
    let shares = data.bucket_shares();
    let mut budget = Budget::new(BudgetConfig {
        deadline_s: options.deadline_s,
        steps: job.train.steps,
        fill: job.limits.fill && options.deadline_s.is_some(),
        margin_s: job.limits.margin_s,
        phases: costs,
        save_s,
        buckets: shares.iter().map(|&share| BucketConfig { step_s: None, share: Some(share) }).collect(),
        steps_done,
        progress_done,
        samples: job.sample.enabled.then_some(SamplePlan { every_steps: job.sample.every, round_s }),
        ..BudgetConfig::default()
    })?;
    for &(phase, began_s, ended_s) in &phases.records {
        budget.phase_started(phase, began_s);
        budget.phase_finished(phase, ended_s);
    }
    Ok(budget)
}

/// Where the pseudo-Huber loss turns from square to straight. Source: ai-toolkit `extensions_built_in/sd_trainer`.
const PSEUDO_HUBER_C: f64 = 0.01;

/// What the job minimises.
fn objective(job: &Job) -> Objective {
    let loss = match job.train.loss {
        Loss::MeanSquared => loss::Loss::Squared,
        Loss::MeanAbsolute => loss::Loss::Absolute,
        Loss::PseudoHuber => loss::Loss::PseudoHuber { c: PSEUDO_HUBER_C },
    };
    let network = &job.network;
    let (elements, ranks, modules) = (network.dropout, network.rank_dropout, network.module_dropout);
    let dropout = [elements, ranks, modules].iter().any(|&rate| rate > 0.0).then_some(Dropout {
        elements,
        ranks,
        modules,
        seed: job.seed,
        pass: 0,
        samples: 1,
    });
    Objective { loss, summed: job.compat.summed_gradients, max_loss: job.train.max_loss, dropout }
}

/// The job's schedule; where it names none, the budget anneals and a fixed number of steps keeps the rate.
fn schedule(job: &Job, budgeted: bool) -> Schedule {
    let train = &job.train;
    let floor = if train.lr > 0.0 { train.lr_min / train.lr } else { 0.0 };
    let steps = train.warmup_steps.map_or(Warmup::None, Warmup::Steps);
    let shaped = |shape| Schedule { shape, floor, warmup: steps };
    match train.lr_scheduler {
        None if budgeted => Schedule::default(),
        None | Some(LrScheduler::Constant | LrScheduler::ConstantWithWarmup) => shaped(Shape::Constant),
        Some(LrScheduler::Linear) if job.compat.linear_ramp => shaped(Shape::LinearRamp),
        Some(LrScheduler::Linear) => shaped(Shape::Linear),
        Some(LrScheduler::Cosine) => shaped(Shape::Cosine),
        Some(LrScheduler::CosineWithRestarts) => {
            shaped(Shape::CosineWithRestarts { cycles: train.lr_cycles.clamp(1, u64::from(u32::MAX)) as u32 })
        }
        Some(LrScheduler::WarmupStableDecay) => {
            let default = Schedule::default();
            Schedule {
                floor,
                warmup: if train.warmup_steps.is_some() { steps } else { default.warmup },
                ..default
            }
        }
    }
}
