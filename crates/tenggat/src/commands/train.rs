//! `tenggat train`, and what `tenggat demo` shares with it.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tenggat_models::{Interrupt, hub};
use tenggat_plan::WallClock;
use tenggat_tensor::Device;
use tenggat_train::job::{Job, Push, Warning};
use tenggat_train::run::{self, Options, Stop, Summary};

use super::comparison;
use super::model::{locate_file, locate_unless};
use crate::assets;
use crate::cli;
use crate::device::{self, Choice};
use crate::events::{EventLines, News};
use crate::hooks::{Hooks, Outcome, hooked};
use crate::limit::{self, Limited};
use crate::output::{self, say, warning};
use crate::processor;
use crate::progress::Progress;
use crate::signals;
use crate::threads;
use crate::training_lines::Cadence;
use crate::when::plural;

/// Runs a job file.
pub fn train(args: &cli::Train, clock: WallClock, choice: Choice) -> anyhow::Result<()> {
    let stop = signals::listen(0)?;
    if args.events.is_some() {
        output::leave_stdout_to_events();
    }
    let body = |hooks: &mut Hooks| train_hooked(args, clock, (choice, &stop), hooks);
    hooked(&args.terms, &name_before(args.name.as_deref(), &args.job), clock, body, outcome).map(drop)
}

/// The name of a run whose job is not read yet.
pub fn name_before(given: Option<&str>, job: &Path) -> String {
    given.map_or_else(|| job.file_stem().unwrap_or_default().to_string_lossy().into_owned(), str::to_owned)
}

fn train_hooked(
    args: &cli::Train,
    clock: WallClock,
    (choice, stop): (Choice, &Stop),
    hooks: &mut Hooks,
) -> anyhow::Result<Summary> {
    let variable = |name: &str| std::env::var(name).ok();
    let (mut job, warnings) = Job::from_file(&args.job, args.name.as_deref(), &variable)?;
    let mut limited = limit::resolve(&args.limit, clock, &mut job.limits)?;
    args.terms.money.limit(&mut limited);
    show_warnings(&warnings);
    if limited.deadline_s.is_none() && default_steps(&mut job) {
        warning!("{NO_STEPS}");
    }
    let events = args.events.map(|format| EventLines::new(limited.clock, format));
    let held_out = args.held_out.as_deref();
    if let Some(port) = args.serve {
        serve(&job, port, choice);
    }
    hooks.begin(&job.name, limited.clock, limited.deadline_s);
    let (start_over, program) = (args.start_over, "train");
    let setting = Setting { held_out, start_over, choice, stop, events, hooks, program };
    let summary = run_job(&job, &limited, setting)?;
    show_interrupted(&job, &summary);
    comparison::show(&summary, job.held_out_weights);
    if summary.steps > 0 || summary.lora.exists() {
        say!("{:<14} {} ({})", "LoRA", summary.lora.display(), plural(summary.steps, "step"));
    }
    anyhow::ensure!(
        summary.steps > 0 || summary.interrupted,
        "no step fitted into the budget, so {} changes nothing; give a longer budget",
        summary.lora.display()
    );
    Ok(summary)
}

/// What hooks are told of the end of a run.
fn outcome(summary: &Summary) -> Outcome {
    let ended = if summary.interrupted { "interrupted" } else { "the run is done" };
    let lora = summary.lora.exists().then(|| (summary.lora.clone(), summary.steps));
    Outcome { lora, ended: ended.into() }
}

/// Shows the run on a page. A page that cannot be shown is no reason not to train.
fn serve(job: &Job, port: u16, choice: Choice) {
    let folder = job.folder.parent().unwrap_or(&job.folder);
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    // It ends with the process.
    if let Err(error) = super::serve::begin(folder, address, port, choice) {
        warning!("{error:#}");
    }
}

/// Tells a run that was asked to end how it stands, and how it goes on.
pub fn show_interrupted(job: &Job, summary: &Summary) {
    if !summary.interrupted {
        return;
    }
    let next = if job.resume && summary.steps > 0 { "resumes from there" } else { "starts over" };
    match summary.steps {
        0 => say!("{:<14} before the first step; there is nothing to save", "interrupted"),
        steps => {
            say!("{:<14} after {}, saved; the same command {next}", "interrupted", plural(steps, "step"))
        }
    }
}

/// What is said of a job that [`default_steps`] completes.
pub const NO_STEPS: &str =
    "the job names neither `train.steps` nor a budget; it takes 1000 steps, as in ai-toolkit";

/// Gives a job without `train.steps` ai-toolkit's default, 1000; returns whether it had none.
pub fn default_steps(job: &mut Job) -> bool {
    let none = job.train.steps.is_none();
    job.train.steps.get_or_insert(1000);
    none
}

/// Time that ending the process needs after an upload was given up.
const CLOSING: Duration = Duration::from_millis(300);

/// [`push`], given up where the deadline comes first: the repository gets its files in one commit, at the
/// end, or none.
fn push_in_time(
    job: &Job,
    to: &Push,
    summary: &Summary,
    options: &hub::Options,
    ended: Instant,
) -> anyhow::Result<()> {
    // Deadlines of years ahead are none.
    let Some(left_s) = summary.left_s.filter(|s| *s < 1e8) else {
        return push(job, to, &summary.lora, options);
    };
    let left = Duration::from_secs_f64(left_s.max(0.0)).saturating_sub(ended.elapsed() + CLOSING);
    let (sender, receiver) = mpsc::channel();
    let (job, to, lora, options) = (job.clone(), to.clone(), summary.lora.clone(), options.clone());
    let repository = to.repository.clone();
    // It ends with the process.
    std::thread::spawn(move || sender.send(push(&job, &to, &lora, &options)));
    receiver.recv_timeout(left).unwrap_or_else(|_| {
        anyhow::bail!(
            "the deadline came before the upload to {repository} was done; the same command tries again"
        )
    })
}

/// Uploads the finished LoRA with a short page about it.
fn push(job: &Job, to: &Push, lora: &Path, options: &hub::Options) -> anyhow::Result<()> {
    let repository = hub::Repository::parse(&to.repository).context("not a repository's name")?;
    let name = format!("{}.safetensors", job.name);
    let trigger =
        job.trigger_word.as_ref().map_or(String::new(), |word| format!("Trigger word: `{word}`\n\n"));
    let base = match hub::Repository::parse(&job.model.name_or_path) {
        Some(model) => format!("base_model: {model}\n"),
        None => String::new(),
    };
    let page = format!(
        "---\ntags: [text-to-image, lora, qwen-image, tenggat]\n{base}---\n# {}\n\n{trigger}\
         A LoRA of Qwen-Image, trained with tenggat: `{name}`.\n",
        job.name
    );
    let files = [hub::Upload::File(&name, lora), hub::Upload::Text("README.md", &page)];
    hub::upload(&repository, &files, to.private, options)?;
    say!("{:<14} {}/{repository}", "uploaded", options.endpoint);
    Ok(())
}

/// Prints what the job file is warned about.
pub fn show_warnings(warnings: &[Warning]) {
    for warning in warnings {
        warning!("{warning}");
    }
}

/// The model's folder, fetched if need be, and the recovery adapter with it, whose path the job has from now
/// on.
fn fetch(job: &mut Job, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    let model = locate_unless(&job.model.name_or_path, interrupt)?;
    if let Some(adapter) = &mut job.model.recovery_adapter {
        let found = locate_file(adapter, interrupt)
            .with_context(|| format!("accuracy recovery adapter {adapter}"))?;
        *adapter = found.display().to_string();
    }
    Ok(model)
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<tenggat_models::Error>().is_some_and(tenggat_models::Error::is_interrupted)
    })
}

/// What a run is given besides its job and its limits.
pub struct Setting<'a> {
    /// Folder of held-out images.
    pub held_out: Option<&'a Path>,
    /// Trains anew where there are results.
    pub start_over: bool,
    /// The device.
    pub choice: Choice,
    /// How the end is asked for.
    pub stop: &'a Stop,
    /// Prints events for programs.
    pub events: Option<EventLines>,
    /// Whom to tell.
    pub hooks: &'a mut Hooks,
    /// The command.
    pub program: &'static str,
}

/// Runs a job with a display, stopping early but whole at an interrupt.
pub fn run_job(job: &Job, limited: &Limited, mut setting: Setting<'_>) -> anyhow::Result<Summary> {
    let (printed, stop) = (setting.events.take(), setting.stop);
    let mut news = News::new(limited.clock, printed, &job.folder, setting.program, limited.deadline_s);
    let done = run_told(job, limited, setting, &mut news);
    match &done {
        Ok(summary) => {
            let is_stopped = summary.interrupted || stop.is_requested();
            news.end(if is_stopped { "stopped" } else { "done" }, summary.steps);
        }
        Err(error) => news.fail(&job.folder, error),
    }
    done
}

/// [`run_job`], with its events told to programs.
fn run_told(job: &Job, limited: &Limited, setting: Setting<'_>, news: &mut News) -> anyhow::Result<Summary> {
    let Setting { held_out, start_over, choice, stop, hooks, .. } = setting;
    stop.set_has_deadline(limited.deadline_s.is_some());
    let mut job = job.clone();
    let model = match fetch(&mut job, stop.interrupt()) {
        Err(error) if is_interrupted(&error) => return Ok(Summary::interrupted(&job, 0, None)),
        model => model?,
    };
    let device = device::open(choice)?;
    news.watch(&device);
    let kept = assets::cache_folder()?;
    // Fails if --threads has started them already, which counts more.
    let _ = threads::start(job.limits.threads);
    // The built-in model is quantised sooner than it is read.
    let quantised = (job.model.name_or_path != assets::MINI).then_some(kept.as_path());
    let &Limited { ref clock, deadline_s, is_moment } = limited;
    let sample_every = if job.sample.enabled { job.sample.every } else { 0 };
    let cadence = Cadence { save_every: job.save.every, sample_every };
    let mut progress = Progress::new(clock, deadline_s).with_cadence(cadence);
    let hub = hub::Options::from_env();
    if job.push.is_some() {
        // Told now, not after hours of training.
        anyhow::ensure!(!hub.offline, "the job has `push_to_hub: true`, and HF_HUB_OFFLINE forbids it");
        anyhow::ensure!(
            hub.token.is_some(),
            "the job has `push_to_hub: true`; set HF_TOKEN to a token with write access"
        );
    }
    // On a thread of the pool: to one outside, every parallel loop is a wait for threads to wake up.
    let summary = rayon::scope(|_| {
        let options = Options {
            device: &device,
            clock,
            deadline_s,
            deadline_is_moment: is_moment,
            model: &model,
            quantised,
            memory_bytes: if let Device::Cpu(_) = device { processor::usable_bytes() } else { None },
            held_out,
            report: true,
            start_over,
            stop,
        };
        run::run(&job, &options, &mut |event| {
            news.tell(&event);
            hooks.hear(&event);
            progress.show(event);
        })
    })?;
    if stop.is_requested() {
        // An upload takes as long as it takes.
        return Ok(summary);
    }
    if let Some(to) = &job.push
        && let Err(error) = push_in_time(&job, to, &summary, &hub, Instant::now())
    {
        // The LoRA is on disk: the run has not failed.
        warning!("{error:#}");
    }
    Ok(summary)
}
