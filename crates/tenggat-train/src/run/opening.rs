//! How a run takes its folder: locked, moved aside, resumed, or found to be finished already.

use std::path::Path;

use tenggat_tensor::Device;

use super::event::Event;
use super::folder::{self, RunFolder};
use super::lock::{Note, RunLock};
use super::names::LAST;
use super::options::Options;
use super::recipe::first_lora;
use super::resume::{self, Continued, Done, Start};
use super::saving::{self, Saver};
use super::state_file::{PREVIOUS, STATE};
use super::summary::Summary;
use super::{Error, Result};
use crate::job::Job;

/// A folder that was taken.
pub(super) enum Opening {
    /// The run was finished before; its files are in order.
    Done(Box<Summary>),
    /// There is something to do.
    Begin(Box<Taken>),
}

/// A folder that is locked, and what to do with what lies there.
pub(super) struct Taken {
    /// The lock on the folder.
    pub lock: RunLock,
    /// What the run resumes from, if from anything.
    pub start: Start,
}

/// Locks the folder of a run and decides what to do with what lies there.
///
/// # Errors
/// Another run holds the folder, or it cannot be used.
pub(super) fn open(job: &Job, options: &Options<'_>, show: &mut dyn FnMut(Event)) -> Result<Opening> {
    let mut warn = |text| show(Event::Warning(text));
    let mut lock = RunLock::acquire(&job.folder, &job.text, &mut warn)?;
    let start = resume::decide(job, options, lock.before(), &mut warn);
    match &start {
        Start::Aside(why) => {
            let aside = RunFolder::move_aside(&job.folder)?;
            warn(format!("earlier results were moved to {}, {why}", aside.display()));
            lock.remove(&aside);
            lock = RunLock::acquire(&job.folder, &job.text, &mut warn)?;
        }
        Start::Done(done) => {
            tidy(job, done, &mut warn);
            show(Event::Done { steps: done.steps, advice: done.advice.clone() });
            let left_s = options.deadline_s.map(|s| s - options.clock.now_s());
            return Ok(Opening::Done(Box::new(Summary::done(job, done, left_s, lock))));
        }
        Start::Fresh | Start::Continue(_) | Start::FromLora(..) => {}
    }
    Ok(Opening::Begin(Box::new(Taken { lock, start })))
}

/// Cleans up the folder of a finished run: removes unfinished files, and writes files that it could not
/// deliver.
fn tidy(job: &Job, done: &Done, warn: &mut dyn FnMut(String)) {
    let swept = folder::sweep(&job.folder).map(|()| Vec::new());
    let completed = done.source.as_ref().map(|source| saving::complete(job, source, done.steps));
    for result in [Some(swept), completed].into_iter().flatten() {
        result.unwrap_or_else(|e| vec![e.to_string()]).into_iter().for_each(&mut *warn);
    }
}

/// The clock of a run that may have been interrupted before, and its deadline on that clock.
pub(super) fn clock<'a>(
    start: &Start,
    job: &Job,
    options: &Options<'a>,
    before: Option<&Note>,
) -> (Continued<'a>, Option<f64>) {
    let spent_before_s = resume::spent_before_s(start, job, options, before);
    let moved_s = if options.deadline_is_moment { spent_before_s } else { 0.0 };
    let clock = Continued { clock: options.clock, before_s: spent_before_s };
    (clock, options.deadline_s.map(|s| s + moved_s))
}

/// Forgets the time of a run that failed at once: it was not spent on training, and once the fault is fixed,
/// the whole budget is available.
pub(super) fn forget_failed(job: &Job) {
    let has_state = [STATE, PREVIOUS].iter().any(|name| job.folder.join(name).exists());
    if !has_state && let Ok(mut lock) = RunLock::acquire(&job.folder, &job.text, &mut |_| {}) {
        lock.forget();
    }
}

/// Refuses jobs that would never end.
///
/// # Errors
/// There are neither steps nor a deadline.
pub(super) fn check_end(job: &Job, options: &Options<'_>) -> Result<()> {
    if options.deadline_s.is_none() && job.train.steps.is_none() {
        return Err(Error::Job("the job has no `train.steps`; set it, or give a --budget".into()));
    }
    Ok(())
}

/// Writes a LoRA that changes nothing as [`LAST`], unless there is one by that name: whatever goes wrong
/// later, there is a file. It is made from the job and the dimensions of the model alone; [`run`](super::run)
/// does not take it for a result.
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
