//! `tenggat task`: the timed contest's container, from its arguments to `last.safetensors`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tenggat_plan::WallClock;
use tenggat_train::contest::container::{self, Roots, Task};
use tenggat_train::contest::{Split, rules, split, unpack};
use tenggat_train::job::Job;
use tenggat_train::lora_file;

use super::train::{run_job, show_warnings};
use crate::assets;
use crate::device::Choice;
use crate::limit::Limited;
use crate::processor;

/// The job, unless another is given.
const PRESET: &str = include_str!("../../../../assets/contest/task.yaml");
/// Kept free before the end for what this process's clock does not show: share of the hours, and its bounds in seconds.
const MARGIN_SHARE: f64 = 0.01;
const MARGIN_S: (f64, f64) = (1.0, 60.0);
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
    #[arg(long)]
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
    /// Room for unpacked pictures (default: the system's folder for temporary files).
    #[arg(long)]
    work_root: Option<PathBuf>,
    /// Job file with ${...}, in place of the built-in one: assets/contest/task.yaml of the sources.
    #[arg(long, value_name = "FILE")]
    preset: Option<PathBuf>,
    /// Long side of the pictures in pixels (default: the scorer's 1024; 128 for `mini`).
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..=8192))]
    long_side: Option<u16>,
    /// Rank, in place of the one worked out.
    #[arg(long)]
    rank: Option<usize>,
    /// Peak learning rate, in place of the one worked out.
    #[arg(long)]
    lr: Option<f64>,
}

/// Trains until shortly before the end. Once there is a LoRA nothing that goes wrong makes the exit code other than 0: with
/// another the contest uploads nothing.
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
        work: args.work_root.clone().unwrap_or_else(|| std::env::temp_dir().join("tenggat-task")),
    };
    let output = roots.output(&task);
    // A panic is a bug, but not one that may cost the LoRA that is there.
    let ended = catch_unwind(AssertUnwindSafe(|| train(args, &task, &roots, clock, choice)));
    let problem = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(anyhow::anyhow!("the training ended by a bug in this program")),
    };
    let delivered = container::picked(&output).ok().flatten().filter(|path| lora_file::load(path).is_ok());
    match (delivered, problem) {
        (Some(path), problem) => {
            if let Some(problem) = problem {
                eprintln!("warning: {problem:#}; what was saved before is delivered");
            }
            println!("{:<14} {}", "delivered", path.display());
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
    choice: Choice,
) -> anyhow::Result<()> {
    let is_mini = args.model == assets::MINI;
    let model = if is_mini { assets::mini()?.join("model") } else { roots.model(task)? };
    let hours = hours(args.hours_to_complete)?;
    let (least_s, most_s) = MARGIN_S;
    let deadline_s = hours * 3600.0 - (MARGIN_SHARE * hours * 3600.0).clamp(least_s, most_s);
    let side = args.long_side.map_or(if is_mini { 128 } else { rules::LONG_SIDE }, usize::from);

    std::fs::create_dir_all(&roots.work).with_context(|| format!("--work-root {}", roots.work.display()))?;
    // A folder of its own, removed in the end: what else lies there is somebody's.
    let work = tempfile::Builder::new()
        .prefix(&format!("{}-", task.id))
        .tempdir_in(&roots.work)
        .with_context(|| format!("--work-root {}", roots.work.display()))?;
    let (archive, work) = (work.path().join("archive"), work.path());
    unpack(&roots.dataset(task)?, &archive)?;
    let pictures = split(&archive, work, side, args.trigger_word.as_deref())?;
    pictures.bad.iter().for_each(|bad| eprintln!("warning: left out: {bad}"));
    let (training, held) = pictures.pictures;
    println!("{:<14} {training} to train on, {held} held out, long side {side}", "pictures");

    let mut choices = if is_mini { Choices::MINI } else { Choices::QWEN_IMAGE };
    choices.consider(training);
    choices.rank = args.rank.unwrap_or(choices.rank);
    if let Some(lr) = args.lr {
        (choices.lr, choices.lr_times_steps) = (lr, None);
    }
    let template = match &args.preset {
        None => PRESET.to_owned(),
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("--preset {}", path.display()))?
        }
    };
    let path = args.preset.as_deref().unwrap_or(Path::new("task.yaml"));
    let quantised = quantised(&model, roots)?;
    let given = (model.as_path(), &pictures, side);
    let variable = |name: &str| value(name, args, &choices, given, quantised.as_deref());
    let (mut job, warnings) = Job::from_str(&template, path, None, &variable)?;
    let rate = match choices.lr_times_steps {
        Some(product) => format!("{product:.3} / steps"),
        None => format!("{:.1e}", choices.lr),
    };
    println!("{:<14} rank {}, batch {}, learning rate {rate}", "choices", choices.rank, choices.batch);
    show_warnings(&warnings);
    job.folder = roots.output(task);
    let limited = Limited { clock, deadline_s: Some(deadline_s), is_moment: false };
    let summary = run_job(&job, None, &limited, false, choice)?;
    if let Some((first, best)) = summary.chosen {
        let (before, after) = (first.error.total(), best.error.total());
        println!(
            "{:<14} {after:.5} after {} steps, {:+.2} % of the bare model's {before:.5}",
            "held-out error",
            best.steps,
            100.0 * (after / before - 1.0)
        );
    }
    Ok(())
}

/// The hours, which some revisions of the contest cut to whole ones.
fn hours(given: f64) -> anyhow::Result<f64> {
    anyhow::ensure!(
        given.is_finite() && (0.0..=1000.0).contains(&given),
        "--hours-to-complete {given}: expected a number of hours such as 1.5"
    );
    if given > 0.0 {
        return Ok(given);
    }
    eprintln!("warning: --hours-to-complete 0: taken for {CUT_OFF_HOURS}, cut off to whole hours on the way");
    Ok(CUT_OFF_HOURS)
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

    /// Fewer pictures are sooner learnt by heart.
    fn consider(&mut self, pictures: usize) {
        let many = self.pictures.map_or(1.0, |usual| pictures as f64 / usual);
        let factor = many.min(many.powi(3));
        self.lr_times_steps = self.lr_times_steps.map(|product| product * factor);
        self.lr *= factor.min(1.0);
    }
}

/// How the weights must be quantised to fit this machine's memory, as `qtype`; `None` if they fit as they are.
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

/// Values of the preset's variables, quoted as YAML.
fn value(
    name: &str,
    args: &TaskArgs,
    choices: &Choices,
    (model, pictures, side): (&Path, &Split, usize),
    quantised: Option<&str>,
) -> Option<String> {
    let text = |text: &str| serde_json::to_string(text).ok();
    let trigger = args.trigger_word.as_deref().filter(|_| pictures.trigger_in_captions);
    let held_out = pictures.held_out.as_deref();
    match name {
        "MODEL" => text(&model.display().to_string()),
        "DATA" => text(&pictures.train.display().to_string()),
        "HELD_OUT" => text(&held_out.map_or(String::new(), |path| path.display().to_string())),
        "DELIVER" => text(if held_out.is_some() { "best" } else { "newest" }),
        "TRIGGER" => text(trigger.unwrap_or_default()),
        "SIDE" => Some(side.to_string()),
        "RANK" => Some(choices.rank.to_string()),
        "LR" => Some(format!("{:.1e}", choices.lr)),
        "LR_TIMES_STEPS" => {
            Some(choices.lr_times_steps.map_or("null".into(), |product| format!("{product:.4}")))
        }
        "BATCH" => Some(choices.batch.to_string()),
        "QUANTISE" => Some(quantised.is_some().to_string()),
        "QTYPE" => text(quantised.unwrap_or("qfloat8")),
        other => std::env::var(other).ok(),
    }
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
    }

    #[test]
    fn part_of_an_hour_cut_off_is_half_an_hour() {
        assert_eq!(hours(1.5).unwrap(), 1.5);
        assert_eq!(hours(0.0).unwrap(), 0.5);
        assert!(hours(f64::NAN).is_err() && hours(-1.0).is_err());
    }
}
