//! What came out of a run.

use std::path::PathBuf;
use std::sync::Arc;

use super::event::Contender;
use super::lock::RunLock;
use super::names::{self, LAST};
use super::resume::Done;
use crate::job::Job;
use crate::measure::score::Scores;

/// What came out of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The newest LoRA. If the run was interrupted before its first update, the file may not exist.
    pub lora: PathBuf,
    /// Whether somebody asked for the end before it was due.
    pub interrupted: bool,
    /// Updates in it.
    pub steps: u64,
    /// Seconds per step, on average.
    pub step_s: f64,
    /// Seconds until the deadline; `None` without one.
    pub left_s: Option<f64>,
    /// Errors of the bare model, if there were held-out images.
    pub before: Option<Scores>,
    /// Errors with the LoRA.
    pub after: Option<Scores>,
    /// Where the best LoRA is delivered: what the run began with, and what is delivered.
    pub chosen: Option<(Contender, Contender)>,
    /// The lock on the folder, if there is a result in it: no other run begins there while somebody holds
    /// it.
    pub lock: Option<Arc<RunLock>>,
}

impl Summary {
    /// Of a run that was interrupted before its first update; `steps` are those of an earlier part of it.
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
    pub(super) fn done(job: &Job, done: &Done, left_s: Option<f64>, lock: RunLock) -> Self {
        let finished = job.folder.join(format!("{}.safetensors", job.name));
        let newest = || names::numbered_in(&job.folder, &job.name).pop().map(|(_, path)| path);
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
