//! `tenggat drive`: another trainer inside a budget.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use tenggat_drive::{
    CommandOptions, Driven, Event, Installation, Options, Pattern, Step, ToolkitJob, Wishes,
};
use tenggat_plan::{Clock, WallClock};
use tenggat_train::job::Limits;
use tenggat_train::run;

use crate::cli::Limit;
use crate::hooks::{HookArgs, Hooks, Moment};
use crate::limit::{self, Limited};
use crate::money::Money;
use crate::output::{say, warning};
use crate::progress::Progress;

/// Steps that the shown loss is averaged over.
const SMOOTH_OVER: f64 = 50.0;

/// `tenggat drive`.
#[derive(Debug, Args)]
pub struct DriveArgs {
    /// ai-toolkit's job file, of any architecture that it has.
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    pub job: Option<PathBuf>,
    /// Any other trainer: its command, after `--`, as you would type it.
    #[arg(last = true, value_name = "COMMAND", requires = "saves")]
    pub command: Vec<String>,
    /// Where that trainer's LoRA files go: 'out/**/*.safetensors'. The newest whole one is
    /// `last.safetensors` in the first of these folders.
    #[arg(long, value_name = "PATTERN", requires = "command")]
    pub saves: Option<String>,
    #[command(flatten)]
    pub limit: DriveLimit,
    /// Name of the run, in place of the job's (`[name]` in the job).
    #[arg(short, long)]
    pub name: Option<String>,
    /// The trainer.
    #[arg(long, value_enum, default_value_t = TrainerName::AiToolkit)]
    pub trainer: TrainerName,
    /// Its folder (default: AI_TOOLKIT, or the usual places).
    #[arg(long, value_name = "FOLDER")]
    pub trainer_dir: Option<PathBuf>,
    /// The Python that has its packages (default: the one of its own `venv` or `.venv`, or python3).
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
    /// Train anew: results of an earlier run are moved aside instead of being gone on with.
    #[arg(long)]
    pub start_over: bool,
    #[command(flatten)]
    pub money: Money,
    #[command(flatten)]
    pub hooks: HookArgs,
}

/// Trainers that take a job file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrainerName {
    /// ostris/ai-toolkit.
    AiToolkit,
}

/// When a drive must have ended.
#[derive(Debug, Args)]
pub struct DriveLimit {
    /// Time the whole run may take, from the start of the program: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", conflicts_with = "deadline")]
    pub budget: Option<String>,
    /// Moment by which the program must have ended (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<jiff::Timestamp>,
    /// Moment at which the budget began to run, if earlier than the program (RFC 3339).
    #[arg(long, value_name = "TIME", requires = "budget")]
    pub clock_start: Option<jiff::Timestamp>,
    /// Use all of the budget, even if the job's steps are done earlier.
    #[arg(long)]
    pub fill: bool,
    /// Time kept free before the end, in place of what the run works out: 2s.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub margin: Option<f64>,
}

/// Drives a trainer.
pub fn drive(args: &DriveArgs, clock: WallClock) -> anyhow::Result<()> {
    let stop = stop_signals()?;
    match &args.job {
        Some(job) => drive_job(args, job, clock, &stop),
        None => drive_command(args, clock, &stop),
    }
}

fn drive_job(args: &DriveArgs, job: &Path, clock: WallClock, stop: &AtomicBool) -> anyhow::Result<()> {
    let TrainerName::AiToolkit = args.trainer;
    let variable = |name: &str| std::env::var(name).ok();
    let job = ToolkitJob::read(job, args.name.as_deref(), &variable)?;
    let limited = limited(args, &job.wishes, clock)?;
    let deadline_s = deadline(&limited)?;
    let installation = Installation::find(args.trainer_dir.as_deref(), args.python.as_deref())
        .map_err(|text| anyhow::anyhow!(text))?;
    let options = Options {
        installation,
        clock: &limited.clock,
        deadline_s,
        deadline_is_moment: limited.is_moment,
        fill: args.limit.fill || job.wishes.fill,
        margin_s: margin(args, &job.wishes)?,
        start_over: args.start_over,
        stop,
    };
    with_hooks(args, &job.name, &limited, deadline_s, |show| Ok(tenggat_drive::drive(&job, &options, show)?))
}

fn drive_command(args: &DriveArgs, clock: WallClock, stop: &AtomicBool) -> anyhow::Result<()> {
    let pattern = args.saves.as_deref().unwrap_or_default();
    let saves = Pattern::new(pattern).map_err(|e| {
        anyhow::anyhow!("--saves {pattern}: {e}; write a path such as 'out/**/*.safetensors'")
    })?;
    let limited = limited(args, &Wishes::default(), clock)?;
    let deadline_s = deadline(&limited)?;
    let name = saves.base().display().to_string();
    let options = CommandOptions {
        command: args.command.clone(),
        saves,
        clock: &limited.clock,
        deadline_s,
        margin_s: args.limit.margin,
        stop,
    };
    with_hooks(args, &name, &limited, deadline_s, |show| Ok(tenggat_drive::follow(&options, show)?))
}

fn deadline(limited: &Limited) -> anyhow::Result<f64> {
    limited.deadline_s.context(
        "a drive needs a time to end; give --budget 2h, --deadline, or --max-cost with --price-per-hour (or `budget` in \
         the job's section `tenggat`)",
    )
}

/// Shows a drive, and tells those who asked to be told.
fn with_hooks(
    args: &DriveArgs,
    run: &str,
    limited: &Limited,
    deadline_s: f64,
    drive: impl FnOnce(&mut dyn FnMut(Event)) -> anyhow::Result<Driven>,
) -> anyhow::Result<()> {
    let mut hooks = Hooks::new(&args.hooks, run)?;
    hooks.tell(Moment::Started, None, "");
    let mut screen = Screen::new(Progress::new(&limited.clock, Some(deadline_s)));
    let driven = drive(&mut |event| {
        match &event {
            Event::Slowed(text) => hooks.tell(Moment::Slowed, None, text),
            Event::Saved { steps, .. } => hooks.tell(Moment::Saved, Some(*steps), ""),
            _ => {}
        }
        screen.show(event);
    });
    drop(screen);
    // The last message may take what is left of the time, and no more.
    let left_s = (deadline_s - limited.clock.now_s() - 0.05).clamp(0.0, 5.0);
    let wait = Duration::from_secs_f64(left_s);
    match &driven {
        Ok(driven) => {
            conclude(driven);
            if let Some(cost) = args.money.cost(limited.clock.now_s()) {
                say!("{:<14} {cost:.2}", "cost");
            }
            hooks.end(Some((driven.lora.as_path(), driven.steps)), &driven.ended, wait);
        }
        Err(error) => hooks.end(None, &error.to_string(), wait),
    }
    driven.map(drop)
}

fn conclude(driven: &Driven) {
    let Driven { lora, steps, ended, as_planned, .. } = driven;
    if *as_planned {
        say!("{:<14} {ended}", "ended");
    } else {
        warning!("{ended}");
    }
    say!("{:<14} {} ({steps} steps)", "LoRA", lora.display());
}

/// The deadline: what the flags say, else the job.
fn limited(args: &DriveArgs, wishes: &Wishes, clock: WallClock) -> anyhow::Result<Limited> {
    let budget_s = wishes.budget.as_deref().map(tenggat_plan::parse_duration_s).transpose();
    let moment = wishes.deadline.as_deref().map(str::parse::<jiff::Timestamp>).transpose();
    let mut limits = Limits {
        budget_s: budget_s.context("the job's `tenggat.budget`")?,
        deadline: moment.context("the job's `tenggat.deadline`")?,
        fill: wishes.fill,
        margin_s: None,
        memory_bytes: None,
        threads: None,
    };
    let DriveLimit { budget, deadline, clock_start, fill, margin } = &args.limit;
    let limit = Limit {
        budget: budget.clone(),
        deadline: *deadline,
        clock_start: *clock_start,
        fill: *fill,
        margin: *margin,
        memory_limit: None,
    };
    let mut limited = limit::resolve(&limit, clock, &mut limits)?;
    args.money.limit(&mut limited);
    Ok(limited)
}

fn margin(args: &DriveArgs, wishes: &Wishes) -> anyhow::Result<Option<f64>> {
    let written = wishes.margin.as_deref().map(tenggat_plan::parse_duration_s).transpose();
    Ok(args.limit.margin.or(written.context("the job's `tenggat.margin`")?))
}

/// A flag that the first Ctrl-C or SIGTERM sets; the second ends the process at once.
fn stop_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot listen to signals")?;
    }
    Ok(stop)
}

/// Shows a drive's news as `train` shows its own.
struct Screen {
    progress: Progress,
    smoothed: Option<f64>,
}

impl Screen {
    fn new(progress: Progress) -> Self {
        Screen { progress, smoothed: None }
    }

    fn show(&mut self, event: Event) {
        let told = match event {
            Event::PhaseStarted(phase) => run::Event::PhaseStarted(phase),
            Event::PhaseFinished { phase, seconds } => run::Event::PhaseFinished { phase, seconds },
            Event::Warning(text) | Event::Slowed(text) => run::Event::Warning(text),
            Event::Note(text) => return say!("{:<14} {text}", "note"),
            Event::Resumed { steps, spent_s, deadline_s } => {
                run::Event::Resumed { steps, spent_before_s: spent_s, deadline_s: Some(deadline_s) }
            }
            Event::Forecast(forecast) => run::Event::Forecast(forecast),
            Event::DeadlineMoved { deadline_s, by_s } => {
                run::Event::DeadlineMoved { deadline_s, by_s: Some(by_s) }
            }
            Event::Step(step) => run::Event::Step(self.step(&step)),
            Event::Saved { path, steps, .. } => run::Event::Saved { path, steps },
        };
        self.progress.show(told);
    }

    fn step(&mut self, step: &Step) -> run::Step {
        if let Some(loss) = step.loss {
            let old = self.smoothed.unwrap_or(loss);
            self.smoothed = Some(old + (loss - old) / SMOOTH_OVER);
        }
        run::Step {
            done: step.done,
            total: step.total,
            loss: step.loss.unwrap_or(f64::NAN),
            smoothed: self.smoothed.unwrap_or(f64::NAN),
            lr: step.lr.unwrap_or(f64::NAN),
            step_s: step.step_s,
            left_s: Some(step.left_s),
        }
    }
}
