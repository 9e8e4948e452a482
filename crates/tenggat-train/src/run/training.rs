//! The loop: as many steps as the budget allows, the newest adapter always on disk.

use std::ops::Range;

use safetensors::Dtype;
use tenggat_models::qwen_image::Scheduler;
use tenggat_models::qwen_image::transformer::Transformer;
use tenggat_plan::{Budget, Clock, Decision, FinishReason, Position, SampleVerdict, Schedule};
use tenggat_tensor::Tensor;

use super::choice::Choice;
use super::data::Prepared;
use super::deadline::Requests;
use super::event::{Event, Step};
use super::folder::{LAST, RunFolder};
use super::room::Room;
use super::sampling::Sampling;
use super::saving::Saver;
use super::stop::{Stop, unless_interrupted};
use super::validation::Validation;
use super::{Error, Options, Result};
use crate::draws::{Draws, NoiseLevels};
use crate::ema::Ema;
use crate::job::{Job, Train};
use crate::lora_file;
use crate::metrics::{Metrics, Record};
use crate::report::Point;
use crate::step::{Batch, Outcome, Part, Trainer};
use crate::tensorboard::TensorBoard;

/// Steps in a row without a usable loss after which a run is given up.
const MAX_UNUSABLE: u64 = 20;
/// Of so many at its end a run is not said to have succeeded: a single one may be a bad batch.
const MAX_UNUSABLE_AT_END: u64 = 3;
/// Weight of the newest loss in the smoothed one.
const SMOOTHING: f64 = 0.02;
/// Steps after which the first forecast is worth showing.
const FIRST_FORECAST: u64 = 5;

/// Progress of the schedule from which on its end is not missed.
const WHOLE_COURSE: f64 = 0.95;

/// What the loop works with. The samples outlive it.
pub(super) struct Training<'a, 's> {
    pub job: &'a Job,
    pub model: &'a Transformer,
    pub scheduler: &'a Scheduler,
    /// Steps whose modulation is worked out together; `None` if it is part of the step.
    pub steps_ahead: Option<u64>,
    pub data: Prepared,
    pub schedule: Schedule,
    pub folder: RunFolder,
    pub saver: Saver<'a>,
    pub metrics: Metrics,
    pub board: Option<TensorBoard>,
    pub validation: Option<Validation<'s>>,
    pub choice: Option<Choice<'s>>,
    pub requests: Requests,
    pub room: Room,
    /// The batches of a step to come, drawn while a GPU is at work on the one before.
    pub drawn: Option<(u64, Vec<Batch>)>,
    pub sampling: Option<Sampling<'s>>,
    pub stop: &'a Stop,
    /// Steps in the newest LoRA or state on disk.
    pub saved: u64,
    /// Steps in `last.safetensors`, if this process has written it: a state may be ahead of its LoRA.
    pub last_at: Option<u64>,
    /// Whether the LoRA with the lowest validation loss is that of the step before the first.
    pub best_is_due: bool,
}

/// The trained state.
pub(super) struct State<'a> {
    pub trainer: Trainer<'a>,
    pub ema: Option<Ema>,
    pub curve: Vec<Point>,
    smoothed: f64,
    unusable: u64,
    /// Step and learning rate of the last update.
    last_update: Option<(u64, f64)>,
}

impl<'a> State<'a> {
    pub fn new(trainer: Trainer<'a>, ema: Option<Ema>) -> Self {
        State { trainer, ema, curve: Vec::new(), smoothed: f64::NAN, unusable: 0, last_update: None }
    }

    /// The adapter that is saved and scored: the average if there is one.
    pub fn best(&self) -> &tenggat_models::lora::Lora {
        self.ema.as_ref().map_or(self.trainer.lora(), Ema::average)
    }

    /// Whether the last updates were skipped, so that what the weights are worth is in doubt.
    pub fn is_skipping(&self) -> bool {
        self.unusable > 0
    }

    /// The error of a run whose last updates were all skipped.
    pub fn diverged(&self, step: u64) -> Option<Error> {
        let lr = self.last_update.map_or(0.0, |(_, lr)| lr);
        (self.unusable >= MAX_UNUSABLE_AT_END).then_some(Error::Diverged { step, times: self.unusable, lr })
    }
}

impl Training<'_, '_> {
    /// Trains until the budget says finish, which is returned with its reason, or somebody asks to stop.
    pub fn run(
        &mut self,
        state: &mut State<'_>,
        budget: &mut Budget,
        options: &Options<'_>,
        show: &mut dyn FnMut(Event),
    ) -> Result<Option<FinishReason>> {
        let clock = options.clock;
        self.catch_up(state, budget, clock, show)?;
        unless_interrupted(self.finish_round(state, budget, clock, show))?;
        while !self.stop.is_requested() {
            self.follow(state, budget, clock, show)?;
            let bucket = self.data.bucket(self.first_batch(budget.steps_done()));
            let deadline_s = budget.deadline_s();
            self.requests.answer(budget, clock.now_s(), show);
            if budget.deadline_s() != deadline_s {
                self.folder.lock().tell_deadline(budget.deadline_s().map(|s| s - clock.now_s()));
            }
            self.stop.set_has_deadline(budget.deadline_s().is_some());
            match budget.decide(clock.now_s(), bucket) {
                Decision::Finish(reason) => {
                    self.tell_end(reason, budget, clock, show);
                    return Ok(Some(reason));
                }
                Decision::SaveLast => {
                    unless_interrupted(self.save_last(state, budget, clock, show))?;
                }
                Decision::Step { progress, .. } => {
                    unless_interrupted(self.turn(state, (bucket, progress), budget, clock, show))?;
                }
            }
            if self.stop.takes_save() && self.saved < budget.steps_done() {
                unless_interrupted(self.save_last(state, budget, clock, show))?;
            }
        }
        Ok(None)
    }

    /// One step and what follows from it.
    fn turn(
        &mut self,
        state: &mut State<'_>,
        (bucket, progress): (usize, f64),
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (step, began_s) = (budget.steps_done(), clock.now_s());
        let lr = self.peak_lr(budget, began_s) * self.schedule.factor(Position { step, progress });
        let outcome = self.step(state, step, lr, show)?;
        let now_s = clock.now_s();
        budget.observe_step(now_s, bucket, now_s - began_s);
        if outcome.updated {
            self.stop.set_unsaved(true);
        }
        self.take_in(state, step, outcome, lr, show)?;
        // The step is done and has its line, whatever is asked for meanwhile.
        let measured = unless_interrupted(self.validate(state, budget, clock))?;
        let (val_loss, is_best) = measured.unwrap_or_default();
        // A state counts on the line of its step.
        self.log(state, outcome, val_loss, lr, bucket, (began_s, now_s), budget, show);
        // Saving would make a folder anew that was renamed meanwhile.
        self.follow(state, budget, clock, show)?;
        if is_best {
            self.save_best(state, budget, clock, show)?;
        }
        self.save_numbered(state, budget, clock, show)?;
        self.sample(state, budget, clock, show)
    }

    /// Draws the pictures of a round that an earlier part of the run was cut off in.
    fn finish_round(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let done = budget.steps_done();
        if let Some(sampling) = &mut self.sampling
            && done > 0
            && !sampling.has_drawn(done)
        {
            sampling.take_over(done, &self.folder);
            self.sample(state, budget, clock, show)?;
        }
        Ok(())
    }

    /// Adds a step to the loss curve; gives up after too many steps without a usable loss, and at once if the update before
    /// this step ruined the weights.
    fn take_in(
        &self,
        state: &mut State<'_>,
        step: u64,
        outcome: Outcome,
        lr: f64,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        // Ruined weights have no loss, so that good steps need not be looked at.
        if !outcome.updated && !state.is_skipping() && !is_finite(&state.trainer.lora().parameters)? {
            return Err(self.not_finite(state, String::new()));
        }
        state.take_in(step, outcome, lr, show)
    }

    /// What a save failed of; of weights that are not finite, which update made them so.
    pub fn explained(&self, state: &State<'_>, error: Error) -> Error {
        match error {
            Error::LoraFile(lora_file::Error::NotFinite { dtype, .. }) => {
                let as_stored = if dtype == Dtype::F32 { String::new() } else { format!(" as {dtype}") };
                self.not_finite(state, as_stored)
            }
            other => other,
        }
    }

    /// The error of weights that are not finite.
    fn not_finite(&self, state: &State<'_>, as_stored: String) -> Error {
        let (step, lr) = state.last_update.unwrap_or_default();
        let last = self.folder.file(LAST);
        let kept = if last.exists() {
            let steps = lora_file::load(&last).ok().and_then(|file| file.step());
            let steps = steps.map_or("good weights".into(), |steps| format!("those of step {steps}"));
            format!("{} still holds {steps}", last.display())
        } else {
            "nothing had been saved before".into()
        };
        Error::NotFinite { step, lr, as_stored, kept }
    }

    /// What the user should know about an end that was not planned, or that came before the first forecast.
    fn tell_end(
        &self,
        reason: FinishReason,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) {
        if budget.steps_done() < FIRST_FORECAST {
            show(Event::Forecast(budget.forecast(clock.now_s())));
        }
        let progress = budget.progress();
        if reason == FinishReason::OutOfTime && budget.steps_done() > 0 && progress < WHOLE_COURSE {
            show(Event::Warning(format!(
                "the machine became slower near the end: the learning rate went through {:.0} % of its course",
                100.0 * progress
            )));
        }
    }

    /// Peak of the learning rate: the job's, or what the steps expected in all ask for.
    fn peak_lr(&self, budget: &mut Budget, now_s: f64) -> f64 {
        let train = &self.job.train;
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
    fn step(
        &mut self,
        state: &mut State<'_>,
        step: u64,
        lr: f64,
        show: &mut dyn FnMut(Event),
    ) -> Result<Outcome> {
        let train = &self.job.train;
        let draws = Draws::new(self.job.seed);
        let levels = NoiseLevels {
            kind: train.timestep_type,
            balance: train.balance,
            bell: train.bell,
            range: train.denoising_steps,
        };
        self.prepare(step, &draws, levels)?;
        let first = self.first_batch(step);
        let (accumulation, offset) = (train.gradient_accumulation.max(1) as u64, train.noise_offset);
        let (data, model, scheduler) = (&mut self.data, self.model, self.scheduler);
        let mut draw = |first: u64| {
            let numbers = first..first + accumulation;
            let batch = |number| data.draw(number, model, scheduler, (&draws, levels, offset));
            numbers.map(batch).collect::<Result<Vec<_>>>()
        };
        let batches = match self.drawn.take() {
            Some((number, batches)) if number == first => batches,
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
        let outcome = self.room.step(&mut state.trainer, &batches, lr, &mut meanwhile, show)?;
        self.drawn = drawn.map(|batches| (next, batches));
        if let (Some(ema), true) = (&mut state.ema, outcome.updated) {
            ema.update(state.trainer.lora())?;
        }
        Ok(outcome)
    }

    /// Works out the modulation of this step and of those after it, if that was not done yet. Steps go together by their
    /// number alone: a run that was cut off multiplies the same matrices when it goes on.
    fn prepare(&mut self, step: u64, draws: &Draws, levels: NoiseLevels) -> Result<()> {
        let Some(ahead) = self.steps_ahead.filter(|&ahead| ahead > 0) else { return Ok(()) };
        if !self.model.is_prepared(&self.sigmas(step..step + 1, draws, levels)?) {
            let first = step - step % ahead;
            self.model.prepare(&self.sigmas(first..first + ahead, draws, levels)?)?;
        }
        Ok(())
    }

    /// Noise levels of all samples of some steps.
    fn sigmas(&mut self, steps: Range<u64>, draws: &Draws, levels: NoiseLevels) -> Result<Vec<f64>> {
        let mut sigmas = Vec::new();
        for number in self.first_batch(steps.start)..self.first_batch(steps.end) {
            let drawn = self.data.levels(number, self.scheduler, draws, levels)?;
            sigmas.extend(drawn.into_iter().map(|level| level.sigma));
        }
        Ok(sigmas)
    }

    #[allow(clippy::too_many_arguments)] // one line of the log
    fn log(
        &mut self,
        state: &State<'_>,
        outcome: Outcome,
        val_loss: Option<f64>,
        lr: f64,
        bucket: usize,
        (began_s, now_s): (f64, f64),
        budget: &mut Budget,
        show: &mut dyn FnMut(Event),
    ) {
        let (done, step_s) = (budget.steps_done(), now_s - began_s);
        let (width, height) = self.data.bucket_size(bucket);
        let written = self.metrics.write(&Record {
            step: done,
            time_s: now_s,
            loss: outcome.loss,
            lr,
            grad_norm: outcome.gradient_norm,
            s_per_step: step_s,
            bucket: format!("{width}x{height}"),
            val_loss,
        });
        if let Err(e) = written {
            show(Event::Warning(format!("metrics are not being written: {e}")));
        }
        if let Some(board) = &mut self.board {
            let norm = outcome.gradient_norm;
            let values =
                [("loss/loss", outcome.loss), ("lr", lr), ("grad_norm", norm), ("s_per_step", step_s)];
            let val = val_loss.map(|loss| ("val/loss", loss));
            if let Err(e) = board.scalars(done, &values.into_iter().chain(val).collect::<Vec<_>>()) {
                show(Event::Warning(format!("{} is no longer written: {e}", board.path().display())));
                self.board = None;
            }
        }
        let forecast = budget.forecast(now_s);
        let (total, left_s) = (forecast.steps_total, forecast.left_s);
        if done == FIRST_FORECAST {
            show(Event::Forecast(forecast));
        }
        let (loss, smoothed) = (outcome.loss, state.smoothed);
        show(Event::Step(Step { done, total, loss, smoothed, lr, step_s, left_s }));
    }

    /// Measures the validation pictures if they are due; returns the loss and whether it is the best so far.
    fn validate(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
    ) -> Result<(Option<f64>, bool)> {
        let Some(validation) = &mut self.validation else { return Ok((None, false)) };
        let measured = validation.measure(state.best(), budget.steps_done(), budget, clock)?;
        Ok((measured.map(|(loss, _)| loss), measured.is_some_and(|(_, is_best)| is_best)))
    }

    /// The sample pictures that the job asks for every so many steps, if there is time for them.
    fn sample(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (done, plan) = (budget.steps_done(), &self.job.sample);
        if self.sampling.is_none()
            || plan.every == 0
            || !done.is_multiple_of(plan.every)
            || done < plan.start_step
        {
            return Ok(());
        }
        let began_s = clock.now_s();
        let why = match budget.allows_samples(began_s) {
            SampleVerdict::Go => {
                self.save_before(state, budget, clock, show)?;
                let Some(sampling) = &mut self.sampling else { return Ok(()) };
                let mut may_go_on = |part_s| budget.allows_part(clock.now_s(), part_s);
                let drawn = sampling.round(state.best(), done, &self.folder, &mut may_go_on, show);
                unless_of_a_file(drawn, show)?;
                let now_s = clock.now_s();
                budget.observe_samples(now_s, now_s - began_s);
                return Ok(());
            }
            SampleVerdict::WouldEndangerTheEnd => "the end of the training would not be in time",
            SampleVerdict::WouldCutSteps => "the steps asked for would no longer fit",
            SampleVerdict::ShareSpent => "samples have had their share of the time",
        };
        show(Event::Warning(format!("no sample pictures at step {done}: {why}")));
        Ok(())
    }
}

/// Pictures that cannot be written are no more than told: the training is worth more.
pub(super) fn unless_of_a_file<T>(done: Result<T>, show: &mut dyn FnMut(Event)) -> Result<Option<T>> {
    match done {
        Err(e) if e.is_of_a_file() => {
            show(Event::Warning(e.to_string()));
            Ok(None)
        }
        done => done.map(Some),
    }
}

/// Whether all values are finite numbers.
fn is_finite(values: &Tensor) -> Result<bool> {
    Ok(values.to_f32()?.iter().fold(true, |all, v| all & v.is_finite()))
}

impl State<'_> {
    /// Adds a step to the loss curve; gives up after too many steps without a usable loss.
    fn take_in(&mut self, step: u64, outcome: Outcome, lr: f64, show: &mut dyn FnMut(Event)) -> Result<()> {
        if !outcome.updated {
            self.unusable += 1;
            if self.unusable >= MAX_UNUSABLE {
                return Err(Error::Diverged { step: step + 1, times: self.unusable, lr });
            }
            let text =
                format!("step {}: the loss or a gradient is not a number; the update is skipped", step + 1);
            show(Event::Warning(text));
            return Ok(());
        }
        self.last_update = Some((step + 1, lr));
        self.add(Point { step: step + 1, loss: outcome.loss, lr });
        Ok(())
    }

    /// Brings back the curve of a run that goes on.
    pub fn take_back(&mut self, records: &[Record]) {
        for record in records {
            if record.loss.is_finite() && record.grad_norm.is_finite() {
                self.last_update = Some((record.step, record.lr));
                self.add(Point { step: record.step, loss: record.loss, lr: record.lr });
            } else {
                self.unusable += 1;
            }
        }
    }

    fn add(&mut self, point: Point) {
        self.unusable = 0;
        self.curve.push(point);
        let weight = SMOOTHING.max(1.0 / self.curve.len() as f64);
        let before = if self.smoothed.is_nan() { point.loss } else { self.smoothed };
        self.smoothed = before + weight * (point.loss - before);
    }
}
