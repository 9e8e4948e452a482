//! What happens to a folder that holds an earlier run: it is resumed, moved aside, or already done.

use std::path::PathBuf;

use tenggat_plan::Clock;

use super::found::{Found, Save};
use super::lock::{Note, unix_s};
use super::names::LAST;
use super::options::Options;
use super::state_file::{End, PREVIOUS, STATE, Saved};
use crate::job::{self, Deliver, Job};
use crate::lora::file::{self as lora_file, LoraFile};

/// How a run begins.
pub(super) enum Start {
    /// There is nothing to resume.
    Fresh,
    /// Earlier results are moved aside, for this reason.
    Aside(String),
    /// A run of this job resumes from its checkpoint.
    Continue(Box<Saved>),
    /// The run resumes from these weights, after this many updates, with a new optimiser.
    FromLora(Box<LoraFile>, u64),
    /// The run is finished.
    Done(Done),
}

/// A run that is finished.
pub(super) struct Done {
    /// Updates in it.
    pub steps: u64,
    /// How to get more.
    pub advice: String,
    /// A LoRA of ours from which missing delivered files are made.
    pub source: Option<PathBuf>,
    /// The LoRA to be named, if not the usual one.
    pub lora: Option<PathBuf>,
}

impl Start {
    /// Steps that were done before.
    pub fn steps(&self) -> u64 {
        match self {
            Start::Continue(saved) => saved.progress.steps,
            Start::FromLora(_, steps) => *steps,
            Start::Done(done) => done.steps,
            Start::Fresh | Start::Aside(_) => 0,
        }
    }

    /// Progress of the schedule at which the run resumes.
    pub fn progress(&self, job: &Job, deadline_s: Option<f64>) -> f64 {
        match self {
            Start::Continue(saved) => progress(saved, job, deadline_s),
            Start::FromLora(_, steps) => {
                job.train.steps.map_or(0.0, |asked| (*steps as f64 / asked.max(1) as f64).min(1.0))
            }
            Start::Fresh | Start::Aside(_) | Start::Done(_) => 0.0,
        }
    }
}

/// ai-toolkit's file of the optimiser's state.
const FOREIGN_STATE: &str = "optimizer.pt";

/// Looks at the folder, which is locked; `before` is what the earlier run noted. `warn` gets what the user
/// should know.
///
/// The run resumes from the whole file that is furthest along: a checkpoint of ours, or else a LoRA. A LoRA
/// that is ahead of the newest checkpoint, because another program continued or because there was no room for
/// a checkpoint, takes precedence over it. Where the newest checkpoint is damaged, the one before it leads to
/// the same LoRA with the same optimiser, so it takes precedence over a LoRA of ours, unless that one is
/// finished.
pub(super) fn decide(
    job: &Job,
    options: &Options<'_>,
    before: Option<&Note>,
    warn: &mut dyn FnMut(String),
) -> Start {
    let folder = &job.folder;
    let found = Found::in_folder(folder, &job.name, job.compat.step_names);
    let states: Vec<PathBuf> =
        [STATE, PREVIOUS].iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect();
    if states.is_empty() && !found.holds_results() {
        return Start::Fresh;
    }
    if options.start_over {
        return Start::Aside("as --start-over asks".into());
    }
    if !job.resume {
        return Start::Aside("as `resume: false` asks".into());
    }
    let mut is_newest = true;
    let mut usable = None;
    for path in &states {
        match Saved::open(path) {
            Ok(saved) => {
                usable = Some(saved);
                break;
            }
            Err(reason) => {
                is_newest = false;
                warn(format!("cannot resume from {}: {reason}", path.display()));
            }
        }
    }
    let Some(saved) = usable else { return of_weights(job, options, &found, warn) };
    if let Some(change) = change(job, &saved) {
        return Start::Aside(change);
    }
    let steps = saved.progress.steps;
    let ahead = found.saves.last().filter(|save| save.steps > steps);
    if let Some(save) = ahead {
        let path = save.path.display();
        if !save.is_own || is_newest || wants_no_more(job, options, save.steps) {
            warn(format!("{path} holds {} steps and is ahead of the checkpoint with {steps}", save.steps));
            return of_weights(job, options, &found, warn);
        }
        warn(format!("the run resumes from the previous checkpoint, after {steps} steps; {path} is kept"));
    } else if !is_newest {
        warn(format!("the run resumes from the previous checkpoint, after {steps} steps"));
    }
    of_own(job, options, saved, &found, before)
}

/// Why a checkpoint does not belong to the job.
fn change(job: &Job, saved: &Saved) -> Option<String> {
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
    let first = changes.first()?;
    let more = changes.len() - 1;
    let more = if more > 0 { format!(" ({more} more changed)") } else { String::new() };
    Some(format!("because the job changed: {first}{more}"))
}

fn of_own(job: &Job, options: &Options<'_>, saved: Saved, found: &Found, before: Option<&Note>) -> Start {
    let Err(advice) = more_wanted(job, options, &saved) else { return Start::Continue(Box::new(saved)) };
    let steps = saved.progress.steps;
    // Its last samples and reports were cut off; there is no step left to take, and the LoRA stays what it
    // is.
    let is_closing = before.is_some_and(|note| note.is_closing() && note.is_of(&job.text));
    if is_closing && saved.progress.end == Some(End::Steps) {
        return Start::Continue(Box::new(saved));
    }
    // The checkpoint is written before the LoRA: a run that was interrupted between them still has to
    // deliver.
    let source = match job.save.deliver {
        Deliver::Newest => match found.saves.iter().rfind(|save| save.is_own && save.steps == steps) {
            Some(save) => Some(save.path.clone()),
            None => return Start::Continue(Box::new(saved)),
        },
        // Only a run that came to its end knows which of its LoRAs is the best.
        Deliver::Best if before.and_then(Note::delivered) == Some(steps) => None,
        Deliver::Best => return Start::Continue(Box::new(saved)),
    };
    Start::Done(Done { steps, advice, source, lora: None })
}

/// Whether the job wants more than a finished run has done; else what to change.
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
    Err(format!("to continue it, give {raise}; to train from scratch, --start-over"))
}

/// Whether this many steps are all that the job wants.
fn wants_no_more(job: &Job, options: &Options<'_>, steps: u64) -> bool {
    let fills = job.limits.fill && options.deadline_s.is_some();
    !fills && job.train.steps.is_some_and(|asked| asked <= steps)
}

/// LoRA files alone, as ai-toolkit leaves them, or more steps in them than in a state.
fn of_weights(job: &Job, options: &Options<'_>, found: &Found, warn: &mut dyn FnMut(String)) -> Start {
    let mut unusable = None;
    for save in found.saves.iter().rev().filter(|save| save.steps > 0) {
        let path = save.path.display();
        let file = match usable(save) {
            Ok(file) => file,
            Err(reason) => {
                warn(format!("cannot resume from {path}: {reason}"));
                unusable.get_or_insert(reason);
                continue;
            }
        };
        let own_rank = file.modules.iter().map(|m| m.rank).max().unwrap_or(0);
        if own_rank > job.network.rank {
            let rank = job.network.rank;
            return Start::Aside(format!("because {path} has rank {own_rank} and the job {rank}"));
        }
        return from(job, options, save, file, warn);
    }
    Start::Aside(match unusable {
        Some(reason) => format!("because its newest LoRA cannot be used: {reason}"),
        None => {
            format!("because it has no {STATE}, and no LoRA in it says how many steps it was trained for")
        }
    })
}

/// A LoRA to resume from, or the reason why it cannot be used.
fn usable(save: &Save) -> Result<LoraFile, String> {
    let file = lora_file::load(&save.path).map_err(|e| e.to_string())?;
    if file.is_finite() { Ok(file) } else { Err("its weights are not all finite numbers".into()) }
}

fn from(
    job: &Job,
    options: &Options<'_>,
    save: &Save,
    file: LoraFile,
    warn: &mut dyn FnMut(String),
) -> Start {
    let (steps, folder) = (save.steps, &job.folder);
    if wants_no_more(job, options, steps) {
        let advice =
            "to continue from it, give more `train.steps`; to train from scratch, --start-over".into();
        // The best of a run stays what it was.
        let is_source = save.is_own && (job.save.deliver == Deliver::Newest || !folder.join(LAST).exists());
        let source = is_source.then(|| save.path.clone());
        let lora = (!save.is_own).then(|| save.path.clone());
        return Start::Done(Done { steps, advice, source, lora });
    }
    let state = if folder.join(FOREIGN_STATE).exists() && !folder.join(STATE).exists() {
        format!("{FOREIGN_STATE} is ai-toolkit's and cannot be read, so the optimiser starts afresh")
    } else if folder.join(STATE).exists() {
        format!("{STATE} does not belong to them, so the optimiser starts afresh")
    } else {
        format!("there is no {STATE}, so the optimiser starts afresh")
    };
    warn(format!("the weights are those of {} after {steps} steps; {state}", save.path.display()));
    Start::FromLora(Box::new(file), steps)
}

/// The clock of a resumed run: it stood still while the run was interrupted.
pub(super) struct Continued<'a> {
    pub clock: &'a dyn Clock,
    pub before_s: f64,
}

impl Clock for Continued<'_> {
    fn now_s(&self) -> f64 {
        self.clock.now_s() + self.before_s
    }
}

/// Seconds by which the clock is ahead, so that it reads what it read when the earlier run ended: when its
/// checkpoint was written, or later, as it noted. A clock that counts from a point in time has run on by
/// itself.
pub(super) fn spent_before_s(start: &Start, job: &Job, options: &Options<'_>, before: Option<&Note>) -> f64 {
    let before = before.filter(|_| job.resume && !options.start_over);
    let noted_s = before.map_or(0.0, Note::spent_s);
    let spent_s = match start {
        Start::Continue(saved) if saved.progress.end.is_none() => saved.progress.spent_s.max(noted_s),
        Start::Continue(saved) => saved.progress.spent_s,
        // Runs that were killed before their first save; without a deadline nobody asks how long that took.
        Start::Fresh | Start::FromLora(..)
            if options.deadline_s.is_some() && before.is_some_and(|note| note.is_of(&job.text)) =>
        {
            noted_s
        }
        _ => 0.0,
    };
    if options.deadline_is_moment { (spent_s - options.clock.now_s()).max(0.0) } else { spent_s }
}

/// Progress of the schedule at which a run resumes. A schedule that had reached its end is set back to its
/// share of what the job now wants: of the steps, or of the time until `deadline_s`, whichever is further
/// along.
fn progress(saved: &Saved, job: &Job, deadline_s: Option<f64>) -> f64 {
    let before = &saved.progress;
    if before.end.is_none() {
        return before.progress;
    }
    let of_steps = job.train.steps.map(|asked| before.steps as f64 / asked.max(1) as f64);
    let of_time = deadline_s.map(|at_s| before.spent_s / at_s.max(1e-9));
    of_steps.into_iter().chain(of_time).reduce(f64::max).map_or(before.progress, |s| s.min(before.progress))
}
