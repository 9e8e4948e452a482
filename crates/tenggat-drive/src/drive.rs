//! A whole drive of ai-toolkit: the run's folder, what an earlier drive left there, the flight, the marks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tenggat_plan::Clock;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::lora::{self, LAST, ModelKeys};
use crate::metrics::{Metrics, Record};
use crate::orders::Orders;
use crate::pilot::{self, Known, Mark, Plan, Summary, Tower};
use crate::state::{self, Home, State};
use crate::toolkit::{AiToolkit, Installation, Saves, ToolkitJob};

/// Options of a drive, besides its job.
pub struct Options<'a> {
    /// Where ai-toolkit is.
    pub installation: Installation,
    /// The run's clock, which the budget is counted on.
    pub clock: &'a dyn Clock,
    /// The moment by which everything must have ended, on that clock.
    pub deadline_s: f64,
    /// Whether that is a moment of the day rather than a time to be spent: then time counts while no drive
    /// runs, too.
    pub deadline_is_moment: bool,
    /// Use all of it even if the job's steps are done earlier.
    pub fill: bool,
    /// Time kept free before the end.
    pub margin_s: Option<f64>,
    /// Move earlier results aside instead of going on with them.
    pub start_over: bool,
    /// What becomes of results of a job that would train otherwise.
    pub other_job: OtherJob,
    /// The model's layers: a LoRA with keys that fit none of them is not published.
    pub model: Option<Arc<ModelKeys>>,
    /// Set when the drive should save and end.
    pub stop: &'a AtomicBool,
    /// Set when it should save and go on.
    pub save: Option<&'a AtomicBool>,
}

/// What becomes of the results of a job that would train otherwise than this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherJob {
    /// They are moved aside, and the training begins anew.
    MoveAside,
    /// The training goes on from them: the folder is one that must never be without a LoRA.
    GoOn,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Driven {
    /// The published LoRA.
    pub lora: PathBuf,
    /// Updates in it.
    pub steps: u64,
    /// Why the training ended.
    pub ended: String,
    /// Whether nothing was given up.
    pub as_planned: bool,
    /// Lives that the trainer's process had.
    pub sessions: u32,
}

/// The clock of a drive that goes on: it stood still meanwhile.
struct Continued<'a> {
    clock: &'a dyn Clock,
    before_s: f64,
}

impl Clock for Continued<'_> {
    fn now_s(&self) -> f64 {
        self.clock.now_s() + self.before_s
    }
}

/// Drives ai-toolkit through one job.
///
/// # Errors
/// The folder cannot be used, the trainer cannot be started, or there is no LoRA at the end.
pub fn drive(job: &ToolkitJob, options: &Options<'_>, show: &mut dyn FnMut(Event)) -> Result<Driven> {
    for warning in &job.warnings {
        show(Event::Warning(warning.clone()));
    }
    let (home, earlier) = open(job, options, show)?;
    let last = job.folder.join(LAST);
    let resume = lora::check(&last).ok().and_then(|checked| checked.steps);
    let saves = job.saves();
    let resume = saves.prepare(&last, &home.file("unfinished"))?.max(resume.unwrap_or(0));
    let moment = options.deadline_is_moment;
    let before_s = earlier.as_ref().filter(|_| !moment).map_or(0.0, |state| state.spent_s);
    let clock = Continued { clock: options.clock, before_s };
    let deadline_s = options.deadline_s;
    let asked = job.steps.filter(|_| !options.fill);
    let is_done = asked.is_some_and(|asked| resume >= asked);
    let delivered = publish_if_new(&saves, &last, resume, options.model.as_deref(), show);
    if is_done || deadline_s - clock.now_s() < 0.02 * deadline_s {
        return already(&last, delivered, is_done);
    }
    if resume > 0 || before_s > 0.0 {
        show(Event::Resumed { steps: resume, spent_before_s: before_s, deadline_s });
    }
    let plan = Plan {
        deadline_s,
        margin_s: options.margin_s,
        steps: job.steps,
        fill: options.fill,
        anneals: job.anneals,
        sample_every: job.sample_every,
        sample_from: job.sample_from,
        shrinks: job.wishes.on_out_of_memory.len(),
        resume,
        delivered,
        known: earlier.as_ref().map_or(Known::default(), |state| state.known),
    };
    let metrics = Metrics::resume(&job.folder.join("metrics.jsonl"), resume);
    let mut desk = Desk {
        home: &home,
        show,
        metrics,
        essence: job.essence(),
        orders: Orders::new(&job.folder),
        save: options.save,
        stop: options.stop,
    };
    let mut trainer = AiToolkit::new(options.installation.clone(), job.clone(), &home, &clock);
    trainer.fits(options.model.clone());
    let summary = pilot::fly(&mut trainer, plan, &mut desk, options.stop)?;
    let log = trainer.log().display().to_string();
    drop(trainer);
    desk.finish(&summary, clock.now_s(), deadline_s);
    conclude(last, summary, &log)
}

/// What is returned at the end of a flight.
fn conclude(lora: PathBuf, summary: Summary, log: &str) -> Result<Driven> {
    if summary.steps == 0 {
        let what = format!("it left no LoRA: {}; the trainer's log is {log}", summary.ended);
        return Err(Error::NothingDelivered(what));
    }
    let Summary { steps, ended, as_planned, sessions, .. } = summary;
    Ok(Driven { lora, steps, ended, as_planned, sessions })
}

/// A run that has nothing left to do.
fn already(last: &Path, steps: u64, is_done: bool) -> Result<Driven> {
    let ended = if is_done {
        "its steps are already done; give more `steps`, --fill or --start-over".to_string()
    } else {
        "its budget is already spent; give a longer one to resume, or --start-over".to_string()
    };
    if steps == 0 {
        return Err(Error::NothingDelivered(format!("it left no LoRA: {ended}")));
    }
    Ok(Driven { lora: last.into(), steps, ended, as_planned: true, sessions: 0 })
}

/// Opens the run's folder; results of another job are moved aside.
fn open(
    job: &ToolkitJob,
    options: &Options<'_>,
    show: &mut dyn FnMut(Event),
) -> Result<(Home, Option<State>)> {
    let folder = &job.folder;
    let home = Home::open(folder)?;
    let earlier = home.state();
    let changed = earlier.as_ref().is_some_and(|state| state.job != job.essence());
    let other = changed && options.other_job == OtherJob::MoveAside;
    if !other && !options.start_over {
        lora::sweep(folder);
        // What was learnt of another job is no guess for this one.
        return Ok((home, earlier.filter(|_| !changed)));
    }
    if other || earlier.is_some() || holds_results(folder) {
        drop(home);
        let aside = state::move_aside(folder)?;
        let why =
            if options.start_over { "as asked" } else { "the job changed in a way that changes training" };
        show(Event::Warning(format!("earlier results were moved to {}: {why}", aside.display())));
        return Ok((Home::open(folder)?, None));
    }
    Ok((home, None))
}

fn holds_results(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|e| e.path().extension().is_some_and(|x| x == "safetensors"))
}

/// A run that goes on from saves of an earlier one publishes the best of them before it begins. Returns the
/// updates in the published LoRA.
fn publish_if_new(
    saves: &Saves,
    last: &Path,
    resume: u64,
    model: Option<&ModelKeys>,
    show: &mut dyn FnMut(Event),
) -> u64 {
    let published = lora::peek(last).ok().and_then(|checked| checked.steps).unwrap_or(0);
    if published >= resume {
        return published;
    }
    let from = saves.numbered(resume);
    match lora::publish_fitting(&from, last, model) {
        Ok(_) => {
            show(Event::Saved { path: last.into(), steps: resume, seconds: 0.0 });
            resume
        }
        Err(e) => {
            show(Event::Warning(format!("{} is not published: {e}", from.display())));
            published
        }
    }
}

/// Where news goes and orders come from.
struct Desk<'a, 'b> {
    home: &'a Home,
    show: &'b mut dyn FnMut(Event),
    metrics: std::io::Result<Metrics>,
    essence: Value,
    orders: Orders,
    save: Option<&'b AtomicBool>,
    stop: &'b AtomicBool,
}

impl Desk<'_, '_> {
    fn write(&mut self, state: &State) {
        if let Err(e) = self.home.keep(state) {
            (self.show)(Event::Warning(e.to_string()));
        }
    }

    fn finish(&mut self, summary: &Summary, now_s: f64, deadline_s: f64) {
        let state = State {
            spent_s: now_s,
            deadline_s,
            delivered: summary.steps,
            finished: true,
            written_unix_s: state::unix_s(),
            known: summary.known,
            job: self.essence.clone(),
            ..State::default()
        };
        self.write(&state);
    }
}

impl Tower for Desk<'_, '_> {
    fn show(&mut self, event: Event) {
        if let (Event::Step(step), Ok(metrics)) = (&event, &mut self.metrics) {
            let record = Record {
                step: step.done,
                time_s: step.time_s,
                loss: step.loss,
                lr: step.lr,
                grad_norm: None,
                s_per_step: step.step_s,
                bucket: String::new(),
            };
            // The curve is worth less than the run.
            let _ = metrics.write(&record);
        }
        (self.show)(event);
    }

    fn keep(&mut self, mark: Mark) {
        let state = State {
            spent_s: mark.spent_s,
            deadline_s: mark.deadline_s,
            delivered: mark.delivered,
            finished: false,
            trainer_pid: None,
            written_unix_s: state::unix_s(),
            known: mark.known,
            job: self.essence.clone(),
        };
        self.write(&state);
    }

    fn moved_by_s(&mut self, now_s: f64, deadline_s: f64) -> Option<f64> {
        let moved_s = self.orders.moved_by_s(now_s, deadline_s);
        if self.orders.wants_stop {
            self.stop.store(true, Ordering::Relaxed);
        }
        moved_s
    }

    fn wants_save(&mut self) -> bool {
        let is_asked = std::mem::take(&mut self.orders.wants_save);
        self.save.is_some_and(|save| save.swap(false, Ordering::Relaxed)) || is_asked
    }
}
