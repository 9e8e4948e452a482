//! `tenggat check JOB`: everything that can be known of a run before it begins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use tenggat_models::transformer::Config;
use tenggat_models::{hub, model_folder};
use tenggat_plan::{Plan, PlanJob, PlanOptions, Precision, Program, Verdict};
use tenggat_train::data::pictures::{self, Item};
use tenggat_train::job::{self, Job, NetworkKind};
use tenggat_train::lora::file as lora_file;
use tenggat_train::lora::initial;
use tenggat_train::plan::job::plan_job;

use super::plan::facts::facts;
use super::plan::job::on;
use super::train::{NO_STEPS, default_steps, show_warnings};
use crate::assets;
use crate::device;
use crate::output::{self, say, warning};
use crate::processor;

/// `tenggat check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Job file.
    pub job: PathBuf,
    /// Name of the run, in place of the job's (`[name]` in the job).
    #[arg(short, long)]
    pub name: Option<String>,
}

/// Most bytes that file systems take for the name of a folder.
const NAME_BYTES: usize = 255;

/// Share of an image that may be cut off without a word.
const WORTH_A_WORD: f64 = 0.1;

/// Longest run on a processor, in seconds, that is not warned of.
const LONG_S: f64 = 86400.0;

/// What was found: problems end a run, remarks do not.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    remarks: usize,
}

impl Findings {
    fn problem(&mut self, text: impl ToString) {
        self.problems.push(text.to_string());
    }

    fn remark(&mut self, text: impl std::fmt::Display) {
        self.remarks += 1;
        warning!("{text}");
    }
}

/// Looks the job over and prints a summary.
pub fn check(args: &CheckArgs, device: device::Choice) -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let (mut job, warnings) = Job::from_file(&args.job, args.name.as_deref(), &variable)?;
    show_warnings(&warnings);
    let mut found = Findings { problems: Vec::new(), remarks: warnings.len() };
    let budgeted = job.limits.budget_s.is_some() || job.limits.deadline.is_some();
    if !budgeted && default_steps(&mut job) {
        found.remark(NO_STEPS);
    }
    line("job", &summary(&job));
    let model_is_here = model(&job.model.name_or_path, &mut found);
    if let Err(reason) = trained_modules(&job) {
        found.problem(reason);
    }
    if let Some(adapter) = &job.model.recovery_adapter {
        line("", &recovery(adapter, &mut found));
    }
    if let Some(path) = &job.network.pretrained {
        match lora_file::load(path) {
            Ok(file) => line("start", &format!("{}, {} modules", path.display(), file.modules.len())),
            Err(e) => found.problem(e),
        }
    }
    for set in &job.datasets {
        line("data", &data(set, &job, &mut found));
    }
    if let Some(folder) = &job.held_out {
        let set = job::Dataset { path: folder.clone(), ..job.datasets[0].clone() };
        line("held-out", &data(&set, &job, &mut found));
    }
    for (path, _) in job.train.validation.iter().flat_map(|validation| &validation.items) {
        if let Err(e) = pictures::load_whole(path, 32) {
            found.remark(format!("left out: {e}"));
        }
    }
    line("output", &output(&job.folder, &mut found));
    match plan(&job) {
        Ok(Planned { text, fits, total_s }) => {
            line("plan", &text);
            if model_is_here && !device.may_be_a_gpu() && total_s.is_some_and(|s| s > LONG_S) {
                found.remark(
                    "on this processor the run takes days; `tenggat plan choose` names GPUs, and a --budget \
                     makes it shorter",
                );
            }
            // A model that is elsewhere is trained elsewhere, and a GPU has memory of its own.
            if !fits && model_is_here && !device.may_be_a_gpu() {
                found.problem(
                    "the job needs more memory than this machine has; lower the rank, the batch or the \
                     resolution, quantise the model, or see `tenggat plan` for GPUs that hold it",
                );
            }
        }
        Err(e) => found.problem(format!("no plan: {e:#}")),
    }
    for problem in &found.problems {
        output::complaint("problem", problem);
    }
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let remarks = plural(found.remarks, "warning");
    match found.problems.len() {
        0 => say!("ok, {remarks}"),
        n => anyhow::bail!("{}: cannot run ({}, {remarks})", args.job.display(), plural(n, "problem")),
    }
    Ok(())
}

fn line(name: &str, text: &str) {
    say!("{name:<8} {text}");
}

fn summary(job: &Job) -> String {
    let train = &job.train;
    let steps = train.steps.map_or("steps by the budget".into(), |n| format!("{n} steps"));
    let batch = train.batch_size * train.gradient_accumulation;
    let (kind, lr) = (train.optimiser.kind, train.lr);
    let network = match job.network.kind {
        NetworkKind::Lora => format!("LoRA of rank {}", job.network.rank),
        NetworkKind::Lokr { factor: Some(factor) } => format!("LoKr, factor {factor}"),
        NetworkKind::Lokr { factor: None } => "LoKr".into(),
    };
    format!("{}: {network}, {steps}, batch {batch}, {kind:?}, learning rate {lr:e}", job.name)
}

/// Shows whether the model is here and whole, and returns whether it is here. A problem is only a folder that
/// is neither there nor the name of a repository, or a model of another family.
fn model(name: &str, found: &mut Findings) -> bool {
    let folder = match name {
        assets::MINI => assets::mini().map(|path| path.join("model")),
        other => Ok(other.into()),
    };
    let whole = match folder {
        Ok(folder) if folder.is_dir() => model_folder::check(&folder).map_err(|e| e.to_string()),
        Ok(_) => {
            let offline = hub::Options { offline: true, ..hub::Options::from_env() };
            match (hub::locate(name, &offline, &|_| {}), model_folder::other_family(name)) {
                (Ok(folder), _) => {
                    line("model", &format!("{name}, complete, in {}", folder.display()));
                    return true;
                }
                (Err(e), _) if hub::Repository::parse(name).is_none() => Err(e.to_string()),
                (Err(_), Some(family)) => Err(format!(
                    "{name} is {family}; `arch: qwen_image` trains Qwen/Qwen-Image and Qwen/Qwen-Image-2512"
                )),
                (Err(_), None) => {
                    line("model", &format!("{name} is not on this machine; the run fetches it"));
                    return false;
                }
            }
        }
        Err(e) => Err(format!("{e:#}")),
    };
    match whole {
        Ok(()) => line("model", &format!("{name}, complete")),
        Err(e) => {
            found.problem(e);
            line("model", &format!("{name} cannot be used"));
        }
    }
    true
}

/// Whether the job's patterns leave anything to train, in the model that is here or else in the published
/// one.
fn trained_modules(job: &Job) -> Result<(), &'static str> {
    let folder = match job.model.name_or_path.as_str() {
        assets::MINI => assets::mini().map(|path| path.join("model")).unwrap_or_default(),
        other => other.into(),
    };
    // What is wrong with the file itself is told of the model.
    let config = Config::read(&folder.join("transformer")).unwrap_or_else(|_| Config::qwen_image());
    initial::layout(&job.network, &config).map(|_| ())
}

fn recovery(name: &str, found: &mut Findings) -> String {
    let path = Path::new(name);
    let opened = if path.is_file() {
        tenggat_models::transformer::recovery::Recovery::open(path)
            .map(|r| r.modules().len())
            .map_err(|e| e.to_string())
    } else if hub::is_file_name(name) {
        return format!("recovery adapter {name}: the run fetches it if it is missing");
    } else {
        Err(format!("the accuracy recovery adapter `{name}` is neither a file nor org/name/file of the hub"))
    };
    match opened {
        Ok(modules) => format!("recovery adapter {name}, {modules} modules"),
        Err(e) => {
            found.problem(e);
            format!("recovery adapter {name} cannot be used")
        }
    }
}

/// Reads a data set and decodes all of its pictures.
fn data(set: &job::Dataset, job: &Job, found: &mut Findings) -> String {
    let path = set.path.display();
    let pictures::Loaded { items, bad, remarks } =
        match pictures::load(std::slice::from_ref(set), job.compat, job.seed) {
            Ok(loaded) => loaded,
            Err(e) => {
                found.problem(e);
                return format!("{path} cannot be used");
            }
        };
    let broken = pictures::broken(&items);
    let is_whole = |item: &&Item| !broken.iter().any(|bad| bad.path == item.path);
    let mut told = BTreeSet::new();
    let left_out = bad.iter().chain(&broken).filter(|bad| told.insert(&bad.path));
    let left_out: Vec<String> = left_out.map(|bad| bad.error.to_string()).collect();
    let whole: Vec<&Item> = items.iter().filter(is_whole).collect();
    left_out.iter().for_each(|error| found.remark(format!("left out: {error}")));
    let pictures: BTreeSet<&Path> = whole.iter().map(|item| item.path.as_path()).collect();
    if pictures.is_empty() {
        found.problem(format!("{path} has no usable image"));
    }
    remarks.iter().for_each(|remark| found.remark(remark));
    let sizes: BTreeSet<(usize, usize)> = whole.iter().map(|i| (i.crop.width, i.crop.height)).collect();
    let sizes: Vec<String> = sizes.iter().map(|(w, h)| format!("{w}×{h}")).collect();
    let shown = match sizes.len() {
        0..=4 => sizes.join(", "),
        n => format!("{n} sizes from {} to {}", sizes[0], sizes[n - 1]),
    };
    let count = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let images = count(pictures.len(), "image", "images");
    let entries = count(whole.len(), "entry", "entries");
    format!("{path}: {images}, {entries} an epoch, {shown}{}", cut_off(&whole))
}

/// What the cut to a size leaves out of the image that loses most, if that is worth a word.
fn cut_off(items: &[&Item]) -> String {
    let area = |(width, height): (usize, usize)| (width * height) as f64;
    let share = |item: &&Item| 1.0 - area((item.crop.width, item.crop.height)) / area(item.crop.scaled);
    let most = items.iter().map(share).fold(0.0, f64::max);
    if most < WORTH_A_WORD {
        String::new()
    } else {
        format!(", up to {:.0} % of an image cut off", 100.0 * most)
    }
}

/// Whether the folder of the results, or the nearest folder above it that exists, can be written to.
fn output(folder: &Path, found: &mut Findings) -> String {
    let existing = folder.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    if !existing.is_dir() {
        found.problem(format!(
            "{} is not a folder, so results cannot be written to {}; change `training_folder` or the name",
            existing.display(),
            folder.display()
        ));
    } else if let Some(part) = folder.iter().find(|part| part.len() > NAME_BYTES) {
        found.problem(format!(
            "{} cannot be created: {} bytes are too many for a name",
            folder.display(),
            part.len()
        ));
    } else if let Err(e) = tempfile::tempfile_in(existing) {
        found.problem(format!("cannot write to {}: {e}", existing.display()));
    }
    folder.display().to_string()
}

/// What a job takes on this machine's processor.
struct Planned {
    /// Time and memory, in one line.
    text: String,
    /// Whether the machine has the memory.
    fits: bool,
    /// The least time that is likely, in seconds, if the job ends by itself.
    total_s: Option<f64>,
}

fn plan(job: &Job) -> anyhow::Result<Planned> {
    let (facts, _) = facts(&job.model.name_or_path)?;
    let planned = plan_job(job, &facts, Precision::Bf16).job;
    let machine = processor::calibrated().unwrap_or_else(processor::uncalibrated);
    let options = PlanOptions { budget_s: job.limits.budget_s, ..PlanOptions::default() };
    let plan = Plan::new(&on(&planned, &machine), &machine, Program::Tenggat, &options)?;
    // A run keeps to a `memory_limit` as well as it can; what the machine has is all there is.
    let unlimited = PlanJob { memory_limit_bytes: None, ..planned };
    let fits = Plan::new(&on(&unlimited, &machine), &machine, Program::Tenggat, &options)?.fit.fits;
    let bytes = plan.fit.memory.device_bytes() + plan.fit.memory.host_bytes;
    let mut parts = vec![format!("{} s a step", plan.mean_step_s)];
    parts.extend(plan.steps.map(|steps| format!("{steps} steps")));
    parts.extend(plan.total_s.map(|total| format!("{} in all", total.as_duration())));
    let more = match plan.verdict {
        Verdict::Fits => "",
        Verdict::MayFit => " (tight)",
        Verdict::TooLarge => " (more than available)",
    };
    parts.push(format!("{:.1} GB of {:.1} GB memory{more}", bytes / 1e9, plan.fit.usable_bytes / 1e9));
    let name = &job.model.name_or_path;
    if name != assets::MINI && !Path::new(name).is_dir() {
        let first = &plan.first_start;
        let (fetch, disk) = (first.download_bytes / 1e9, first.disk_bytes / 1e9);
        parts.push(format!("{fetch:.0} GB to fetch unless the model is here, {disk:.0} GB of disk"));
    }
    if plan.assumed {
        parts.push("speed assumed; measure it with `tenggat plan calibrate`".into());
    }
    let text = format!("this processor: {}; GPUs: `tenggat plan`", parts.join(", "));
    Ok(Planned { text, fits, total_s: plan.total_s.map(|total| total.low) })
}
