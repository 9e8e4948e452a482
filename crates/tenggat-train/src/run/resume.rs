//! What becomes of a folder that holds an earlier run: gone on with, moved aside, or done already.

use std::time::{SystemTime, UNIX_EPOCH};

use tenggat_plan::Clock;

use super::Options;
use super::folder::{LAST, RunFolder};
use super::state_file::{End, STATE, Saved};
use crate::job::{self, Job};
use crate::lora_file::{self, LoraFile};

/// How a run begins.
pub(super) enum Start {
    /// There is nothing to go on with.
    Fresh,
    /// What is there is moved aside, for this reason.
    Aside(String),
    /// A run of this job goes on.
    Continue(Box<Saved>),
    /// Another trainer's run goes on from its weights, so many updates, with a new optimiser.
    FromLora(Box<LoraFile>, u64),
    /// The run is finished: updates in it, and how to get more.
    Done(u64, String),
}

impl Start {
    /// Steps that were done before.
    pub fn steps(&self) -> u64 {
        match self {
            Start::Continue(saved) => saved.progress.steps,
            Start::FromLora(_, steps) | Start::Done(steps, _) => *steps,
            Start::Fresh | Start::Aside(_) => 0,
        }
    }

    /// Progress of the schedule at which the run goes on.
    pub fn progress(&self, job: &Job, deadline_s: Option<f64>) -> f64 {
        match self {
            Start::Continue(saved) => progress(saved, job, deadline_s),
            Start::FromLora(_, steps) => {
                job.train.steps.map_or(0.0, |asked| (*steps as f64 / asked.max(1) as f64).min(1.0))
            }
            Start::Fresh | Start::Aside(_) | Start::Done(..) => 0.0,
        }
    }
}

/// ai-toolkit's file of the optimiser's state.
const FOREIGN_STATE: &str = "optimizer.pt";

/// Looks at the folder. `warn` is told what the user should know.
pub(super) fn decide(job: &Job, options: &Options<'_>, warn: &mut dyn FnMut(String)) -> Start {
    let folder = &job.folder;
    let state = folder.join(STATE);
    if !state.exists() && !RunFolder::holds_results(folder) {
        return Start::Fresh;
    }
    if options.start_over {
        return Start::Aside("as --start-over asks".into());
    }
    if !job.resume {
        return Start::Aside("as `resume: false` asks".into());
    }
    match state.exists().then(|| Saved::open(&state)) {
        Some(Ok(saved)) => of_own(job, options, saved),
        Some(Err(reason)) => {
            warn(format!("{} cannot be gone on with: {reason}", state.display()));
            of_weights(job, warn)
        }
        None => of_weights(job, warn),
    }
}

fn of_own(job: &Job, options: &Options<'_>, saved: Saved) -> Start {
    let before = &saved.progress;
    let mut changes = job::changes(&before.job, &job.text);
    // The command line may have changed these after the file was read.
    let values = [
        ("train.lr", before.lr.to_string(), job.train.lr.to_string()),
        ("network.linear", before.rank.to_string(), job.network.rank.to_string()),
        ("training_seed", before.seed.to_string(), job.seed.to_string()),
    ];
    if changes.is_empty() {
        let changed = values.into_iter().filter(|(_, was, is)| was != is);
        changes.extend(changed.map(|(key, was, is)| job::Change { key: key.into(), was, is }));
    }
    if let Some(first) = changes.first() {
        let more = changes.len() - 1;
        let more = if more > 0 { format!(" ({more} more changed)") } else { String::new() };
        return Start::Aside(format!("because the job changed: {first}{more}"));
    }
    match more_wanted(job, options, &saved) {
        Ok(()) => Start::Continue(Box::new(saved)),
        Err(advice) => Start::Done(saved.progress.steps, advice),
    }
}

/// Whether the job asks for more than a finished run has done; else what to ask for.
fn more_wanted(job: &Job, options: &Options<'_>, saved: &Saved) -> Result<(), String> {
    let before = &saved.progress;
    let Some(end) = before.end else { return Ok(()) };
    let capped = !(job.limits.fill && options.deadline_s.is_some())
        && job.train.steps.is_some_and(|asked| asked <= before.steps);
    let more_time = match (options.deadline_s, options.deadline_is_moment) {
        (None, _) => true,
        (Some(at_s), true) => {
            let unix_s = unix_s() + at_s - options.clock.now_s();
            before.deadline_unix_s.is_none_or(|old_s| unix_s > old_s + 1.0)
        }
        (Some(budget_s), false) => budget_s > before.deadline_s.unwrap_or(before.spent_s),
    };
    let raise = match (capped, options.deadline_s) {
        (true, _) => "more `train.steps`",
        (false, Some(_)) if end == End::Time && !more_time => "a longer budget or a later deadline",
        (false, None) if job.train.steps.is_none() => "`train.steps` or a budget",
        _ => return Ok(()),
    };
    Err(format!("to go on with it, give {raise}; to train anew, --start-over"))
}

/// Seconds since 1970.
pub(super) fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A folder with LoRA files alone, as ai-toolkit leaves it.
fn of_weights(job: &Job, warn: &mut dyn FnMut(String)) -> Start {
    let folder = &job.folder;
    let last = || Some((0, folder.join(LAST))).filter(|(_, path)| path.exists());
    let newest = RunFolder::numbered_in(folder, &job.name).pop().or_else(last);
    let Some((named, path)) = newest else {
        return Start::Aside(format!("because it has no {STATE} and no numbered LoRA to go on with"));
    };
    let file = match lora_file::load(&path) {
        Ok(file) => file,
        Err(e) => return Start::Aside(format!("because its newest LoRA cannot be used: {e}")),
    };
    let own_rank = file.modules.iter().map(|m| m.rank).max().unwrap_or(0);
    if own_rank > job.network.rank {
        let (path, rank) = (path.display(), job.network.rank);
        return Start::Aside(format!("because {path} has rank {own_rank} and the job {rank}"));
    }
    let steps = updates(&file).unwrap_or(named);
    if job.train.steps.is_some_and(|asked| asked <= steps) {
        let advice = "to go on from it, give more `train.steps`; to train anew, --start-over";
        return Start::Done(steps, advice.into());
    }
    let state = if folder.join(FOREIGN_STATE).exists() {
        format!("{FOREIGN_STATE} is ai-toolkit's and cannot be read, so the optimiser's state starts new")
    } else {
        format!("there is no {STATE}, so the optimiser's state starts new")
    };
    warn(format!("the weights are those of {} after {steps} steps; {state}", path.display()));
    Start::FromLora(Box::new(file), steps)
}

/// Updates in a file. One that ai-toolkit names after step N, counted from 0, holds N + 1.
fn updates(file: &LoraFile) -> Option<u64> {
    let software = file.metadata.get("software").and_then(|s| serde_json::from_str(s).ok());
    let software: serde_json::Value = software.unwrap_or_default();
    let foreign = software.get("name").and_then(|name| name.as_str()) == Some("ai-toolkit");
    Some(file.step()? + u64::from(foreign))
}

/// The clock of a run that goes on: it stood still meanwhile.
pub(super) struct Continued<'a> {
    pub clock: &'a dyn Clock,
    pub before_s: f64,
}

impl Clock for Continued<'_> {
    fn now_s(&self) -> f64 {
        self.clock.now_s() + self.before_s
    }
}

/// Seconds that the clock is ahead by, so that it reads what it read when the state was kept. A clock that counts from a
/// moment has gone on by itself.
pub(super) fn ahead_s(saved: &Saved, options: &Options<'_>) -> f64 {
    let spent_s = saved.progress.spent_s;
    if options.deadline_is_moment { (spent_s - options.clock.now_s()).max(0.0) } else { spent_s }
}

/// Progress of the schedule at which a run goes on. One that had reached its end is set back to its share of what is
/// now asked for: of the steps, or of the time until `deadline_s`, whichever is further along.
fn progress(saved: &Saved, job: &Job, deadline_s: Option<f64>) -> f64 {
    let before = &saved.progress;
    if before.end.is_none() {
        return before.progress;
    }
    let of_steps = job.train.steps.map(|asked| before.steps as f64 / asked.max(1) as f64);
    let of_time = deadline_s.map(|at_s| before.spent_s / at_s.max(1e-9));
    of_steps.into_iter().chain(of_time).reduce(f64::max).map_or(before.progress, |s| s.min(before.progress))
}
