//! A run from its folder to its summary. Each phase is a method; those from training on are in `finish.rs`.

use std::collections::HashSet;
use std::path::Path;

use tenggat_models::qwen_image::PromptEncoder;
use tenggat_plan::Phase;

use super::choice::Choice;
use super::costs::{self, Costs};
use super::deadline::Requests;
use super::event::Event;
use super::folder::RunFolder;
use super::live_curve::LiveCurve;
use super::lock::RunLock;
use super::memory;
use super::models::{self, Models};
use super::names::LAST;
use super::opening::{self, Opening, Taken};
use super::options::Options;
use super::out_of_memory::Ladder;
use super::recipe::{first_lora, max_grad_norm, objective, schedule};
use super::resume::Start;
use super::sampling::Sampling;
use super::saving::Saver;
use super::summary::Summary;
use super::timeline::{Ledger, NoBudgetYet, Timed, Timeline};
use super::trained::Trained;
use super::training::Training;
use super::{Error, Result};
use crate::data::batch::Prepared;
use crate::data::encoding::Encoders;
use crate::data::pictures;
use crate::job::{Deliver, FirstRound, Job};
use crate::lora::average::Ema;
use crate::lora::file as lora_file;
use crate::measure::before_and_after::Scoring;
use crate::measure::images;
use crate::measure::score::HeldOut;
use crate::measure::validation::Validation;
use crate::outcome::metrics::{Metrics, Record};
use crate::outcome::tensorboard::TensorBoard;
use crate::step::Trainer;
use crate::step::optimiser::{Method, Optimiser};
use tenggat_models::lora::Lora;

/// Share of the time left that the samples before the first step may take.
const FIRST_SAMPLES_SHARE: f64 = 0.1;

/// Runs a job. An interrupted run of the same job is resumed, and ends as if it had not been interrupted.
///
/// Once [`Options::stop`] is requested, the current work ends within moments, and what was trained is saved.
///
/// # Errors
/// The model, the images or the folder of the results cannot be used, or the training diverges. What was
/// saved before stays on disk.
pub fn run(job: &Job, options: &Options<'_>, show: &mut dyn FnMut(Event)) -> Result<Summary> {
    options.stop.set_has_deadline(options.deadline_s.is_some());
    let mut before = 0;
    match run_phases(job, options, &mut before, show) {
        // Before the training began, so that there is nothing to save.
        Err(e) if e.is_interrupted() => {
            let left_s = options.deadline_s.map(|s| s - options.clock.now_s());
            Ok(Summary::interrupted(job, before, left_s))
        }
        Err(e) => {
            if !matches!(e, Error::Locked(_)) {
                opening::forget_failed(job);
            }
            Err(e)
        }
        done => done,
    }
}

/// [`run`]; `before` becomes the number of steps that were done earlier.
fn run_phases(
    job: &Job,
    options: &Options<'_>,
    before: &mut u64,
    show: &mut dyn FnMut(Event),
) -> Result<Summary> {
    opening::check_end(job, options)?;
    let Taken { lock, start } = match opening::open(job, options, show)? {
        Opening::Done(summary) => return Ok(*summary),
        Opening::Begin(taken) => *taken,
    };
    let (clock, deadline_s) = opening::clock(&start, job, options, lock.before());
    let spent_before_s = clock.before_s;
    let options = &Options { clock: &clock, deadline_s, ..*options };
    *before = start.steps();

    let mut run = Run::begin(job, options, Begin { lock, start, spent_before_s }, show)?;
    let images = run.find_images()?;
    let (models, text) = run.load()?;
    let mut encoded = run.encode(&models, text, images)?;
    let held = encoded.held.take();
    let measures = run.score_before(&models, held.as_deref())?;
    let learner = run.learner(&encoded.data)?;
    run.first_samples(&mut encoded.sampling)?;
    run.into_training(&models, encoded, measures, learner)?.finish()
}

/// A run until it trains.
struct Run<'a> {
    job: &'a Job,
    /// With the clock and the deadline of the run, which may have been resumed.
    options: &'a Options<'a>,
    time: Timeline<'a, NoBudgetYet>,
    folder: RunFolder,
    start: Start,
    requests: Requests,
    /// Folder of the held-out images.
    held_out: Option<&'a Path>,
    lora: Lora,
}

/// What a run begins with.
struct Begin {
    lock: RunLock,
    start: Start,
    /// Seconds that the run's clock is ahead of the process's.
    spent_before_s: f64,
}

/// What is trained and measured on, encoded.
struct Encoded<'s> {
    data: Prepared,
    held: Option<Vec<HeldOut>>,
    validation: Option<Validation<'s>>,
    sampling: Option<Sampling<'s>>,
}

/// How held-out images are used: to choose the best LoRA, or to score the newest.
struct Measures<'s> {
    choice: Option<Choice<'s>>,
    scoring: Option<Scoring<'s>>,
}

/// What changes besides the weights.
struct Learner {
    optimiser: Optimiser,
    ema: Option<Ema>,
}

impl<'a> Timed<'a> for Run<'a> {
    type Ledger = NoBudgetYet;

    fn timeline(&mut self) -> &mut Timeline<'a, NoBudgetYet> {
        &mut self.time
    }
}

impl<'a> Run<'a> {
    /// Opens the folder and makes the adapter that the run begins with.
    fn begin(
        job: &'a Job,
        options: &'a Options<'a>,
        begin: Begin,
        show: &'a mut dyn FnMut(Event),
    ) -> Result<Self> {
        let Begin { mut lock, start, spent_before_s } = begin;
        let mut time = Timeline::new(options.clock, options.stop, show);
        lock.start(time.now_s(), options.deadline_s.map(|s| s - time.now_s()));
        let folder = RunFolder::open(&job.folder, &job.name, lock)?;
        let steps = start.steps();
        if steps > 0 || spent_before_s > 0.0 {
            time.tell(Event::Resumed { steps, spent_before_s, deadline_s: options.deadline_s });
        }
        let requests = Requests::new(&job.folder);
        let config = folder.file("config.yaml");
        if let Err(e) = crate::files::atomic::write(&config, job.config.as_bytes()) {
            time.warn(Error::file("write", &config, e).to_string());
        }
        let held_out = options.held_out.or(job.held_out.as_deref());
        if job.save.deliver == Deliver::Best && held_out.is_none() {
            let text =
                "`deliver: best` needs images to measure on; name their folder as `held_out`, beside it";
            return Err(Error::Job(text.into()));
        }
        let mut lora = first_lora(job, options.model, options.device, time.show)?;
        if let Start::FromLora(file, _) = &start {
            lora_file::start_from(file, &mut lora)?;
        }
        let last = folder.file(LAST);
        if job.save.deliver == Deliver::Best && (steps == 0 || !last.exists()) {
            // Whatever happens from here on, there is a LoRA.
            Saver::new(job, false, None).save(&lora, &last, 0)?;
        }
        Ok(Run { job, options, time, folder, start, requests, held_out, lora })
    }

    /// Looks for the images. Unreadable ones are reported before the model is read, which may take minutes.
    fn find_images(&mut self) -> Result<pictures::Loaded> {
        let mut loaded = pictures::load(&self.job.datasets, self.job.compat, self.job.seed)?;
        std::mem::take(&mut loaded.remarks).into_iter().for_each(|remark| self.time.warn(remark));
        Ok(loaded)
    }

    /// Reads the model.
    fn load(&mut self) -> Result<(Models, PromptEncoder)> {
        self.phase(Phase::Load, |run| models::load(run.job, run.options, run.time.show))
    }

    /// Encodes images and prompts, after which the text encoder is not needed any more.
    fn encode<'s>(
        &mut self,
        models: &'s Models,
        text: PromptEncoder,
        images: pictures::Loaded,
    ) -> Result<Encoded<'s>>
    where
        'a: 's,
    {
        let encoded = self.phase(Phase::Cache, |run| {
            let encoders = Encoders {
                device: run.options.device,
                vae: &models.vae,
                text: &text,
                text_width: models.transformer.config().joint_attention_dim,
                model: run.options.model,
                interrupt: run.options.stop.interrupt(),
            };
            let data = run.encode_data(images, &encoders)?;
            let held = run.encode_held_out(&encoders)?;
            let sampling = Sampling::new(run.job, &text, models.generator(), run.options.clock)?;
            let (validation, broken) =
                Validation::new(run.job.train.validation.as_ref(), models.judge(), &encoders)?;
            for bad in broken {
                run.time.warn(format!("left out of the validation images: {}", bad.error));
            }
            Ok(Encoded { data, held, validation, sampling })
        })?;
        let data = &encoded.data;
        let (entries, buckets) = (data.items.len(), data.bucket_shares().len());
        self.time.tell(Event::Data { entries, buckets, trainable: self.trainable() });
        Ok(encoded)
    }

    /// What is trained on.
    fn encode_data(&mut self, images: pictures::Loaded, encoders: &Encoders<'_>) -> Result<Prepared> {
        let pictures::Loaded { items, mut bad, .. } = images;
        let mut remarks = Vec::new();
        let (data, broken) = Prepared::new(items, self.job, encoders, &mut remarks)?;
        bad.extend(broken);
        let mut told = HashSet::new();
        // An image that is broken is so at every resolution.
        for bad in bad.iter().filter(|bad| told.insert(&bad.path)) {
            self.time.warn(format!("left out: {}", bad.error));
        }
        remarks.into_iter().for_each(|remark| self.time.warn(remark));
        Ok(data)
    }

    /// The held-out images, if the user names a folder of them.
    fn encode_held_out(&mut self, encoders: &Encoders<'_>) -> Result<Option<Vec<HeldOut>>> {
        let Some(path) = self.held_out else { return Ok(None) };
        let (pictures, broken) = images::load(path, self.job, encoders)?;
        for bad in broken {
            self.time.warn(format!("left out of the held-out images: {}", bad.error));
        }
        Ok(Some(pictures))
    }

    /// Parameters that are trained.
    fn trainable(&self) -> usize {
        self.lora.layout.trained_ranges().iter().map(ExactSizeIterator::len).sum()
    }

    /// Measures what the run begins with on the held-out images, if there are any.
    fn score_before<'s>(&mut self, models: &'s Models, held: Option<&'s [HeldOut]>) -> Result<Measures<'s>>
    where
        'a: 's,
    {
        let mut measures = Measures { choice: None, scoring: None };
        match (held, self.job.save.deliver) {
            (None, _) => {}
            (Some(held), Deliver::Best) => measures.choice = self.first_contender(models, held)?,
            (Some(held), Deliver::Newest) => {
                let mut scoring = Scoring::new(models.judge(), held, self.options.clock);
                self.phase(Phase::ScoreBefore, |run| {
                    let scores = scoring.before(run.options.deadline_s)?;
                    run.time.tell(Event::Scored(scores.weighed(run.job.held_out_weights)));
                    Ok(())
                })?;
                measures.scoring = Some(scoring);
            }
        }
        Ok(measures)
    }

    /// The first of the LoRAs among which the best is chosen: an earlier part's best, or the bare model.
    fn first_contender<'s>(&mut self, models: &'s Models, held: &'s [HeldOut]) -> Result<Option<Choice<'s>>>
    where
        'a: 's,
    {
        let steps = self.start.steps();
        let known = (steps > 0).then(|| lora_file::load(&self.folder.file(LAST))).transpose()?;
        let known = known.map(|file| lora_file::into_lora(&file, &models.transformer)).transpose()?;
        let choice = self.phase(Phase::ScoreBefore, |run| {
            let lora = known.as_ref().unwrap_or(&run.lora);
            let (clock, deadline_s) = (run.options.clock, run.options.deadline_s);
            Choice::new(models.judge(), held, clock, lora, steps, deadline_s, run.job.held_out_weights)
        })?;
        match &choice {
            Some(choice) => self.time.tell(Event::Contender(choice.first_and_best().0)),
            None => self.time.warn(
                "measuring the held-out images takes too much of the budget; the newest LoRA is delivered",
            ),
        }
        Ok(choice)
    }

    /// The optimiser and the average, restored from an earlier part of the run.
    fn learner(&mut self, data: &Prepared) -> Result<Learner> {
        let Run { job, lora, time, start, .. } = self;
        let method = Method::of(&job.train.optimiser, job.train.lr);
        let average = |decay| Ema::new(decay, !job.compat.constant_ema, lora);
        let mut ema = job.train.ema_decay.map(average).transpose()?;
        let mut optimiser = Optimiser::new(method, max_grad_norm(job), lora)?;
        if let Start::Continue(saved) = start {
            saved.restore(&mut lora.parameters, &mut optimiser, ema.as_mut())?;
            if saved.progress.data != data.fingerprint() {
                time.warn("the images or captions changed, and with them the order of the batches");
            }
        }
        Ok(Learner { optimiser, ema })
    }

    /// Samples before the first step, if the job wants them.
    fn first_samples(&mut self, sampling: &mut Option<Sampling<'_>>) -> Result<()> {
        let Some(sampling) = sampling else { return Ok(()) };
        let steps = self.start.steps();
        let is_wanted = match self.job.sample.first {
            FirstRound::Always => true,
            FirstRound::AtStart => steps == 0,
            FirstRound::Never => false,
        };
        if !is_wanted {
            return Ok(());
        }
        self.phase(Phase::FirstSample, |run| {
            let clock = run.options.clock;
            let began_s = clock.now_s();
            let until_s = run.options.deadline_s.map(|s| began_s + FIRST_SAMPLES_SHARE * (s - began_s));
            let mut may_go_on = |_| until_s.is_none_or(|until_s| clock.now_s() < until_s);
            let round = sampling.round(&run.lora, steps, &run.folder, &mut may_go_on, run.time.show);
            if run.time.unless_of_a_file(round)? == Some(false) {
                run.time.warn("the first samples would take too much of the budget");
            }
            Ok(())
        })
    }

    /// What is known of the costs when the training begins.
    fn costs(&self, learner: &Learner, choice: Option<&Choice<'_>>) -> Costs {
        let (job, lora) = (self.job, &self.lora);
        let state_s = costs::state_s(job, lora, &learner.optimiser, learner.ema.is_some());
        Costs {
            write_s: self.trainable() as f64 * costs::SAVE_S_PER_PARAMETER + state_s,
            measure_s: choice.map_or(0.0, Choice::seconds),
            lora_bytes: lora.parameters.len() * job.save.dtype.bytes(),
            steps_done: self.start.steps(),
            progress_done: self.start.progress(job, self.options.deadline_s),
        }
    }

    /// Makes the budget, the training step and the logs.
    fn into_training<'s>(
        mut self,
        models: &'s Models,
        encoded: Encoded<'s>,
        measures: Measures<'s>,
        learner: Learner,
    ) -> Result<Training<'a, 's>> {
        let Encoded { data, mut validation, sampling, .. } = encoded;
        let costs = self.costs(&learner, measures.choice.as_ref());
        let budget = costs::budget(self.job, self.options, &data, &costs, self.time.budget.records())?;
        let (job, options, steps_before) = (self.job, self.options, self.start.steps());
        let recompute = memory::recompute(
            job,
            &models.transformer,
            models.modulation_steps,
            &data,
            options,
            self.time.show,
        )?;
        let trainer = Trainer::new(&models.transformer, self.lora, learner.optimiser, recompute)?;
        let mut trained = Trained::new(trainer.minimising(objective(job)), learner.ema);
        let log = Log::open(&self.folder.file("metrics.jsonl"), steps_before)?;
        log.remarks.into_iter().for_each(|remark| self.time.warn(remark));
        trained.restore_curve(&log.before);
        let mut best_is_due = false;
        if let Some(validation) = &mut validation {
            validation.remember(log.before.iter().filter_map(|record| record.val_loss));
            best_is_due = newest_is_best(&log.before, steps_before);
        }
        let resumes = resumes(&self.folder, steps_before);
        Ok(Training {
            job,
            options,
            time: self.time.with_budget(budget),
            models,
            trained,
            saver: Saver::new(job, job.resume, Some(&data)),
            data,
            schedule: schedule(job, options.deadline_s.is_some()),
            folder: self.folder,
            metrics: log.metrics,
            live_curve: LiveCurve::default(),
            resumes,
            board: board(job, steps_before)?,
            validation,
            choice: measures.choice,
            scoring: measures.scoring,
            sampling,
            requests: self.requests,
            ladder: Ladder::new(options.device),
            next: None,
            steps_before,
            saved: steps_before,
            last_at: None,
            best_is_due,
        })
    }
}

/// The metrics of a run, with the lines of its earlier part.
struct Log {
    metrics: Metrics,
    before: Vec<Record>,
    remarks: Vec<String>,
}

impl Log {
    /// Opens the metrics of a run that did this many steps before.
    fn open(path: &Path, steps: u64) -> Result<Self> {
        let used = |e| Error::file("use", path, e);
        if steps == 0 {
            let metrics = Metrics::create(path).map_err(used)?;
            return Ok(Log { metrics, before: Vec::new(), remarks: Vec::new() });
        }
        let (metrics, found) = Metrics::resume(path, steps).map_err(used)?;
        let (lines, log) = (found.bad_lines, path.display());
        let remark = (lines > 0).then(|| match lines {
            1 => format!("{log}: dropped a line that is not a step"),
            _ => format!("{log}: dropped {lines} lines that are not steps"),
        });
        Ok(Log { metrics, before: found.records, remarks: remark.into_iter().collect() })
    }
}

/// The log for TensorBoard, if the job wants one.
fn board(job: &Job, steps: u64) -> Result<Option<TensorBoard>> {
    let Some(parent) = &job.log_dir else { return Ok(None) };
    let folder = parent.join(&job.name);
    let board = TensorBoard::create(&folder, steps);
    Ok(Some(board.map_err(|e| Error::file("write to", &folder, e))?))
}

/// Steps at which the run was resumed, now included. The log of events may be missing or not know it yet.
fn resumes(folder: &RunFolder, steps_before: u64) -> Vec<u64> {
    if steps_before == 0 {
        return Vec::new();
    }
    let mut run = tenggat_runs::Run::new(folder.path());
    run.refresh();
    let mut steps = run.history().resumes.clone();
    steps.push(steps_before);
    steps.sort_unstable();
    steps.dedup();
    steps
}

/// Whether the lowest validation loss so far is that of the last step.
fn newest_is_best(records: &[Record], steps: u64) -> bool {
    let losses = records.iter().filter_map(|record| Some((record.step, record.val_loss?)));
    let best = losses.filter(|(_, loss)| loss.is_finite()).reduce(|a, b| if b.1 < a.1 { b } else { a });
    best.is_some_and(|(step, _)| step == steps)
}
