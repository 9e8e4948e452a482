//! `tenggat drive`: another trainer inside a budget.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use tenggat_drive::{
    CommandOptions, Driven, Event, Installation, Options, OtherJob, Pattern, Step, ToolkitJob, Wishes,
};
use tenggat_plan::WallClock;
use tenggat_train::job::{Limits, parse_local_moment, parse_past_moment};
use tenggat_train::run;

use super::best::{self, Until};
use super::train::name_before;
use crate::device::Choice;
use crate::events::News;
use crate::hooks::{Hooks, Moment, Outcome, hooked};
use crate::limit::{self, Limit, Limited};
use crate::output::{say, warning};
use crate::progress::Progress;
use crate::terms::Terms;
use crate::when::plural;

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
    /// Train from scratch: earlier results are moved aside instead of being resumed.
    #[arg(long)]
    pub start_over: bool,
    #[command(flatten)]
    pub terms: Terms,
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
    /// Time by which the program must have ended: 18:00, '2026-12-01 18:00' (both of this machine's time
    /// zone), or with a zone 2026-12-01T18:00:00+07:00.
    #[arg(long, value_name = "TIME", value_parser = parse_local_moment)]
    pub deadline: Option<jiff::Timestamp>,
    /// When the budget began to run, if before the program started; written as for --deadline.
    #[arg(long, value_name = "TIME", requires = "budget", value_parser = parse_past_moment)]
    pub clock_start: Option<jiff::Timestamp>,
    /// Use the whole budget, even if the job's steps are done earlier.
    #[arg(long)]
    pub fill: bool,
    /// Time kept free before the end; normally worked out by the run; for example 2s.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub margin: Option<f64>,
}

/// Drives a trainer.
pub fn drive(args: &DriveArgs, clock: WallClock, device: Choice) -> anyhow::Result<()> {
    let signals = listen()?;
    let named = match (&args.job, &args.saves) {
        (Some(job), _) => name_before(args.name.as_deref(), job),
        (None, saves) => saves.clone().unwrap_or_default(),
    };
    let body = |hooks: &mut Hooks| {
        let driven = match &args.job {
            Some(job) => drive_job(args, job, clock, &signals, (device, hooks))?,
            None => drive_command(args, clock, &signals.stop, hooks)?,
        };
        conclude(&driven);
        Ok(driven)
    };
    hooked(&args.terms, &named, clock, body, outcome).map(drop)
}

fn drive_job(
    args: &DriveArgs,
    job: &Path,
    clock: WallClock,
    signals: &Signals,
    (device, hooks): (Choice, &mut Hooks),
) -> anyhow::Result<Driven> {
    let TrainerName::AiToolkit = args.trainer;
    let variable = |name: &str| std::env::var(name).ok();
    let job = ToolkitJob::read(job, args.name.as_deref(), &variable)?;
    let limited = limited(args, &job.wishes, clock)?;
    let deadline_s = deadline(&limited)?;
    let installation = Installation::find(args.trainer_dir.as_deref(), args.python.as_deref())
        .map_err(|text| anyhow::anyhow!(text))?;
    let choosing = best::choosing(&job, deadline_s)?;
    let reserve_s = choosing.as_ref().map_or(0.0, |choosing| choosing.reserve_s);
    let options = Options {
        installation,
        clock: &limited.clock,
        deadline_s: deadline_s - reserve_s,
        deadline_is_moment: limited.is_moment,
        fill: args.limit.fill || job.wishes.fill,
        margin_s: margin(args, &job.wishes)?,
        start_over: args.start_over,
        other_job: OtherJob::MoveAside,
        model: None,
        stop: &signals.stop,
        save: Some(&signals.save),
    };
    let told = Told { program: "drive", folder: &job.folder, limited: &limited, stop: &signals.stop };
    hooks.begin(&job.name, limited.clock, limited.deadline_s);
    shown(&told, hooks, |show| {
        // The deadline on the clock of this process, which the one that resumes is ahead of.
        let mut until = Until { clock: limited.clock, deadline_s, stop: &signals.stop };
        let driven = tenggat_drive::drive(&job, &options, &mut |mut event| {
            // What is told is the deadline of it all, not that of the training alone.
            match &mut event {
                Event::DeadlineMoved { by_s, deadline_s } => {
                    until.deadline_s += *by_s;
                    *deadline_s += reserve_s;
                }
                Event::Resumed { spent_before_s, deadline_s, .. } => {
                    until.deadline_s -= *spent_before_s;
                    *deadline_s += reserve_s;
                }
                _ => {}
            }
            show(event);
        })?;
        let ended_early = signals.stop.load(Ordering::Relaxed) || driven.sessions == 0;
        Ok(match choosing.filter(|_| !ended_early) {
            Some(choosing) => choosing.deliver(&job, driven, until, device),
            None => driven,
        })
    })
}

fn drive_command(
    args: &DriveArgs,
    clock: WallClock,
    stop: &AtomicBool,
    hooks: &mut Hooks,
) -> anyhow::Result<Driven> {
    let pattern = args.saves.as_deref().unwrap_or_default();
    let saves = Pattern::new(pattern).map_err(|e| {
        anyhow::anyhow!("--saves {pattern}: {e}; write a path such as 'out/**/*.safetensors'")
    })?;
    let limited = limited(args, &Wishes::default(), clock)?;
    let deadline_s = deadline(&limited)?;
    let (name, folder) = (saves.base().display().to_string(), saves.base().to_path_buf());
    let options = CommandOptions {
        command: args.command.clone(),
        saves,
        clock: &limited.clock,
        deadline_s,
        margin_s: args.limit.margin,
        stop,
    };
    let told = Told { program: "drive", folder: &folder, limited: &limited, stop };
    hooks.begin(&name, limited.clock, limited.deadline_s);
    shown(&told, hooks, |show| Ok(tenggat_drive::follow(&options, show)?))
}

fn deadline(limited: &Limited) -> anyhow::Result<f64> {
    limited.deadline_s.context(
        "a drive needs a time to end; give --budget 2h, --deadline, or --max-cost with --price-per-hour (or \
         `budget` in the job's section `tenggat`)",
    )
}

/// A drive that is shown.
pub struct Told<'a> {
    /// The command.
    pub program: &'static str,
    /// The folder of the run.
    pub folder: &'a Path,
    pub limited: &'a Limited,
    /// Whether the end was asked for.
    pub stop: &'a AtomicBool,
}

/// Shows the news of a drive, keeps them in the folder of the run, and passes them on to hooks.
pub fn shown(
    told: &Told<'_>,
    hooks: &mut Hooks,
    drive: impl FnOnce(&mut dyn FnMut(Event)) -> anyhow::Result<Driven>,
) -> anyhow::Result<Driven> {
    let &Told { program, folder, limited, stop } = told;
    let news = News::new(limited.clock, None, folder, program, limited.deadline_s);
    let mut screen = Screen::new(Progress::new(&limited.clock, limited.deadline_s), news);
    let driven = drive(&mut |event| {
        match &event {
            Event::Slowed(text) => hooks.tell(Moment::Slowed, None, text),
            Event::Saved { path, steps, .. } => hooks.saved(path, *steps),
            Event::Resumed { spent_before_s, deadline_s, .. } => {
                hooks.resumed(*spent_before_s, Some(*deadline_s));
            }
            Event::DeadlineMoved { deadline_s, .. } => hooks.moved(*deadline_s),
            _ => {}
        }
        screen.show(event);
    });
    match &driven {
        Ok(driven) => {
            screen.news.end(if stop.load(Ordering::Relaxed) { "stopped" } else { "done" }, driven.steps);
        }
        Err(error) => screen.news.fail(folder, error),
    }
    driven
}

/// What hooks are told of the end of a drive.
fn outcome(driven: &Driven) -> Outcome {
    Outcome { lora: Some((driven.lora.clone(), driven.steps)), ended: driven.ended.clone() }
}

pub fn conclude(driven: &Driven) {
    let Driven { lora, steps, ended, as_planned, .. } = driven;
    if *as_planned {
        say!("{:<14} {ended}", "ended");
    } else {
        warning!("{ended}");
    }
    say!("{:<14} {} ({})", "LoRA", lora.display(), plural(*steps, "step"));
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
    args.terms.money.limit(&mut limited);
    Ok(limited)
}

fn margin(args: &DriveArgs, wishes: &Wishes) -> anyhow::Result<Option<f64>> {
    let written = wishes.margin.as_deref().map(tenggat_plan::parse_duration_s).transpose();
    Ok(args.limit.margin.or(written.context("the job's `tenggat.margin`")?))
}

/// What signals ask of a drive.
pub struct Signals {
    /// Save and end.
    pub stop: Arc<AtomicBool>,
    /// Save and go on.
    pub save: Arc<AtomicBool>,
}

/// Listens from now on: the first Ctrl-C, SIGTERM or SIGXCPU asks for the end, and the second of the first
/// two ends the process at once; SIGUSR1 asks for a save. A terminal that closes changes nothing: a drive has
/// a deadline.
///
/// # Errors
/// The system allows no handlers.
pub fn listen() -> anyhow::Result<Signals> {
    let signals = Signals { stop: Arc::default(), save: Arc::default() };
    // A flag of its own: the page and SIGXCPU ask for the end, too, and the first interrupt after that is no
    // second one.
    let again = Arc::new(AtomicBool::new(false));
    let ask = |signal, flag: &Arc<AtomicBool>| signal_hook::flag::register(signal, Arc::clone(flag));
    let register = || {
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&again))?;
            ask(signal, &again)?;
            ask(signal, &signals.stop)?;
        }
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGHUP, SIGUSR1, SIGXCPU};
            ask(SIGXCPU, &signals.stop)?;
            ask(SIGUSR1, &signals.save)?;
            if !crate::process::ignores(SIGHUP) {
                ask(SIGHUP, &Arc::default())?;
            }
        }
        std::io::Result::Ok(())
    };
    register().context("cannot install the signal handlers")?;
    Ok(signals)
}

/// Shows a drive's news as `train` shows its own.
struct Screen {
    progress: Progress,
    news: News,
    smoothed: Option<f64>,
    /// The end on the run's clock, as forecast.
    end_s: Option<f64>,
}

impl Screen {
    fn new(progress: Progress, news: News) -> Self {
        Screen { progress, news, smoothed: None, end_s: None }
    }

    fn show(&mut self, event: Event) {
        let told = match event {
            Event::PhaseStarted(phase) => run::Event::PhaseStarted(phase),
            Event::PhaseFinished { phase, seconds } => run::Event::PhaseFinished { phase, seconds },
            Event::Warning(text) | Event::Slowed(text) => run::Event::Warning(text),
            Event::Note(text) => {
                self.news.note(&text);
                return say!("{:<14} {text}", "note");
            }
            Event::Resumed { steps, spent_before_s, deadline_s } => {
                run::Event::Resumed { steps, spent_before_s, deadline_s: Some(deadline_s) }
            }
            Event::Forecast(forecast) => {
                self.end_s = forecast.end_s;
                run::Event::Forecast(forecast)
            }
            Event::DeadlineMoved { deadline_s, by_s } => {
                run::Event::DeadlineMoved { deadline_s, by_s: Some(by_s) }
            }
            Event::Step(step) => run::Event::Step(self.step(&step)),
            Event::Saved { path, steps, .. } => run::Event::Saved { path, steps },
        };
        self.news.tell(&told);
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
            end_s: self.end_s,
        }
    }
}
