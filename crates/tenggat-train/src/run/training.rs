//! The loop: as many steps as the budget allows, the newest adapter always on disk.

use std::ops::Range;

use safetensors::Dtype;
use tenggat_plan::{Decision, FinishReason, Position, SampleVerdict, Schedule};
use tenggat_tensor::Tensor;

use super::board::HeldOutMeasure;
use super::choice::Choice;
use super::deadline::Requests;
use super::event::{Event, Step};
use super::folder::RunFolder;
use super::live_curve::{Drawing, LiveCurve, thinned};
use super::models::Models;
use super::names::LAST;
use super::options::Options;
use super::out_of_memory::Ladder;
use super::report;
use super::sampling::Sampling;
use super::saving::Saver;
use super::stop::unless_interrupted;
use super::timeline::{Timed, Timeline};
use super::trained::Trained;
use super::{Error, Result};
use crate::data;
use crate::data::batch::{Noising, Prepared};
use crate::job::{Job, Train};
use crate::lora::file as lora_file;
use crate::measure::before_and_after::Scoring;
use crate::measure::validation::{Measured, Validation};
use crate::outcome::metrics::{Metrics, Record};
use crate::outcome::tensorboard::TensorBoard;
use crate::step::{Batch, Outcome, Part};

/// Steps after which the first forecast is worth showing.
const FIRST_FORECAST: u64 = 5;

/// Progress of the schedule above which a missing end does not matter.
const WHOLE_COURSE: f64 = 0.95;

/// A run that has begun to train: the loop, and the phases after it in `finish.rs`.
pub(super) struct Training<'a, 's> {
    pub job: &'a Job,
    pub options: &'a Options<'a>,
    pub time: Timeline<'a>,
    pub models: &'s Models,
    pub trained: Trained<'s>,
    pub data: Prepared,
    pub schedule: Schedule,
    pub folder: RunFolder,
    pub saver: Saver<'a>,
    pub metrics: Metrics,
    pub board: Option<TensorBoard>,
    pub live_curve: LiveCurve,
    /// Steps at which the run was resumed.
    pub resumes: Vec<u64>,
    pub validation: Option<Validation<'s>>,
    pub choice: Option<Choice<'s>>,
    pub scoring: Option<Scoring<'s>>,
    pub sampling: Option<Sampling<'s>>,
    pub requests: Requests,
    pub ladder: Ladder,
    /// The batches of the next step, drawn while a GPU works on the current one.
    pub next: Option<NextBatches>,
    /// Steps that were done when the run began.
    pub steps_before: u64,
    /// Steps in the newest LoRA or checkpoint on disk.
    pub saved: u64,
    /// Steps in `last.safetensors`, if this process has written it: a checkpoint may be ahead of its LoRA.
    pub last_at: Option<u64>,
    /// Whether the LoRA with the lowest validation loss is that of the step before the first.
    pub best_is_due: bool,
}

/// Batches of the next step.
pub(super) struct NextBatches {
    /// Number of the first.
    first: u64,
    batches: Vec<Batch>,
}

/// A step that was taken.
#[derive(Clone, Copy)]
struct Turn {
    bucket: usize,
    lr: f64,
    outcome: Outcome,
    /// When it began and ended, on the run's clock.
    began_s: f64,
    ended_s: f64,
}

impl<'a> Timed<'a> for Training<'a, '_> {
    type Ledger = tenggat_plan::Budget;

    fn timeline(&mut self) -> &mut Timeline<'a> {
        &mut self.time
    }
}

impl Training<'_, '_> {
    /// Trains until the budget is used up, and returns the reason; `None` if the run was interrupted.
    pub fn run(&mut self) -> Result<Option<FinishReason>> {
        self.catch_up()?;
        if let Some(choice) = &self.choice {
            let (first, _) = choice.first_and_best();
            self.board_error(first.steps, HeldOutMeasure::Velocity, first.error);
        }
        if self.steps_before == 0 {
            // Those before the first step, if there are any.
            self.board_samples(0);
        }
        unless_interrupted(self.finish_round())?;
        while !self.time.stop.is_requested() {
            self.follow()?;
            let bucket = self.data.bucket(self.first_batch(self.time.budget.steps_done()));
            unless_interrupted(self.answer_requests())?;
            if self.time.stop.is_requested() {
                break;
            }
            match self.time.budget.decide(self.time.now_s(), bucket) {
                Decision::Finish(reason) => {
                    self.tell_end(reason);
                    return Ok(Some(reason));
                }
                Decision::SaveLast => unless_interrupted(self.save_last())?,
                Decision::Step { progress, .. } => unless_interrupted(self.turn(bucket, progress))?,
            };
            if self.time.stop.takes_save() && self.saved < self.time.budget.steps_done() {
                unless_interrupted(self.save_last())?;
            }
        }
        Ok(None)
    }

    /// Moves the deadline, saves, samples or stops if somebody asked for it.
    fn answer_requests(&mut self) -> Result<()> {
        let Timeline { clock, show, stop, budget } = &mut self.time;
        let deadline_s = budget.deadline_s();
        let asked = self.requests.answer(budget, clock.now_s(), show);
        if budget.deadline_s() != deadline_s {
            self.folder.lock().tell_deadline(budget.deadline_s().map(|s| s - clock.now_s()));
        }
        stop.set_has_deadline(budget.deadline_s().is_some());
        if asked.save {
            stop.save_now();
        }
        if asked.stop {
            stop.request();
        }
        if asked.sample { self.sample_now() } else { Ok(()) }
    }

    /// One step and what follows from it.
    fn turn(&mut self, bucket: usize, progress: f64) -> Result<()> {
        let (step, began_s) = (self.time.budget.steps_done(), self.time.now_s());
        let lr = self.peak_lr(began_s) * self.schedule.factor(Position { step, progress });
        let outcome = self.step(step, lr)?;
        let ended_s = self.time.now_s();
        self.time.budget.observe_step(ended_s, bucket, ended_s - began_s);
        if outcome.updated {
            self.time.stop.set_unsaved(true);
        }
        self.take_in(step, outcome, lr)?;
        // The step is done and has its metrics line, even if an interrupt came meanwhile.
        let measured = unless_interrupted(self.validate())?.flatten();
        // A checkpoint counts on the line of its step.
        self.log(Turn { bucket, lr, outcome, began_s, ended_s }, measured.map(|measured| measured.loss));
        // Saving would create the folder again if it was renamed meanwhile.
        self.follow()?;
        if measured.is_some_and(|measured| measured.is_best) {
            self.save_best()?;
        }
        self.save_numbered()?;
        self.sample()?;
        self.draw_curve();
        Ok(())
    }

    /// Generates the samples of a round that an earlier part of the run was cut off in.
    fn finish_round(&mut self) -> Result<()> {
        let done = self.time.budget.steps_done();
        if let Some(sampling) = &mut self.sampling
            && done > 0
            && !sampling.has_drawn(done)
        {
            sampling.take_over(done, &self.folder);
            self.sample()?;
        }
        Ok(())
    }

    /// Adds a step to the loss curve; gives up after too many steps without a usable loss, and at once if the
    /// update before this step ruined the weights.
    fn take_in(&mut self, step: u64, outcome: Outcome, lr: f64) -> Result<()> {
        let trained = &mut self.trained;
        // Ruined weights have no loss, so that good steps need not be looked at.
        if !outcome.updated && !trained.is_skipping() && !is_finite(&trained.trainer.lora().parameters)? {
            return Err(self.not_finite(String::new()));
        }
        trained.add_step(step, outcome, lr, self.time.show)
    }

    /// Why a save failed; if weights are not finite, which update made them so.
    pub fn explained(&self, error: Error) -> Error {
        match error {
            Error::LoraFile(lora_file::Error::NotFinite { dtype, .. }) => {
                let as_stored = if dtype == Dtype::F32 { String::new() } else { format!(" as {dtype}") };
                self.not_finite(as_stored)
            }
            other => other,
        }
    }

    /// The error of weights that are not finite.
    fn not_finite(&self, as_stored: String) -> Error {
        let update = self.trained.last_update.unwrap_or_default();
        let last = self.folder.file(LAST);
        let kept = if last.exists() {
            let steps = lora_file::load(&last).ok().and_then(|file| file.step());
            let steps = steps.map_or("good weights".into(), |steps| format!("those of step {steps}"));
            format!("{} still holds {steps}", last.display())
        } else {
            "nothing was saved before it".into()
        };
        Error::NotFinite { step: update.step, lr: update.lr, as_stored, kept }
    }

    /// What the user should know about an unplanned end, or one before the first forecast.
    fn tell_end(&mut self, reason: FinishReason) {
        let now_s = self.time.now_s();
        if self.time.budget.steps_done() < FIRST_FORECAST {
            let forecast = self.time.budget.forecast(now_s);
            self.time.tell(Event::Forecast(forecast));
        }
        let progress = self.time.budget.progress();
        // Where somebody took time away, the machine is not to blame.
        let is_cut = reason == FinishReason::OutOfTime && !self.requests.is_shortened();
        if is_cut && self.time.budget.steps_done() > 0 && progress < WHOLE_COURSE {
            self.time.warn(format!(
                "the machine became slower near the end: the learning rate got through only {:.0} % of its \
                 schedule",
                100.0 * progress
            ));
        }
    }

    /// Peak of the learning rate: the job's, or what suits the number of steps that is expected in all.
    fn peak_lr(&mut self, now_s: f64) -> f64 {
        let (train, budget) = (&self.job.train, &mut self.time.budget);
        let Some(product) = train.lr_times_steps.filter(|_| budget.steps_done() >= FIRST_FORECAST) else {
            return train.lr;
        };
        let total = budget.forecast(now_s).steps_total.filter(|&steps| steps > 0);
        total.map_or(train.lr, |steps| {
            (product / steps as f64).clamp(train.lr / Train::LR_SPAN, train.lr * Train::LR_SPAN)
        })
    }

    fn first_batch(&self, step: u64) -> u64 {
        step * self.job.train.gradient_accumulation.max(1) as u64
    }

    /// One update.
    fn step(&mut self, step: u64, lr: f64) -> Result<Outcome> {
        let noising = Noising::of(self.job);
        self.prepare(step, &noising)?;
        let first = self.first_batch(step);
        let accumulation = self.job.train.gradient_accumulation.max(1) as u64;
        let (data, models) = (&mut self.data, self.models);
        let mut draw = |first: u64| {
            let numbers = first..first + accumulation;
            let batch = |number| data.draw(number, &models.transformer, &models.scheduler, &noising);
            numbers.map(batch).collect::<data::Result<Vec<_>>>()
        };
        let batches = match self.next.take() {
            Some(drawn) if drawn.first == first => drawn.batches,
            _ => draw(first)?,
        };
        let (next, mut drawn, mut parts) = (first + accumulation, None, 0);
        let mut meanwhile = |part| {
            parts += u64::from(part == Part::Backward);
            if part == Part::Backward && parts == accumulation {
                // Should it fail, it fails again when its turn comes.
                drawn = draw(next).ok();
            }
        };
        let trained = &mut self.trained;
        let outcome = self.ladder.step(&mut trained.trainer, &batches, lr, &mut meanwhile, self.time.show)?;
        self.next = drawn.map(|batches| NextBatches { first: next, batches });
        if let (Some(ema), true) = (&mut trained.ema, outcome.updated) {
            ema.update(trained.trainer.lora())?;
        }
        Ok(outcome)
    }

    /// Prepares the modulation of this step and of those after it, if that was not done yet. Which steps are
    /// prepared together depends on their number alone, so that a resumed run multiplies the same matrices.
    fn prepare(&mut self, step: u64, noising: &Noising) -> Result<()> {
        let Some(together) = self.models.modulation_steps.filter(|&steps| steps > 0) else { return Ok(()) };
        if !self.models.transformer.is_prepared(&self.sigmas(step..step + 1, noising)?) {
            let first = step - step % together;
            self.models.transformer.prepare(&self.sigmas(first..first + together, noising)?)?;
        }
        Ok(())
    }

    /// Noise levels of all samples of some steps.
    fn sigmas(&mut self, steps: Range<u64>, noising: &Noising) -> Result<Vec<f64>> {
        let mut sigmas = Vec::new();
        for number in self.first_batch(steps.start)..self.first_batch(steps.end) {
            let drawn = self.data.levels(number, &self.models.scheduler, noising)?;
            sigmas.extend(drawn.into_iter().map(|level| level.sigma));
        }
        Ok(sigmas)
    }

    /// Writes a step to the metrics and tells whoever watches.
    fn log(&mut self, turn: Turn, val_loss: Option<f64>) {
        let Turn { bucket, lr, outcome, began_s, ended_s } = turn;
        let (done, step_s) = (self.time.budget.steps_done(), ended_s - began_s);
        let (width, height) = self.data.bucket_size(bucket);
        let record = Record {
            step: done,
            time_s: ended_s,
            loss: outcome.loss,
            lr,
            grad_norm: outcome.gradient_norm,
            s_per_step: step_s,
            bucket: format!("{width}x{height}"),
            val_loss,
        };
        if let Err(e) = self.metrics.write(&record) {
            self.time.warn(format!("metrics are not being written: {e}"));
        }
        self.board_step(&record);
        let forecast = self.time.budget.forecast(ended_s);
        let (total, left_s, end_s) = (forecast.steps_total, forecast.left_s, forecast.end_s);
        if done == FIRST_FORECAST {
            self.time.tell(Event::Forecast(forecast));
        }
        let (loss, smoothed) = (outcome.loss, self.trained.smoothed);
        self.time.tell(Event::Step(Step { done, total, loss, smoothed, lr, step_s, left_s, end_s }));
    }

    /// Draws the loss curve so far, once a minute, if the run wants reports.
    fn draw_curve(&mut self) {
        let now_s = self.time.now_s();
        if !self.options.report || !self.live_curve.is_due(now_s) {
            return;
        }
        let (title, subtitle) = report::titles(self.job, self.trained.curve.len());
        let (points, resumes) = (thinned(&self.trained.curve), self.resumes.clone());
        let drawing = Drawing { title, subtitle, points, resumes, path: self.folder.file("loss.png") };
        self.live_curve.draw(now_s, drawing, report::draw);
    }

    /// Measures the validation images if they are due and there is time.
    fn validate(&mut self) -> Result<Option<Measured>> {
        let Some(validation) = &mut self.validation else { return Ok(None) };
        let Timeline { clock, budget, .. } = &mut self.time;
        let done = budget.steps_done();
        Ok(validation.measure(self.trained.best(), done, budget, *clock)?)
    }

    /// The samples that the job wants at certain steps, if there is time for them.
    fn sample(&mut self) -> Result<()> {
        let (done, plan) = (self.time.budget.steps_done(), &self.job.sample);
        if self.sampling.is_none()
            || plan.every == 0
            || !done.is_multiple_of(plan.every)
            || done < plan.start_step
        {
            return Ok(());
        }
        let began_s = self.time.now_s();
        let why = match self.time.budget.allows_samples(began_s) {
            SampleVerdict::Go => return self.sample_round(began_s),
            SampleVerdict::WouldEndangerTheEnd => "training would not end in time",
            SampleVerdict::WouldCutSteps => "the remaining steps would no longer fit",
            SampleVerdict::ShareSpent => "samples have had their share of the time",
        };
        self.time.warn(format!("no samples at step {done}: {why}"));
        Ok(())
    }

    /// A round of samples that somebody asked for, if the end stays in time.
    fn sample_now(&mut self) -> Result<()> {
        let (began_s, done) = (self.time.now_s(), self.time.budget.steps_done());
        let Some(sampling) = &self.sampling else {
            self.time.warn("cannot generate the requested samples: the job has no `sample.prompts`");
            return Ok(());
        };
        if done == 0 || sampling.has_drawn(done) {
            return Ok(());
        }
        if self.time.budget.allows_samples(began_s) == SampleVerdict::WouldEndangerTheEnd {
            self.time.warn("cannot generate the requested samples: the training would not end in time");
            return Ok(());
        }
        self.sample_round(began_s)
    }

    /// A round of samples, whose time counts from `began_s`.
    fn sample_round(&mut self, began_s: f64) -> Result<()> {
        self.save_before()?;
        let Some(sampling) = &mut self.sampling else { return Ok(()) };
        let Timeline { clock, show, budget, .. } = &mut self.time;
        let done = budget.steps_done();
        let mut may_go_on = |part_s| budget.allows_part(clock.now_s(), part_s);
        let drawn = sampling.round(self.trained.best(), done, &self.folder, &mut may_go_on, show);
        self.time.unless_of_a_file(drawn)?;
        self.board_samples(done);
        let now_s = self.time.now_s();
        self.time.budget.observe_samples(now_s, now_s - began_s);
        Ok(())
    }
}

/// Whether all values are finite numbers.
fn is_finite(values: &Tensor) -> Result<bool> {
    Ok(values.to_f32()?.iter().fold(true, |all, v| all & v.is_finite()))
}
