//! `tenggat task`: the timed contest's container, from its arguments to `last.safetensors`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tenggat_plan::WallClock;
use tenggat_train::contest::container::{self, Roots, Task};
use tenggat_train::contest::work::Work;
use tenggat_train::contest::{Split, rules, split, unpack};
use tenggat_train::job::{self, Job, Warning};
use tenggat_train::lora::file as lora_file;
use tenggat_train::run::{self, Stop};

use super::train::{Setting, run_job, show_interrupted, show_warnings};
use crate::assets;
use crate::device::Choice;
use crate::events::{self, EventLines};
use crate::limit::Limited;
use crate::number::{MOST_RANK, learning_rate, number, whole};
use crate::output::{self, say, warning};
use crate::processor;
use crate::signals;

/// The job, unless another is given.
const PRESET: &str = include_str!("../../../../assets/contest/task.yaml");
/// Kept free before the end for what this process's clock does not show: share of the hours, and its bounds
/// in seconds.
const MARGIN_SHARE: f64 = 0.01;
const MARGIN_S: (f64, f64) = (1.0, 60.0);
/// With fewer pictures than so many, the learning rate falls no further; not measured.
const FEWEST_PICTURES: usize = 4;
/// Hours taken for 0: a part of an hour that was cut off on the way.
const CUT_OFF_HOURS: f64 = 0.5;
/// Memory that a run takes beside the weights, bytes, and bytes of memory per byte of weights in files.
const BESIDE_WEIGHTS: f64 = 8e9;
const MEMORY_PER_FILE: f64 = 1.2;

#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Name of the task.
    #[arg(long)]
    task_id: String,
    /// Model: org/name, looked for as <cache-root>/models/org--name; a folder; or `mini`.
    #[arg(long)]
    model: String,
    /// Archive of pictures, looked for as <cache-root>/datasets/<task>_tourn.zip first.
    #[arg(long)]
    dataset_zip: String,
    /// Kind of model; qwen-image is trained here.
    #[arg(long)]
    model_type: String,
    /// Folder of the results: <checkpoints-root>/<task>/<this>.
    #[arg(long)]
    expected_repo_name: String,
    /// Hours from the start of the container to its end.
    #[arg(long, value_name = "HOURS", allow_negative_numbers = true, value_parser = number(0.0, 1000.0))]
    hours_to_complete: f64,
    /// Word that stands for what is learnt.
    #[arg(long)]
    trigger_word: Option<String>,
    /// What was downloaded beforehand; never written to.
    #[arg(long, default_value = "/cache")]
    cache_root: PathBuf,
    /// What is uploaded at the end.
    #[arg(long, default_value = "/app/checkpoints")]
    checkpoints_root: PathBuf,
    /// Room for unpacked pictures (default: a folder of this user's among the system's temporary files).
    #[arg(long)]
    work_root: Option<PathBuf>,
    /// Job file with ${...}, in place of the built-in one: assets/contest/task.yaml of the sources.
    #[arg(long, value_name = "FILE")]
    preset: Option<PathBuf>,
    /// Long side of the pictures in pixels (default: the scorer's 1024; 128 for `mini`).
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..=8192))]
    long_side: Option<u16>,
    /// Rank, in place of the one worked out.
    #[arg(long, value_parser = whole::<usize>(1, MOST_RANK as u64))]
    rank: Option<usize>,
    /// Peak learning rate, in place of the one worked out.
    #[arg(long, allow_negative_numbers = true, value_parser = learning_rate)]
    lr: Option<f64>,
    /// Print the events of the run on standard output, for programs; what people read goes to standard
    /// error.
    #[arg(long, value_name = "FORMAT")]
    events: Option<events::Format>,
}

/// Trains until shortly before the end. Once there is a LoRA nothing that goes wrong makes the exit code
/// other than 0: with another the contest uploads nothing.
pub fn task(args: &TaskArgs, clock: WallClock, choice: Choice) -> anyhow::Result<()> {
    let task = Task {
        id: args.task_id.clone(),
        model: args.model.clone(),
        dataset: args.dataset_zip.clone(),
        repository: args.expected_repo_name.clone(),
    };
    task.check()?;
    anyhow::ensure!(
        args.model_type.replace('_', "-") == "qwen-image",
        "--model-type {}: LoRAs are trained for qwen-image alone",
        args.model_type
    );
    let roots = Roots {
        cache: args.cache_root.clone(),
        checkpoints: std::path::absolute(&args.checkpoints_root).context("--checkpoints-root")?,
    };
    let output = roots.output(&task);
    let stop = signals::listen(0)?;
    stop.set_has_deadline(true);
    // A panic is a bug, but not one that may cost the LoRA that is there.
    let ended = catch_unwind(AssertUnwindSafe(|| train(args, &task, &roots, clock, (choice, &stop))));
    let problem = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(anyhow::anyhow!("the training ended by a bug in this program")),
    };
    let delivered = container::picked(&output)
        .ok()
        .flatten()
        .filter(|path| lora_file::load(path).is_ok_and(|file| file.is_finite()));
    match (delivered, problem) {
        (Some(path), problem) => {
            if let Some(problem) = problem {
                output::complaint("warning", &format!("{problem:#}; what was saved before is delivered"));
            }
            say!("{:<14} {}", "delivered", path.display());
            Ok(())
        }
        (None, Some(problem)) => Err(problem),
        (None, None) => anyhow::bail!("there is no LoRA in {}", output.display()),
    }
}

/// Prepares the pictures, decides what the task leaves open, and trains.
fn train(
    args: &TaskArgs,
    task: &Task,
    roots: &Roots,
    clock: WallClock,
    (choice, stop): (Choice, &Stop),
) -> anyhow::Result<()> {
    let events = args.events.map(|format| EventLines::new(clock, format));
    let is_mini = args.model == assets::MINI;
    let model = if is_mini { assets::mini()?.join("model") } else { roots.model(task)? };
    let archive = roots.dataset(task)?;
    let hours = hours(args.hours_to_complete);
    let (least_s, most_s) = MARGIN_S;
    let deadline_s = hours * 3600.0 - (MARGIN_SHARE * hours * 3600.0).clamp(least_s, most_s);
    let side = args.long_side.map_or(if is_mini { 128 } else { rules::LONG_SIDE }, usize::from);
    let output = roots.output(task);
    for broken in container::set_broken_aside(&output)? {
        warning!("a file that is no whole LoRA was in the way; it is now {}", broken.display());
    }

    let mut choices = if is_mini { Choices::MINI } else { Choices::QWEN_IMAGE };
    choices.rank = args.rank.unwrap_or(choices.rank).max(delivered_rank(&output));
    let mut maker = JobMaker { args, choices, model: &model, side, quantised: quantised(&model, roots)? };
    // Before anything is opened that may be broken: whatever happens from here on, there is a LoRA.
    let (mut job, _) = maker.job(&Split { train: "pictures".into(), ..Split::default() })?;
    job.folder.clone_from(&output);
    run::deliver_untrained(&job, &model)?;

    let work = Work::open(args.work_root.as_deref(), task)?;
    work.remark.iter().for_each(|remark| warning!("{remark}"));
    let pictures = prepare(&archive, work.path(), side, args.trigger_word.as_deref(), stop)?;
    maker.choices.consider(pictures.pictures.0);
    if let Some(lr) = args.lr {
        (maker.choices.lr, maker.choices.lr_times_steps) = (lr, None);
    }
    let (mut job, warnings) = maker.job(&pictures)?;
    let choices = &maker.choices;
    let rate = match choices.lr_times_steps {
        Some(product) => format!("{product:.3e} / steps"),
        None => format!("{:.1e}", choices.lr),
    };
    say!("{:<14} rank {}, batch {}, learning rate {rate}", "choices", choices.rank, choices.batch);
    show_warnings(&warnings);
    job.folder.clone_from(&output);
    // What was delivered stays until there is something better or further; nothing of it is moved aside.
    job.resume = true;
    if let Some(change) = change(&job) {
        if delivered_rank(&output) > 0 {
            warning!("the task changed: {change}; the training goes on from the LoRA that was delivered");
        }
        container::remove_state(&output)?;
    }
    // The hours count from each start of the container: what is left of them is known outside alone.
    let limited = Limited { clock, deadline_s: Some(deadline_s), is_moment: true };
    let setting = Setting { held_out: None, start_over: false, choice, stop, events };
    let summary = run_job(&job, &limited, setting)?;
    show_interrupted(&job, &summary);
    // What is uploaded at the end is the LoRA; a task that was interrupted may be started again.
    if !summary.interrupted {
        container::remove_state(&output)?;
    }
    if let Some((first, best)) = summary.chosen {
        let (before, after) = (first.error.total(), best.error.total());
        say!(
            "{:<14} {after:.5} after {} steps, {:+.2} % of {} {before:.5}",
            "held-out error",
            best.steps,
            100.0 * (after / before - 1.0),
            if first.steps == 0 { "the bare model's" } else { "what the task went on with," }
        );
    }
    Ok(())
}

/// Unpacks the archive and parts its pictures; those that cannot be used are named.
fn prepare(
    archive: &Path,
    work: &Path,
    side: usize,
    trigger: Option<&str>,
    stop: &Stop,
) -> anyhow::Result<Split> {
    let folder = work.join("archive");
    let unpacked = unpack(archive, &folder)?;
    unpacked.bad.iter().for_each(|bad| warning!("left out: {bad}"));
    stop.interrupt().check()?;
    let pictures = split(&folder, work, side, trigger)?;
    // The scaled ones are all that is needed, and the disk may be small.
    let _ = std::fs::remove_dir_all(&folder);
    pictures.bad.iter().for_each(|bad| warning!("left out: {bad}"));
    let (training, held) = pictures.pictures;
    say!("{:<14} {training} to train on, {held} held out, long side {side}", "pictures");
    Ok(pictures)
}

/// Rank of the LoRA that an earlier start delivered; 0 without one. It can be gone on with at this rank or a
/// higher one.
fn delivered_rank(output: &Path) -> usize {
    let file = lora_file::load(&output.join(run::LAST)).ok().filter(|file| file.step() != Some(0));
    file.map_or(0, |file| file.modules.iter().map(|module| module.rank).max().unwrap_or(0))
}

/// What differs between the job and that of an earlier start, if something that counts does.
fn change(job: &Job) -> Option<String> {
    let before = std::fs::read_to_string(job.folder.join("config.yaml")).ok()?;
    let changes = job::changes(&before, &job.text);
    changes.first().map(ToString::to_string)
}

/// Fills the preset in.
struct JobMaker<'a> {
    args: &'a TaskArgs,
    choices: Choices,
    model: &'a Path,
    side: usize,
    quantised: Option<String>,
}

impl JobMaker<'_> {
    fn job(&self, pictures: &Split) -> anyhow::Result<(Job, Vec<Warning>)> {
        let template = match &self.args.preset {
            None => PRESET.to_owned(),
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("--preset {}", path.display()))?
            }
        };
        let path = self.args.preset.as_deref().unwrap_or(Path::new("task.yaml"));
        let variable = |name: &str| self.value(name, pictures);
        Ok(Job::from_str(&template, path, None, &variable)?)
    }

    /// Values of the preset's variables, quoted as YAML.
    fn value(&self, name: &str, pictures: &Split) -> Option<String> {
        let text = |text: &str| serde_json::to_string(text).ok();
        let choices = &self.choices;
        let trigger = self.args.trigger_word.as_deref().filter(|_| pictures.trigger_in_captions);
        let held_out = pictures.held_out.as_deref();
        match name {
            "MODEL" => text(&self.model.display().to_string()),
            "DATA" => text(&pictures.train.display().to_string()),
            "HELD_OUT" => text(&held_out.map_or(String::new(), |path| path.display().to_string())),
            "DELIVER" => text(if held_out.is_some() { "best" } else { "newest" }),
            "TRIGGER" => text(trigger.unwrap_or_default()),
            "SIDE" => Some(self.side.to_string()),
            "RANK" => Some(choices.rank.to_string()),
            "LR" => Some(format!("{:.1e}", choices.lr)),
            "LR_TIMES_STEPS" => {
                Some(choices.lr_times_steps.map_or("null".into(), |product| format!("{product:.3e}")))
            }
            "BATCH" => Some(choices.batch.to_string()),
            "QUANTISE" => Some(self.quantised.is_some().to_string()),
            "QTYPE" => text(self.quantised.as_deref().unwrap_or("qfloat8")),
            other => std::env::var(other).ok(),
        }
    }
}

/// The hours, which some revisions of the contest cut to whole ones.
fn hours(given: f64) -> f64 {
    if given > 0.0 {
        return given;
    }
    warning!("--hours-to-complete 0: taken for {CUT_OFF_HOURS}, cut off to whole hours on the way");
    CUT_OFF_HOURS
}

/// What the pictures decide.
struct Choices {
    rank: usize,
    batch: usize,
    lr: f64,
    /// Product of peak learning rate and steps, and for how many pictures it is meant.
    lr_times_steps: Option<f64>,
    pictures: Option<f64>,
}

impl Choices {
    /// Measured with 10 and with 24 pictures: docs/what-does-time-buy.md.
    const MINI: Self =
        Choices { rank: 64, batch: 4, lr: 2e-4, lr_times_steps: Some(0.1), pictures: Some(24.0) };
    /// The contest's own job of rank 32 and 3000 steps at 1e-4, kept in proportion; not measured.
    const QWEN_IMAGE: Self =
        Choices { rank: 32, batch: 1, lr: 1e-4, lr_times_steps: Some(0.3), pictures: None };

    /// Fewer pictures are sooner learnt by heart. Very few count as [`FEWEST_PICTURES`]: below, nothing would
    /// be learnt.
    fn consider(&mut self, pictures: usize) {
        let pictures = pictures.max(FEWEST_PICTURES);
        let many = self.pictures.map_or(1.0, |usual| pictures as f64 / usual);
        let factor = many.min(many.powi(3));
        self.lr_times_steps = self.lr_times_steps.map(|product| product * factor);
        self.lr *= factor.min(1.0);
    }
}

/// How the weights must be quantised to fit this machine's memory, as `qtype`; `None` if they fit as they
/// are.
fn quantised(model: &Path, roots: &Roots) -> anyhow::Result<Option<String>> {
    let weights: u64 = ["transformer", "text_encoder", "vae"]
        .iter()
        .flat_map(|part| std::fs::read_dir(model.join(part)).into_iter().flatten().flatten())
        .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "safetensors"))
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|file| file.len())
        .sum();
    let memory = processor::memory_bytes();
    if MEMORY_PER_FILE * weights as f64 + BESIDE_WEIGHTS <= memory || weights < 1 << 30 {
        return Ok(None);
    }
    Ok(Some(match roots.recovery_adapter() {
        Some(adapter) => format!("uint3|{}", adapter.display()),
        None => "qfloat8".into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_pictures_learn_more_slowly() {
        let product = |pictures| {
            let mut choices = Choices::MINI;
            choices.consider(pictures);
            (choices.lr_times_steps.unwrap() * 1e4).round() / 1e4
        };
        assert_eq!([12, 24, 48].map(product), [0.0125, 0.1, 0.2]);
        assert_eq!([1, 3, 4].map(product), [0.0005; 3]);
    }

    #[test]
    fn part_of_an_hour_cut_off_is_half_an_hour() {
        assert_eq!([1.5, 0.01, 0.0].map(hours), [1.5, 0.01, 0.5]);
    }
}
