//! A run from job to LoRA: load → cache → score → train → save → score → report, one call each, in [`run`].

mod base;
mod checkpoint;
mod choice;
mod costs;
mod data;
pub mod deadline;
mod encoding;
mod error;
mod event;
mod folder;
mod found;
mod held_out;
mod lock;
mod memory;
mod report;
mod resume;
mod room;
mod sampling;
mod saving;
mod scoring;
mod setup;
mod state_file;
mod stop;
mod training;
mod validation;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tenggat_plan::{Clock, FinishReason, Phase};
use tenggat_tensor::Device;

pub use error::{Error, Result};
pub use event::{Contender, Event, Scores, Step};
pub use folder::LAST;
pub use lock::{LOCK, RunLock};
pub use state_file::{PREVIOUS, STATE};
pub use stop::Stop;
pub(crate) use validation::SHARE as VALIDATION_SHARE;

use crate::dataset;
use crate::ema::Ema;
use crate::job::{Deliver, FirstRound, Job};
use crate::lora_file;
use crate::metrics::{Metrics, Record};
use crate::optimiser::{Method, Optimiser};
use crate::painter::Painter;
use crate::score::Judge;
use crate::step::Trainer;
use crate::tensorboard::TensorBoard;
use base::Base;
use choice::Choice;
use costs::{Phases, SAVE_S_PER_PARAMETER, budget, state_s};
use data::Prepared;
use deadline::Requests;
use encoding::Encoders;
use folder::RunFolder;
use resume::{Continued, Done, Start};
use room::Room;
use sampling::Sampling;
use saving::Saver;
use scoring::Scoring;
use setup::{first_lora, max_grad_norm, objective, schedule};
use state_file::End;
use stop::unless_interrupted;
use training::{State, Training, unless_of_a_file};
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
    /// Memory that may be used where the job sets no limit; `None`: nobody knows.
    pub memory_bytes: Option<f64>,
    /// Folder of held-out pictures to score before and after.
    pub held_out: Option<&'a Path>,
    /// Whether the loss curve, and with held-out pictures their sheet, are drawn at the end.
    pub report: bool,
    /// Moves what an earlier run left aside, instead of going on with it.
    pub start_over: bool,
    /// How the end, or a save, is asked for meanwhile.
    pub stop: &'a Stop,
}

/// What came out of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The newest LoRA. Where the run was interrupted before its first update, none may be there.
    pub lora: PathBuf,
    /// Whether somebody asked for the end before it was due.
    pub interrupted: bool,
    /// Updates in it.
    pub steps: u64,
    /// Seconds per step, on average.
    pub step_s: f64,
    /// Seconds until the deadline; `None` without one.
    pub left_s: Option<f64>,
    /// Errors of the bare model, if there were held-out pictures.
    pub before: Option<Scores>,
    /// Errors with the LoRA.
    pub after: Option<Scores>,
    /// Where the best LoRA is delivered: what the run began with, and what is delivered.
    pub chosen: Option<(Contender, Contender)>,
    /// The lock on the folder, if there is a result in it: no other run begins there while somebody holds it.
    pub lock: Option<Arc<RunLock>>,
}

/// Writes a LoRA that changes nothing as [`LAST`], unless there is one by that name: whatever goes wrong
/// later, there is a file. It is made from the job and the dimensions of the model alone; [`run`] takes it
/// for no result.
///
/// # Errors
/// The model's dimensions cannot be read, the job trains nothing, or the file cannot be written.
pub fn deliver_untrained(job: &Job, model: &Path) -> Result<()> {
    let last = job.folder.join(LAST);
    if last.exists() {
        return Ok(());
    }
    let lora = first_lora(job, model, &Device::cpu(), &mut |_| {})?;
    Saver::new(job, false, None).save(&lora, &last, 0)
}

/// Share of the time left that the sample pictures before the first step may take.
const FIRST_SAMPLES_SHARE: f64 = 0.1;

/// Runs a job. A run of the same job that was cut off is gone on with, so that it ends as if it had not been.
///
/// Once [`Options::stop`] asks for the end, whatever is under way ends within moments, and what was trained is saved.
///
/// # Errors
/// The model, the pictures or the folder of the results cannot be used, or the training diverges. What was saved
/// before stays on disk.
pub fn run(job: &Job, options: &Options<'_>, show: &mut dyn FnMut(Event)) -> Result<Summary> {
    options.stop.set_has_deadline(options.deadline_s.is_some());
    let mut before = 0;
    let result = match run_phases(job, options, &mut before, show) {
        // Before the training began, so that there is nothing to save.
        Err(e) if e.is_interrupted() => {
            let left_s = options.deadline_s.map(|s| s - options.clock.now_s());
            Ok(Summary::interrupted(job, before, left_s))
        }
        result => result,
    };
    let has_state = || [STATE, PREVIOUS].iter().any(|name| job.folder.join(name).exists());
    if !matches!(result, Ok(_) | Err(Error::Locked(_))) && !has_state() {
        // What failed at once is no time spent on training; once it is mended, all of the budget is there.
        if let Ok(mut lock) = RunLock::acquire(&job.folder, &job.text, &mut |_| {}) {
            lock.forget();
        }
    }
    result
}

/// [`run`]; `before` becomes the number of steps that were done earlier.
fn run_phases(
    job: &Job,
    options: &Options<'_>,
    before: &mut u64,
    show: &mut dyn FnMut(Event),
) -> Result<Summary> {
    let method = Method::of(&job.train.optimiser, job.train.lr);
    if options.deadline_s.is_none() && job.train.steps.is_none() {
        return Err(Error::Job("the job has no `train.steps`; set it, or give a --budget".into()));
    }
    let mut lock = RunLock::acquire(&job.folder, &job.text, &mut |text| show(Event::Warning(text)))?;
    let start = resume::decide(job, options, lock.before(), &mut |text| show(Event::Warning(text)));
    match &start {
        Start::Aside(why) => {
            let aside = RunFolder::move_aside(&job.folder)?;
            let text = format!("the results of an earlier run are now in {}, {why}", aside.display());
            show(Event::Warning(text));
            lock.remove(&aside);
            lock = RunLock::acquire(&job.folder, &job.text, &mut |text| show(Event::Warning(text)))?;
        }
        Start::Done(done) => {
            finish(job, done, show);
            show(Event::Done { steps: done.steps, advice: done.advice.clone() });
            let left_s = options.deadline_s.map(|s| s - options.clock.now_s());
            return Ok(Summary::done(job, done, left_s, lock));
        }
        Start::Fresh | Start::Continue(_) | Start::FromLora(..) => {}
    }
    let ahead_s = resume::ahead_s(&start, job, options, lock.before());
    let clock = &Continued { clock: options.clock, before_s: ahead_s };
    let moved_s = if options.deadline_is_moment { ahead_s } else { 0.0 };
    let deadline_s = options.deadline_s.map(|s| s + moved_s);
    let options = &Options { clock, deadline_s, ..*options };
    lock.start(clock.now_s(), deadline_s.map(|s| s - clock.now_s()));
    let folder = RunFolder::open(&job.folder, &job.name, lock)?;
    let steps_before = start.steps();
    *before = steps_before;
    let interrupt = options.stop.interrupt();
    if steps_before > 0 || ahead_s > 0.0 {
        show(Event::Resumed { steps: steps_before, ahead_s, deadline_s });
    }
    let requests = Requests::new(&job.folder);
    let config = folder.file("config.yaml");
    if let Err(e) = crate::atomic::write(&config, job.config.as_bytes()) {
        show(Event::Warning(Error::file("write", &config, e).to_string()));
    }
    let mut phases = Phases { clock, records: Vec::new() };

    let held_out = options.held_out.or(job.held_out.as_deref());
    if job.save.deliver == Deliver::Best && held_out.is_none() {
        let text = "`deliver: best` needs pictures to measure on; name their folder as `held_out`, beside it";
        return Err(Error::Job(text.into()));
    }
    let mut lora = first_lora(job, options.model, options.device, show)?;
    if let Start::FromLora(file, _) = &start {
        lora_file::start_from(file, &mut lora)?;
    }
    let trainable = lora.layout.trained_ranges().iter().map(ExactSizeIterator::len).sum();
    let last = folder.file(LAST);
    if job.save.deliver == Deliver::Best && (steps_before == 0 || !last.exists()) {
        // Whatever happens from here on, there is a LoRA.
        Saver::new(job, false, None).save(&lora, &last, 0)?;
    }

    // Pictures that cannot be read are told before the model is read, which may take minutes.
    let dataset::Loaded { items, mut bad, remarks } = dataset::load(&job.datasets, job.compat, job.seed)?;
    remarks.into_iter().for_each(|remark| show(Event::Warning(remark)));
    let Base { model, vae, text, scheduler, steps_ahead } =
        phases.time(Phase::Load, show, |show| base::load(job, options, show))?;

    let (data, held, mut validation, mut sampling) = phases.time(Phase::Cache, show, |show| {
        let encoders = Encoders {
            device: options.device,
            vae: &vae,
            text: &text,
            text_width: model.config().joint_attention_dim,
            model: options.model,
            interrupt,
        };
        let mut remarks = Vec::new();
        let (data, broken) = Prepared::new(items, job, &encoders, &mut remarks)?;
        bad.extend(broken);
        let mut told = HashSet::new();
        // A picture that is broken is so at every resolution.
        for bad in bad.iter().filter(|bad| told.insert(&bad.path)) {
            show(Event::Warning(format!("left out: {}", bad.error)));
        }
        remarks.into_iter().for_each(|remark| show(Event::Warning(remark)));
        let mut held = None;
        if let Some(path) = held_out {
            let (pictures, broken) = held_out::load(path, job, (options.device, &vae, &text), interrupt)?;
            for bad in broken {
                show(Event::Warning(format!("left out of the held-out pictures: {}", bad.error)));
            }
            held = Some(pictures);
        }
        let painter = Painter { model: &model, vae: &vae, scheduler: &scheduler };
        let sampling = Sampling::new(job, &text, painter, clock)?;
        let judge = Judge { model: &model, vae: &vae, scheduler: &scheduler };
        let encoders = (options.device, &vae, &text);
        let (validation, broken) =
            Validation::new(job.train.validation.as_ref(), judge, encoders, interrupt)?;
        for bad in broken {
            show(Event::Warning(format!("left out of the validation pictures: {}", bad.error)));
        }
        Ok((data, held, validation, sampling))
    })?;
    drop(text);

    show(Event::Data { entries: data.items.len(), buckets: data.bucket_shares().len(), trainable });

    let judge = Judge { model: &model, vae: &vae, scheduler: &scheduler };
    let mut choice = None;
    if let (Some(held), Deliver::Best) = (&held, job.save.deliver) {
        let known = (steps_before > 0).then(|| lora_file::load(&last)).transpose()?;
        let known = known.map(|file| lora_file::into_lora(&file, &model)).transpose()?;
        choice = phases.time(Phase::ScoreBefore, show, |_| {
            let first = (known.as_ref().unwrap_or(&lora), steps_before);
            Choice::new(judge, held, clock, first, options.deadline_s)
        })?;
        match &choice {
            Some(choice) => show(Event::Contender(choice.first_and_best().0)),
            None => show(Event::Warning(
                "measuring the held-out pictures takes too much of the budget; the newest LoRA is delivered"
                    .into(),
            )),
        }
    }
    let scored = held.as_ref().filter(|_| job.save.deliver == Deliver::Newest);
    let mut scoring = scored.map(|held| Scoring::new(judge, held, clock));
    if let Some(scoring) = &mut scoring {
        phases.time(Phase::ScoreBefore, show, |show| {
            show(Event::Scored(scoring.before(options.deadline_s)?));
            Ok(())
        })?;
    }

    let mut ema =
        job.train.ema_decay.map(|decay| Ema::new(decay, !job.compat.constant_ema, &lora)).transpose()?;
    let mut optimiser = Optimiser::new(method, max_grad_norm(job), &lora)?;
    if let Start::Continue(saved) = &start {
        saved.restore(&mut lora.parameters, &mut optimiser, ema.as_mut())?;
        if saved.progress.data != data.fingerprint() {
            let text = "the pictures or captions are others than before, and so is the order of the batches";
            show(Event::Warning(text.into()));
        }
    }
    if let Some(sampling) = &mut sampling
        && (job.sample.first == FirstRound::Always
            || job.sample.first == FirstRound::AtStart && steps_before == 0)
    {
        phases.time(Phase::FirstSample, show, |show| {
            let began_s = clock.now_s();
            let until_s = options.deadline_s.map(|s| began_s + FIRST_SAMPLES_SHARE * (s - began_s));
            let mut may_go_on = |_| until_s.is_none_or(|until_s| clock.now_s() < until_s);
            let round = sampling.round(&lora, steps_before, &folder, &mut may_go_on, show);
            if unless_of_a_file(round, show)? == Some(false) {
                show(Event::Warning("the first sample pictures would take too much of the budget".into()));
            }
            Ok(())
        })?;
    }
    let write_s = trainable as f64 * SAVE_S_PER_PARAMETER + state_s(job, &lora, &optimiser, ema.is_some());
    let saves = (write_s, choice.as_ref().map_or(0.0, Choice::seconds));
    let before = (steps_before, start.progress(job, deadline_s));
    let lora_bytes = lora.parameters.len() * job.save.dtype.bytes();
    let mut budget = budget(job, options, &data, (saves, lora_bytes), &phases, before)?;
    let kept = memory::kept_blocks(job, &model, steps_ahead, &data, options, show)?;
    let trainer = Trainer::new(&model, lora, optimiser, kept)?.minimising(objective(job));
    let mut state = State::new(trainer, ema);
    let log = folder.file("metrics.jsonl");
    let mut best_is_due = false;
    let metrics = if steps_before > 0 {
        Metrics::resume(&log, steps_before).map(|(metrics, found)| {
            if found.bad_lines > 0 {
                let (lines, log) = (found.bad_lines, log.display());
                show(Event::Warning(format!("{log}: {lines} lines that are no steps were dropped")));
            }
            if let Some(validation) = &mut validation {
                validation.remember(found.records.iter().filter_map(|record| record.val_loss));
                best_is_due = newest_is_best(&found.records, steps_before);
            }
            state.take_back(&found.records);
            metrics
        })
    } else {
        Metrics::create(&log)
    };
    let metrics = metrics.map_err(|e| Error::file("use", &log, e))?;
    let board = match &job.log_dir {
        None => None,
        Some(parent) => {
            let folder = parent.join(&job.name);
            let board = TensorBoard::create(&folder, steps_before);
            Some(board.map_err(|e| Error::file("write to", &folder, e))?)
        }
    };
    let mut training = Training {
        job,
        model: &model,
        scheduler: &scheduler,
        steps_ahead,
        room: Room::new(options.device),
        drawn: None,
        saver: Saver::new(job, job.resume, Some(&data)),
        data,
        schedule: schedule(job, options.deadline_s.is_some()),
        metrics,
        board,
        validation,
        choice,
        requests,
        sampling,
        folder,
        stop: options.stop,
        saved: steps_before,
        last_at: None,
        best_is_due,
    };
    let train_began_s = clock.now_s();
    budget.phase_started(Phase::Train, train_began_s);
    show(Event::PhaseStarted(Phase::Train));
    let mut end = training.run(&mut state, &mut budget, options, show);
    let steps = budget.steps_done();
    if let (Ok(_), Some(diverged)) = (&end, state.diverged(steps)) {
        end = Err(diverged);
    }
    if matches!(end, Err(Error::Diverged { .. })) && !last.exists() {
        // Finite, and better than nothing.
        let saved = training.saver.save(state.best(), &last, steps);
        saved.map_err(|e| training.explained(&state, e))?;
    }
    let end = end?;
    let interrupted = end.is_none();
    if interrupted && steps == steps_before {
        return Ok(Summary::interrupted(job, steps, budget.deadline_s().map(|s| s - clock.now_s())));
    }
    training.follow(&state, &mut budget, clock, show)?;
    let last = training.folder.file(LAST);
    let (mut sampling, mut choice) = (training.sampling.take(), training.choice.take());
    let is_saved = training.last_at == Some(steps) && choice.is_none() && steps > 0 && last.exists();
    let trained_s = clock.now_s() - train_began_s;
    budget.phase_finished(Phase::Train, clock.now_s());
    show(Event::PhaseFinished { phase: Phase::Train, seconds: trained_s });

    budget.phase_started(Phase::FinalSave, clock.now_s());
    let end = end.map(|reason| if reason == FinishReason::StepsDone { End::Steps } else { End::Time });
    if let Err(e) = training.metrics.sync() {
        show(Event::Warning(format!("metrics are not being written: {e}")));
    }
    // Before the LoRA, so that whoever is killed between them still delivers it; what goes wrong is no reason not to.
    let (saver, folder) = (&training.saver, &training.folder);
    let kept = saver.save_state(folder, &state, &budget, clock.now_s(), end);
    if let Err(e) = &kept {
        show(Event::Warning(format!("the state of the run is not kept: {e}; it cannot be gone on with")));
    }
    let saved = match &mut choice {
        // The newest numbered one has it as a second name.
        None if is_saved => Ok(last.clone()),
        None => saver.save_final(state.best(), &last, steps),
        Some(choice) => {
            let mut may_go_on =
                |part| !options.stop.is_requested() && budget.allows_part(clock.now_s(), part);
            choice.settle(state.best(), steps, (saver, folder), &mut may_go_on, show)
        }
    };
    let saved = saved.map_err(|e| training.explained(&state, e))?;
    let mut lora = folder.finished();
    if saved != last {
        lora = saved;
    } else if lora != last
        && let Err(e) = saver.deliver(&last, &lora, steps)
    {
        show(Event::Warning(format!("{e}; the LoRA is {}", last.display())));
        lora = last.clone();
    }
    saver.told().into_iter().for_each(|text| show(Event::Warning(text)));
    if end.is_some() {
        folder.lock().tell_delivered(steps);
    }
    let folder = training.folder;
    options.stop.set_unsaved(false);
    budget.phase_finished(Phase::FinalSave, clock.now_s());
    show(Event::Saved { path: lora.clone(), steps });

    if let Some(sampling) = &mut sampling
        && !sampling.has_drawn(steps)
        && !options.stop.is_requested()
        && budget.allows(Phase::FinalSample, clock.now_s())
    {
        budget.phase_started(Phase::FinalSample, clock.now_s());
        let mut may_go_on = |part_s| budget.allows_part(clock.now_s(), part_s);
        let drawn = unless_interrupted(sampling.round(state.best(), steps, &folder, &mut may_go_on, show));
        unless_of_a_file(drawn, show)?;
        budget.phase_finished(Phase::FinalSample, clock.now_s());
    }
    if let Some(scoring) = &mut scoring
        && !options.stop.is_requested()
        && budget.allows(Phase::ScoreAfter, clock.now_s())
    {
        budget.phase_started(Phase::ScoreAfter, clock.now_s());
        show(Event::PhaseStarted(Phase::ScoreAfter));
        unless_interrupted(scoring.after(state.best(), &mut budget))?;
        let seconds = budget.phase_finished(Phase::ScoreAfter, clock.now_s()).unwrap_or(0.0);
        show(Event::PhaseFinished { phase: Phase::ScoreAfter, seconds });
    }
    if options.report && budget.allows(Phase::Report, clock.now_s()) {
        budget.phase_started(Phase::Report, clock.now_s());
        // The loss curve is quickly drawn, the sheet is not.
        let scored = scoring.as_ref().filter(|_| !options.stop.is_requested());
        let pictures = scored.map(Scoring::redrawn).unwrap_or_default();
        let drawn = report::write(job, &folder, &state.curve, &pictures, show);
        unless_of_a_file(drawn, show)?;
        budget.phase_finished(Phase::Report, clock.now_s());
    }
    let mut compared = None;
    if let Some(scoring) = &mut scoring {
        if !options.stop.is_requested() {
            unless_interrupted(scoring.fill(state.best(), &mut budget))?;
        }
        compared = scoring.compared();
        match compared {
            Some((_, trained)) => show(Event::Scored(trained)),
            None if options.stop.is_requested() => {}
            None => show(Event::Warning("no time was left to score the LoRA; it is saved".into())),
        }
    }
    let (before, after) = compared.unzip();
    let left_s = budget.deadline_s().map(|s| s - clock.now_s());
    let taken = steps.saturating_sub(steps_before).max(1);
    let chosen = choice.as_ref().map(Choice::first_and_best);
    let (step_s, lock) = (trained_s / taken as f64, Some(Arc::new(folder.into_lock())));
    Ok(Summary { lora, interrupted, steps, step_s, left_s, before, after, chosen, lock })
}

/// Puts in order what a run left that had come to its end: unfinished files, and files that it could not deliver.
fn finish(job: &Job, done: &Done, show: &mut dyn FnMut(Event)) {
    let swept = folder::sweep(&job.folder).map(|()| Vec::new());
    let completed = done.source.as_ref().map(|source| saving::complete(job, source, done.steps));
    for result in [Some(swept), completed].into_iter().flatten() {
        let told = result.unwrap_or_else(|e| vec![e.to_string()]);
        told.into_iter().for_each(|text| show(Event::Warning(text)));
    }
}

/// Whether the lowest validation loss so far is that of the last step.
fn newest_is_best(records: &[Record], steps: u64) -> bool {
    let losses = records.iter().filter_map(|record| Some((record.step, record.val_loss?)));
    let best = losses.filter(|(_, loss)| loss.is_finite()).reduce(|a, b| if b.1 < a.1 { b } else { a });
    best.is_some_and(|(step, _)| step == steps)
}

impl Summary {
    /// Of a run that was asked to end before it had made an update; `steps` are those of an earlier part of it.
    pub fn interrupted(job: &Job, steps: u64, left_s: Option<f64>) -> Self {
        Summary {
            lora: job.folder.join(LAST),
            interrupted: true,
            steps,
            step_s: 0.0,
            left_s,
            before: None,
            after: None,
            chosen: None,
            lock: None,
        }
    }

    /// Of a run that had been finished before.
    fn done(job: &Job, done: &Done, left_s: Option<f64>, lock: RunLock) -> Self {
        let finished = job.folder.join(format!("{}.safetensors", job.name));
        let newest = || RunFolder::numbered_in(&job.folder, &job.name).pop().map(|(_, path)| path);
        let usual = || if finished.exists() { finished } else { newest().unwrap_or(finished) };
        let lora = done.lora.clone().unwrap_or_else(usual);
        Summary {
            lora,
            interrupted: false,
            steps: done.steps,
            step_s: 0.0,
            left_s,
            before: None,
            after: None,
            chosen: None,
            lock: Some(Arc::new(lock)),
        }
    }
}
