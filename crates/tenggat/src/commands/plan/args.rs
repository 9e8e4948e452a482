//! The command line of `tenggat plan`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tenggat_plan::{Program, Span, Targets};

use crate::number::{MOST_RANK, MOST_STEPS, whole};

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
    /// Measure this machine's processor, for later plans (about 20 seconds).
    Calibrate(CalibrateArgs),
    /// Choose a card to rent: which finish in time, at what price, and why the others do not.
    #[command(after_help = "\
Examples:
  tenggat plan choose my_job.yaml --deadline 3h --max-cost 6
  tenggat plan choose my_job.yaml --deadline 3h --trainer ai-toolkit --prices my_prices.csv
  tenggat plan choose --model krea2 --steps 2000 --deadline 2h --trainer ai-toolkit")]
    Choose(ChooseArgs),
    /// Store the speed that logs show, for later plans of the same card, job and program.
    #[command(after_help = "\
Examples:
  tenggat plan learn output/my_run --gpu 4090
  tenggat plan learn ai-toolkit.log --gpu 4090 --job my_job.yaml
  tenggat plan learn musubi.log --gpu 5090 --resolution 1328 --rank 64 --precision float8")]
    Learn(LearnArgs),
    /// Compare forecasts with public reports, or with a table of your own.
    Reports(ReportsArgs),
    /// Explain what happened, or would happen, to a run with fixed steps in a fixed time.
    #[command(after_help = "\
Examples:
  tenggat plan explain --duration 2h --steps 1500 --s-per-step 4.5
  tenggat plan explain --duration 2h --steps 1500 --s-per-step 4..6 --overhead 5m
  tenggat plan explain --duration 2h --log output/my_run
  tenggat plan explain --duration 2h --log ai-toolkit.log")]
    Explain(ExplainArgs),
    /// Recommend a number of steps for a run that cannot measure its own speed.
    #[command(after_help = "\
Examples:
  tenggat plan steps --budget 3h --s-per-step 5..7
  tenggat plan steps --budget 3h --job my_job.yaml --trainer ai-toolkit --gpu 4090")]
    Steps(StepsArgs),
}

/// What is trained, in place of what a job file says, or without one.
#[derive(Debug, Clone, Default, Args)]
pub struct ShapeArgs {
    /// Model, in place of the job's: qwen-image, flux1-dev, flux2-klein-9b, krea2, z-image, ...
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Rank, in place of the job's.
    #[arg(long, value_parser = whole::<u64>(1, MOST_RANK as u64))]
    pub rank: Option<u64>,
    /// Steps, in place of the job's.
    #[arg(long, value_parser = whole::<u64>(1, MOST_STEPS))]
    pub steps: Option<u64>,
    /// Pictures per step, in place of the job's.
    #[arg(long, value_name = "PICTURES", value_parser = whole::<u64>(1, 65_536))]
    pub batch: Option<u64>,
    /// Batches per step, in place of the job's.
    #[arg(long, value_name = "BATCHES", value_parser = whole::<u64>(1, 65_536))]
    pub accumulation: Option<u64>,
    /// Resolutions, in place of the job's: 1024, or 512,768,1024, or 832x576.
    #[arg(long, value_delimiter = ',', value_name = "PIXELS", value_parser = size)]
    pub resolution: Vec<[u64; 2]>,
    /// Storage of the frozen weights, in place of the job's: bf16, float8, int8, nf4, uint2 to uint7.
    #[arg(long, value_name = "TYPE")]
    pub precision: Option<tenggat_plan::Precision>,
    /// Control images of each picture, as large as the picture; edit models take them.
    #[arg(long, value_name = "IMAGES", value_parser = whole::<usize>(0, 16))]
    pub controls: Option<usize>,
    /// Layers that other programs train: all, attention-and-mlp, attention or image-attention.
    #[arg(long, value_name = "LAYERS")]
    pub targets: Option<Targets>,
    /// Other programs compile the model (`torch.compile`).
    #[arg(long)]
    pub compile: bool,
    /// Other programs keep all activations.
    #[arg(long)]
    pub no_checkpointing: bool,
    /// Blocks that other programs fetch from the host for every pass.
    #[arg(long, value_name = "BLOCKS")]
    pub swap: Option<u64>,
    /// The machine runs Windows.
    #[arg(long)]
    pub windows: bool,
}

/// A job and where it is to run.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// Job file; not needed with --model.
    #[arg(required_unless_present_any = ["calibrate", "model"])]
    pub job: Option<PathBuf>,
    /// GPUs of the catalogue, `cpu`, or `all`; or a card by its numbers, `name=my
    /// card,tflops=91,gb=48,bandwidth=864` (default: this machine's processor if it is calibrated and holds
    /// the job, else all).
    #[arg(long, value_name = "NAMES")]
    pub gpu: Option<String>,
    /// Time for everything, in place of the job's: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub budget: Option<f64>,
    /// Use the whole budget, even if the job's steps are done earlier.
    #[arg(long)]
    pub fill: bool,
    /// Whose time is predicted: tenggat, ai-toolkit, musubi-tuner, onetrainer, simpletuner, diffusers, ...;
    /// a version may follow, as in ai-toolkit@0.11. Other programs are shown beside tenggat if it trains
    /// the model.
    #[arg(long, value_name = "TRAINER", default_value = "tenggat")]
    pub trainer: Program,
    /// Price of the machine per hour, to price the run.
    #[arg(long, value_name = "PRICE", value_parser = price, allow_hyphen_values = true)]
    pub price_per_hour: Option<f64>,
    /// Device memory that may be used, in place of the job's: 24GB, 22.5GiB.
    #[arg(long, value_name = "MEMORY", value_parser = tenggat_plan::parse_bytes)]
    pub memory_limit: Option<f64>,
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Print JSON, described in docs/plan-json.md.
    #[arg(long)]
    pub json: bool,
    /// Calibrate first, as `tenggat plan calibrate` does.
    #[arg(long)]
    pub calibrate: bool,
}

/// A price, or a sum of money.
/// Width and height: `832x576`, or one number for a square.
fn size(text: &str) -> Result<[u64; 2], String> {
    let (width, height) = text.split_once(['x', '×']).unwrap_or((text, text));
    match (width.trim().parse(), height.trim().parse()) {
        (Ok(width), Ok(height)) if [width, height].iter().all(|side| (32..=8192).contains(side)) => {
            Ok([width, height])
        }
        _ => Err("expected 32 to 8192 pixels, such as 1024 or 832x576".into()),
    }
}

fn price(text: &str) -> Result<f64, String> {
    let value: f64 =
        text.trim().trim_start_matches('$').parse().map_err(|_| "expected a number".to_owned())?;
    if value > 0.0 && value < 1e6 { Ok(value) } else { Err("expected more than 0".to_owned()) }
}

/// `tenggat plan choose`.
#[derive(Debug, Args)]
pub struct ChooseArgs {
    /// Job file; not needed with --model.
    #[arg(required_unless_present = "model")]
    pub job: Option<PathBuf>,
    /// Time from renting the card to the finished LoRA: 90m, 3h.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub deadline: f64,
    /// Most that may be spent, in US dollars.
    #[arg(long, value_name = "USD", value_parser = price, allow_hyphen_values = true)]
    pub max_cost: Option<f64>,
    /// Prices in place of the built-in ones: a file of lines `provider,gpu,usd_per_hour` with that heading.
    #[arg(long, value_name = "FILE")]
    pub prices: Option<PathBuf>,
    /// Who trains.
    #[arg(long, value_name = "TRAINER", default_value = "tenggat")]
    pub trainer: Program,
    /// Take the job as it is: try no coarser weights, lower rank, smaller images or fewer steps.
    #[arg(long)]
    pub as_is: bool,
    /// Download speed of the machine, for fetching the model.
    #[arg(long, value_name = "MB_PER_S", default_value_t = 100.0)]
    pub download: f64,
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Print JSON, described in docs/plan-json.md.
    #[arg(long)]
    pub json: bool,
}

/// `tenggat plan learn`.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// Logs: run folders of tenggat, what ai-toolkit, musubi-tuner or another program printed.
    #[arg(required = true, value_name = "LOG|RUN")]
    pub logs: Vec<PathBuf>,
    /// Card that they ran on, or `cpu` for this machine's processor.
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Program that ran, with its version if known: ai-toolkit@0.12.26 (default: recognised from the log).
    #[arg(long, value_name = "TRAINER")]
    pub trainer: Option<String>,
    /// Job that was run (default: the config.yaml beside the log).
    #[arg(long, value_name = "JOB")]
    pub job: Option<PathBuf>,
    #[command(flatten)]
    pub shape: ShapeArgs,
}

/// `tenggat plan reports`.
#[derive(Debug, Args)]
pub struct ReportsArgs {
    /// A table with the columns of crates/tenggat-plan/data/reports.csv (default: that table).
    pub file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
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
    /// Steps that the run was to take; a log may say it too.
    #[arg(long, required_unless_present = "log", value_parser = whole::<u64>(1, MOST_STEPS))]
    pub steps: Option<u64>,
    /// Seconds per step: 4.5, or 4..6 if it is not known exactly.
    #[arg(long, value_name = "SECONDS", required_unless_present = "log", conflicts_with = "log")]
    pub s_per_step: Option<Span>,
    /// Time for everything but steps (loading, caching, saving), if the log does not say it: 5m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub overhead: Option<f64>,
    /// Log to read the speed from: a run folder, its metrics.jsonl, or what ai-toolkit or another program
    /// printed.
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
    #[arg(long, value_name = "SECONDS", required_unless_present = "job", conflicts_with = "job")]
    pub s_per_step: Option<Span>,
    /// Time for everything but steps: loading, caching, saving (default with --job: as planned).
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub overhead: Option<f64>,
    /// Job whose plan gives the seconds per step, as the range that `tenggat plan` prints.
    #[arg(long, value_name = "JOB", requires = "gpu")]
    pub job: Option<PathBuf>,
    /// Card of that plan.
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Program of that plan.
    #[arg(long, value_name = "TRAINER", default_value = "ai-toolkit")]
    pub trainer: Program,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
