//! The command line of `tenggat plan`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tenggat_plan::{Span, Trainer};

use crate::number::{MOST_RANK, MOST_STEPS, number, whole};

/// `tenggat plan`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct PlanArgs {
    #[command(subcommand)]
    pub what: Option<What>,
    #[command(flatten)]
    pub job: JobArgs,
}

/// What else there is to plan, or to look back at.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Measure how fast this machine's processor is, for plans to come (about 20 seconds).
    Calibrate(CalibrateArgs),
    /// Say what became, or would become, of a run with fixed steps in a fixed time.
    #[command(after_help = "\
Examples:
  tenggat plan explain --duration 2h --steps 1500 --s-per-step 4.5
  tenggat plan explain --duration 2h --steps 1500 --s-per-step 4..6 --overhead 5m
  tenggat plan explain --duration 2h --log output/my_run
  tenggat plan explain --duration 2h --log ai-toolkit.log")]
    Explain(ExplainArgs),
    /// Recommend a number of steps for a run that cannot measure its own speed.
    #[command(after_help = "Example:\n  tenggat plan steps --budget 3h --s-per-step 5..7")]
    Steps(StepsArgs),
}

/// A job and where it is to run.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// Job file.
    #[arg(required_unless_present = "calibrate")]
    pub job: Option<PathBuf>,
    /// GPU of the catalogue, `cpu`, or `all` (default: this machine's processor if it is calibrated and holds the
    /// job, else all).
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Time for everything, in place of the job's: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub budget: Option<f64>,
    /// Use all of the budget, even if the job's steps are done earlier.
    #[arg(long)]
    pub fill: bool,
    /// Whose time is predicted; `ai-toolkit` shows both, and reported times beside.
    #[arg(long, value_name = "TRAINER", default_value = "tenggat")]
    pub trainer: Trainer,
    /// Price of the machine per hour, for the price of the run.
    #[arg(long, value_name = "PRICE", allow_negative_numbers = true, value_parser = number(0.0, 1e6))]
    pub price_per_hour: Option<f64>,
    /// Device memory that may be used, in place of the job's: 24GB, 22.5GiB.
    #[arg(long, value_name = "MEMORY", value_parser = tenggat_plan::parse_bytes)]
    pub memory_limit: Option<f64>,
    /// Rank, in place of the job's.
    #[arg(long, value_parser = whole::<usize>(1, MOST_RANK as u64))]
    pub rank: Option<usize>,
    /// Steps, in place of the job's.
    #[arg(long, value_parser = whole::<u64>(1, MOST_STEPS))]
    pub steps: Option<u64>,
    /// Resolutions, in place of the job's: 1024, or 512,768,1024.
    #[arg(long, value_delimiter = ',', value_name = "PIXELS", value_parser = whole::<usize>(32, 8192))]
    pub resolution: Vec<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Calibrate first, as `tenggat plan calibrate` does.
    #[arg(long)]
    pub calibrate: bool,
}

/// `tenggat plan calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Time for it: 10s, 30s.
    #[arg(long, value_name = "DURATION", default_value = "18s", value_parser = tenggat_plan::parse_duration_s)]
    pub time: f64,
}

/// `tenggat plan explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Time that the run had: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub duration: f64,
    /// Steps asked for; a log may say it too.
    #[arg(long, required_unless_present = "log", value_parser = whole::<u64>(1, MOST_STEPS))]
    pub steps: Option<u64>,
    /// Seconds per step: 4.5, or 4..6 if it is not known exactly.
    #[arg(long, value_name = "SECONDS", required_unless_present = "log", conflicts_with = "log")]
    pub s_per_step: Option<Span>,
    /// Time beside the steps (loading, caching, saving), if the log does not say it: 5m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub overhead: Option<f64>,
    /// Log to read the speed from: a run folder, its metrics.jsonl, or what ai-toolkit printed.
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `tenggat plan steps`.
#[derive(Debug, Args)]
pub struct StepsArgs {
    /// Time for everything: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub budget: f64,
    /// Seconds per step: 4.5, or 4..6 if it is not known exactly.
    #[arg(long, value_name = "SECONDS")]
    pub s_per_step: Span,
    /// Time beside the steps: loading, caching, saving.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub overhead: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
