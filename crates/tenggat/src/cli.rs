//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::{
    BenchArgs, CheckArgs, DoctorArgs, DriveArgs, ExtendArgs, InitArgs, PlanArgs, PlotArgs, QuantiseArgs,
    QueueArgs, ScoreArgs, ServeArgs, StatusArgs, TaskArgs, WatchArgs,
};
use crate::device;
use crate::events;
use crate::limit::Limit;
use crate::number::{MOST_RANK, MOST_SAMPLER_STEPS, MOST_THREADS, learning_rate, number, whole};
use crate::terms::Terms;

/// Exit codes, shown under `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  done: the LoRA is on disk, whole (also after an interrupt, which first saves what was trained)
  1  failed: the message says what is wrong, where, and what to do
  2  the command line was not understood";

/// Trains Qwen-Image LoRAs inside a wall-clock budget.
#[derive(Debug, Parser)]
#[command(name = "tenggat", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Threads to compute with (default: all cores, or RAYON_NUM_THREADS).
    #[arg(long, global = true, value_name = "N", value_parser = whole::<usize>(1, MOST_THREADS as u64))]
    pub threads: Option<usize>,
    /// Device: auto (a GPU if there is one), cpu, cuda, or cuda:1 for the second GPU.
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub device: device::Choice,
    /// More messages on standard error; twice for even more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print only warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a LoRA on the built-in mini model and its 24 images, and show what it learnt.
    #[command(after_help = "\
Examples:
  tenggat demo
  tenggat demo --budget 20s
  tenggat demo --budget 5m --out my-demo --seed 7")]
    Demo(Demo),
    /// Train the LoRA that a job file describes (ai-toolkit's YAML or JSON).
    #[command(after_help = "\
Examples:
  tenggat train my_job.yaml --budget 2h
  tenggat train my_job.yaml --deadline 07:00
  tenggat train my_job.yaml --name second_try
  tenggat train my_job.yaml --max-cost 5 --price-per-hour 2.49 --then 'runpodctl stop pod $RUNPOD_POD_ID'

The same command again resumes an interrupted run, or continues a finished one if the job now has more steps or time. If
the job changed in a way that changes the result, training starts over, and the old results are moved aside.

Signals:
  SIGINT (Ctrl-C), SIGTERM           save what was trained and end, within seconds; the second one ends at once
  SIGXCPU                            save what was trained and end
  SIGHUP (the terminal was closed)   with a budget or a deadline: train on until then; else save and end
  SIGUSR1                            save now and continue")]
    Train(Train),
    /// Keep another trainer inside a budget: ai-toolkit with any of its architectures, or any other program.
    #[command(after_help = "\
The trainer is asked to save and to stop in time. The newest whole LoRA is always `last.safetensors` in the run's folder.

Examples:
  tenggat drive my_job.yaml --budget 2h
  tenggat drive my_job.yaml --budget 2h --trainer-dir ~/ai-toolkit --python ~/ai-toolkit/venv/bin/python
  tenggat drive my_job.yaml --max-cost 5 --price-per-hour 2.49 --then 'runpodctl stop pod $RUNPOD_POD_ID'
  tenggat drive --budget 3h --saves 'out/**/*.safetensors' -- accelerate launch train.py --max_train_steps 4000

Signals:
  SIGINT (Ctrl-C), SIGTERM           have the trainer save, and end; the second one ends at once
  SIGXCPU                            have the trainer save, and end
  SIGHUP (the terminal was closed)   nothing: the deadline is the end
  SIGUSR1                            have the trainer save now and continue (ai-toolkit)")]
    Drive(DriveArgs),
    /// Check a job without running it: data sets, images, model, plan.
    #[command(after_help = "\
The exit code is 0 if `tenggat train` can run the job; images that are left out are warnings.

Example:
  tenggat check my_job.yaml")]
    Check(CheckArgs),
    /// Write a commented job for a folder of images.
    #[command(after_help = "\
Examples:
  tenggat init pictures
  tenggat init pictures --held-out 4
  tenggat init pictures --name my_dog --trigger d0g --model mini --out dog.yaml")]
    Init(InitArgs),
    /// Generate images with a model and, if given, a LoRA.
    #[command(after_help = "\
Examples:
  tenggat sample --model mini --prompt 'fox, twemoji style' --out fox.png
  tenggat sample --lora output/my_run
  tenggat sample --model Qwen/Qwen-Image --lora my_lora.safetensors --prompt 'a fox' --steps 20 --guidance 4")]
    Sample(Sample),
    /// Measure a LoRA on test images as the timed contest does, against the bare model.
    #[command(after_help = "\
Examples:
  tenggat score --lora output/my_run --data test --measure velocity
  tenggat score --model Qwen/Qwen-Image --lora my_lora.safetensors --data test --json")]
    Score(ScoreArgs),
    /// Run a task of the timed contest: an archive of images in, `last.safetensors` out before time is up.
    #[command(after_help = "\
The exit code is 0 once there is a LoRA, whatever goes wrong later.

SIGTERM and SIGINT (Ctrl-C) save what was trained and end, within seconds; the second one ends at once. SIGHUP (the
terminal was closed) changes nothing: the hours are the end. SIGUSR1 saves now and continues.

Examples:
  tenggat task --task-id t1 --model Qwen/Qwen-Image --dataset-zip t1.zip --model-type qwen-image \\
    --expected-repo-name my-lora --hours-to-complete 1.5
  tenggat task --rehearse --task-id t1 --model krea/Krea-2-Raw --dataset-zip t1.zip --model-type krea2 \\
    --expected-repo-name my-lora --hours-to-complete 1")]
    Task(TaskArgs),
    /// Forecast what a job takes in time, memory and money; calibrate; look back at a run.
    #[command(after_help = "\
Examples:
  tenggat plan my_job.yaml
  tenggat plan my_job.yaml --gpu h100-sxm --budget 2h --price-per-hour 2.50
  tenggat plan my_job.yaml --trainer ai-toolkit
  tenggat plan calibrate")]
    Plan(PlanArgs),
    /// Show the runs in a folder: state, steps, end, deadline, LoRA.
    #[command(after_help = "\
Only files are read: a run may be under way in another terminal, or have ended long ago. `drive`'s and ai-toolkit's runs
are shown as well.

Examples:
  tenggat status
  tenggat status output --json
  ssh gpu-box tenggat status")]
    Status(StatusArgs),
    /// Show the runs in a folder on a page in the browser, live.
    #[command(after_help = "\
The page is served to this machine alone and works offline. Two addresses are printed: the second has a token with which
the page can also ask a run to save, to generate samples, to stop, or to move its deadline.

Examples:
  tenggat serve
  tenggat serve output --port 9000
  tenggat serve --run-queue
  ssh -L 8675:localhost:8675 gpu-box tenggat serve")]
    Serve(ServeArgs),
    /// Watch the runs in a folder, or one of them, until Ctrl-C.
    #[command(after_help = "\
Examples:
  tenggat watch
  tenggat watch output/my_run
  tenggat watch output --json")]
    Watch(WatchArgs),
    /// Draw loss, time per step and budget of runs into one picture.
    #[command(after_help = "\
Examples:
  tenggat plot output/my_run
  tenggat plot output/first output/second --out compared.png")]
    Plot(PlotArgs),
    /// Move the deadline of a running run.
    #[command(after_help = "\
Examples:
  tenggat extend output/my_run +30m
  tenggat extend output/my_run -10m
  tenggat extend output/my_run 07:00")]
    Extend(ExtendArgs),
    /// Run jobs one after another, and share a deadline among them.
    #[command(after_help = "\
The queue is one for each user, in ~/.local/state/tenggat/queue or the folder that TENGGAT_QUEUE names. It survives kills
and reboots: `queue run` finds the runs that were under way and resumes them.

Examples:
  tenggat queue add fox.yaml bell.yaml drum.yaml --by 07:00
  tenggat queue add fox.yaml --budget 2h
  tenggat --device cuda:1 queue add fox.yaml
  tenggat queue run
  tenggat queue move 7 first
  tenggat queue cancel 7")]
    Queue(QueueArgs),
    /// Quantise a model before the runs that use it.
    #[command(after_help = "\
Examples:
  tenggat quantise Qwen/Qwen-Image --qtype qfloat8
  tenggat quantise models/Qwen-Image --qtype 'uint3|adapters/qwen_image_uint3.safetensors'")]
    Quantise(QuantiseArgs),
    /// Measure the time and memory that work takes on this machine.
    Bench(BenchArgs),
    /// Show version, processor, memory and caches, and what is missing; or check that the GPU computes
    /// correctly.
    #[command(after_help = "\
Examples:
  tenggat doctor
  tenggat doctor --gpu
  tenggat --device cuda:1 doctor --gpu --json > gpu.json")]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  tenggat completions bash > /etc/bash_completion.d/tenggat")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Time the whole demo may take: 20s, 120s, 5m.
    #[arg(long, value_name = "DURATION", default_value = "120s")]
    pub budget: String,
    /// Folder of the results.
    #[arg(long, value_name = "FOLDER", default_value = "tenggat-demo")]
    pub out: PathBuf,
    /// Seed of everything random.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true, value_parser = learning_rate)]
    pub lr: Option<f64>,
    /// Rank of the LoRA.
    #[arg(long, value_parser = whole::<usize>(1, MOST_RANK as u64))]
    pub rank: Option<usize>,
    /// Print the events of the run to standard output, for programs; text for people goes to standard error.
    #[arg(long, value_name = "FORMAT")]
    pub events: Option<events::Format>,
}

#[derive(Debug, Args)]
pub struct Train {
    /// Job file.
    pub job: PathBuf,
    #[command(flatten)]
    pub limit: Limit,
    /// Name of the run, in place of the job's (`[name]` in the job).
    #[arg(short, long)]
    pub name: Option<String>,
    /// Train from scratch: earlier results are moved aside instead of being resumed.
    #[arg(long)]
    pub start_over: bool,
    /// Show this run and those beside it on a page in the browser; 0 for any free port.
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "8675")]
    pub serve: Option<u16>,
    /// Folder of held-out pictures with captions, scored before and after training.
    #[arg(long, value_name = "FOLDER")]
    pub held_out: Option<PathBuf>,
    #[command(flatten)]
    pub terms: Terms,
    /// Print the events of the run to standard output, for programs; text for people goes to standard error.
    #[arg(long, value_name = "FORMAT")]
    pub events: Option<events::Format>,
}

#[derive(Debug, Args)]
pub struct Sample {
    /// Model folder, hub id, or `mini` for the built-in model (default: that of the LoRA's run).
    #[arg(long)]
    pub model: Option<String>,
    /// LoRA file, or the folder of a run.
    #[arg(long, value_name = "PATH")]
    pub lora: Option<PathBuf>,
    /// Strength of the LoRA.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true, value_parser = number(-100.0, 100.0))]
    pub strength: f64,
    /// Prompt; give several times for several pictures (default: the sample prompts of the LoRA's run).
    #[arg(long)]
    pub prompt: Vec<String>,
    /// Negative prompt; used if the guidance is above 1.
    #[arg(long, default_value = " ")]
    pub negative: String,
    /// Width and height in pixels, rounded down to multiples of 16 (default: those of the run's samples, else
    /// 1024x1024; 128x128 for `mini`).
    #[arg(long, value_name = "WxH")]
    pub size: Option<String>,
    /// Steps of the sampler.
    #[arg(long, default_value_t = 20, value_parser = whole::<usize>(1, MOST_SAMPLER_STEPS as u64))]
    pub steps: usize,
    /// Classifier-free guidance; 1 turns it off and halves the time.
    #[arg(long, default_value_t = 4.0, allow_negative_numbers = true, value_parser = number(0.0, 100.0))]
    pub guidance: f64,
    /// Seed of the noise; pictures after the first use the numbers after it.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Picture file; several pictures get -1, -2, … before the extension.
    #[arg(long, value_name = "FILE", default_value = "sample.png")]
    pub out: PathBuf,
}
