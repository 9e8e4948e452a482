//! What does time buy? Trains the mini model with several budgets in several ways and scores every LoRA on
//! pictures that it never saw, by the velocity error of the timed contest.
//!
//! ```sh
//! cargo build --release
//! cargo run --release -p tenggat-bench --bin budget_curve -- run curve.jsonl        # about an hour
//! cargo run --release -p tenggat-bench --bin budget_curve -- show curve.jsonl curve.png
//! ```
//!
//! `run` takes `--budgets 15,30` (seconds), `--ways 1,2` (lines of the table), `--threads 1`, `--share 1/2`
//! (every second run, for two at a time with half the threads each) and continues an existing file. `TENGGAT`
//! names the program.
#![allow(clippy::print_stdout, reason = "what it measured is its output")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tenggat_train::outcome::report::chart::{Chart, Series, save};
use zip::write::{SimpleFileOptions, ZipWriter};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long a way trains, and at which rate.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Length {
    /// A number of steps fixed beforehand, from the speed of the first steps and this share of the budget;
    /// constant rate.
    Fixed(f64),
    /// The budget rules, and the rate anneals.
    Budget,
    /// `tenggat task`: likewise, with a rate by the steps that fit, and pictures kept back to choose the
    /// best.
    Task,
}

/// One way of training.
#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    rank: u32,
    lr: f64,
    ema: bool,
    length: Length,
}

const fn way(name: &'static str, rank: u32, lr: f64, ema: bool, length: Length) -> Way {
    Way { name, rank, lr, ema, length }
}

/// Ours, and what differs from it.
const WAYS: [Way; 10] = [
    way("annealed over the budget", 16, 3e-4, true, Length::Budget),
    way("constant, fixed steps", 16, 3e-4, false, Length::Fixed(0.8)),
    way("constant, fixed steps, EMA", 16, 3e-4, true, Length::Fixed(0.8)),
    way("annealed, no EMA", 16, 3e-4, false, Length::Budget),
    way("annealed, rank 4", 4, 3e-4, true, Length::Budget),
    way("annealed, rank 64", 64, 3e-4, true, Length::Budget),
    way("annealed, rate 1e-4", 16, 1e-4, true, Length::Budget),
    way("annealed, rate 1e-3", 16, 1e-3, true, Length::Budget),
    way("constant, fixed, rate 1e-4", 16, 1e-4, false, Length::Fixed(0.8)),
    way("tenggat task", 0, 0.0, true, Length::Task),
];

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    way: String,
    budget_s: u64,
    seed: u64,
    threads: usize,
    steps: u64,
    took_s: f64,
    bare: Score,
    trained: Score,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Score {
    total: f64,
    captioned: f64,
    empty: f64,
}

impl Run {
    /// Change of the contest's score by the LoRA, percent.
    fn change(&self) -> f64 {
        100.0 * (self.trained.total / self.bare.total - 1.0)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn program() -> PathBuf {
    std::env::var_os("TENGGAT").map_or_else(|| root().join("target/release/tenggat"), PathBuf::from)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", file, flags @ ..] => run_all(Path::new(file), flags),
        ["show", file, picture] => show(Path::new(file), Path::new(picture)),
        _ => Err("expected `run FILE` or `show FILE PICTURE`".into()),
    }
}

fn run_all(file: &Path, flags: &[&str]) -> Result<()> {
    let flag = |name: &str| flags.iter().position(|f| *f == name).and_then(|i| flags.get(i + 1)).copied();
    let budgets: Vec<u64> = flag("--budgets")
        .unwrap_or("15,30,60,120,240")
        .split(',')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let threads: usize = match flag("--threads") {
        Some(n) => n.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };
    let (number, of) = flag("--share").unwrap_or("1/1").split_once('/').ok_or("--share: expected 1/2")?;
    let (number, of): (usize, usize) = (number.parse()?, of.parse()?);
    let seed: u64 = flag("--seed").unwrap_or("1").parse()?;
    let ways: Vec<usize> = match flag("--ways") {
        Some(list) => list.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?,
        None => (1..=WAYS.len()).collect(),
    };
    let done = read(file).unwrap_or_default();
    let bare = score(None, threads)?;
    let chosen = || ways.iter().filter_map(|&number| WAYS.get(number.checked_sub(1)?));
    let all = budgets.iter().flat_map(|&budget_s| chosen().map(move |way| (way, budget_s)));
    for (_, (way, budget_s)) in all.enumerate().filter(|(i, _)| i % of == number - 1) {
        if done.iter().any(|r| r.way == way.name && r.budget_s == budget_s && r.seed == seed) {
            continue;
        }
        let run = run(way, budget_s, seed, threads, bare)?;
        println!("{:<34} {budget_s:>4} s {:>5} steps {:+.2} %", way.name, run.steps, run.change());
        let mut out = OpenOptions::new().create(true).append(true).open(file)?;
        writeln!(out, "{}", serde_json::to_string(&run)?)?;
    }
    Ok(())
}

/// Trains and scores.
fn run(way: &Way, budget_s: u64, seed: u64, threads: usize, bare: Score) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let results = folder.path().join(if way.length == Length::Task { "out/t/run" } else { "run" });
    let mut began = Instant::now();
    match way.length {
        Length::Fixed(share) => {
            // The note's way: try a few steps, divide, leave a reserve, hope.
            let (few, many) = (5, 25);
            let time = |steps: u64| -> Result<f64> {
                let began = Instant::now();
                train(way, folder.path(), seed, threads, Some(steps), &[])?;
                Ok(began.elapsed().as_secs_f64())
            };
            let (few_s, many_s) = (time(few)?, time(many)?);
            let step_s = ((many_s - few_s) / (many - few) as f64).max(1e-4);
            let steps = ((share * budget_s as f64 - few_s) / step_s).max(1.0) as u64;
            began = Instant::now();
            train(way, folder.path(), seed, threads, Some(steps), &[])?;
        }
        Length::Budget => {
            let limit = ["--budget".to_owned(), format!("{budget_s}s")];
            train(way, folder.path(), seed, threads, None, &limit)?;
        }
        Length::Task => task(folder.path(), budget_s, threads)?,
    }
    let took_s = began.elapsed().as_secs_f64();
    let steps = fs::read_to_string(results.join("metrics.jsonl"))?.lines().count() as u64;
    let trained = score(Some(&results.join("last.safetensors")), threads)?;
    let way = way.name.to_owned();
    Ok(Run { way, budget_s, seed, threads, steps, took_s, bare, trained })
}

/// The error of a LoRA, or of the bare model.
fn score(lora: Option<&Path>, threads: usize) -> Result<Score> {
    let mut command = Command::new(program());
    command
        .args(["score", "--model", "mini", "--measure", "velocity", "--noises", "4", "--json"])
        .args(["--threads", &threads.to_string(), "--data"])
        .arg(root().join("assets/mini/demo-dataset/test"));
    if let Some(lora) = lora {
        command.arg("--lora-only").arg("--lora").arg(lora);
    }
    let report: serde_json::Value = serde_json::from_slice(&command.output()?.stdout)?;
    let who = if lora.is_some() { "trained" } else { "bare" };
    Ok(serde_json::from_value(report[who]["velocity"].clone())?)
}

fn train(
    way: &Way,
    folder: &Path,
    seed: u64,
    threads: usize,
    steps: Option<u64>,
    limit: &[String],
) -> Result<()> {
    let job = format!(
        "job: extension
config:
  name: run
  process:
    - type: sd_trainer
      training_folder: '{folder}'
      training_seed: {seed}
      network: {{type: lora, linear: {rank}, linear_alpha: {rank}}}
      save: {{dtype: bf16, save_every: 1000000}}
      datasets:
        - {{folder_path: '{data}', resolution: [128], caption_dropout_rate: 0.75, flip_x: true}}
      train:
        {steps}
        batch_size: 4
        lr: {lr}
        optimizer: adamw
        optimizer_params: {{weight_decay: 1e-4}}
        timestep_type: linear
        disable_sampling: true
        ema_config: {{use_ema: {ema}, ema_decay: 0.99}}
      model: {{name_or_path: mini, arch: qwen_image}}
      tenggat: {{resume: false}}
",
        folder = folder.display(),
        data = root().join("assets/mini/demo-dataset/train").display(),
        rank = way.rank,
        lr = way.lr,
        ema = way.ema,
        steps = steps.map_or("# as many steps as fit".into(), |n| format!("steps: {n}")),
    );
    let path = folder.join("job.yaml");
    fs::write(&path, job)?;
    finish(Command::new(program()).arg("train").arg(&path).args(limit), threads)
}

/// The contest's container on an archive of the same pictures.
fn task(folder: &Path, budget_s: u64, threads: usize) -> Result<()> {
    let path = folder.join("pictures.zip");
    let mut archive = ZipWriter::new(fs::File::create(&path)?);
    for entry in fs::read_dir(root().join("assets/mini/demo-dataset/train"))? {
        let picture = entry?.path();
        let name = picture.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.start_file(format!("train_data/{name}"), SimpleFileOptions::default())?;
        archive.write_all(&fs::read(picture)?)?;
    }
    archive.finish()?;
    let mut command = Command::new(program());
    command
        .args(["task", "--task-id", "t", "--model", "mini", "--model-type", "qwen-image"])
        .args(["--expected-repo-name", "run", "--hours-to-complete", &(budget_s as f64 / 3600.0).to_string()])
        .arg("--dataset-zip")
        .arg(&path);
    for (flag, part) in [("--cache-root", "cache"), ("--checkpoints-root", "out"), ("--work-root", "work")] {
        command.arg(flag).arg(folder.join(part));
    }
    finish(&mut command, threads)
}

fn finish(command: &mut Command, threads: usize) -> Result<()> {
    let output = command.args(["--threads", &threads.to_string()]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}

fn read(file: &Path) -> Result<Vec<Run>> {
    fs::read_to_string(file)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A table in Markdown, and the chart.
fn show(file: &Path, picture: &Path) -> Result<()> {
    let runs = read(file)?;
    let mut budgets: Vec<u64> = runs.iter().map(|r| r.budget_s).collect();
    budgets.sort_unstable();
    budgets.dedup();
    let mut table = String::from("| way |");
    budgets.iter().try_for_each(|s| write!(table, " {s} s |"))?;
    write!(table, "\n|---|{}\n", "---|".repeat(budgets.len()))?;
    let mut series = Vec::new();
    for way in WAYS {
        let mut at: BTreeMap<u64, Vec<&Run>> = BTreeMap::new();
        runs.iter().filter(|r| r.way == way.name).for_each(|r| at.entry(r.budget_s).or_default().push(r));
        if at.is_empty() {
            continue;
        }
        let mean = |runs: &Vec<&Run>, of: &dyn Fn(&Run) -> f64| {
            runs.iter().map(|r| of(r)).sum::<f64>() / runs.len() as f64
        };
        let cell = |runs: &Vec<&Run>| {
            format!("{:+.2} % ({:.0})", mean(runs, &Run::change), mean(runs, &|r| r.steps as f64))
        };
        let cells: Vec<String> = budgets.iter().map(|s| at.get(s).map_or("–".into(), cell)).collect();
        writeln!(table, "| {} | {} |", way.name, cells.join(" | "))?;
        let points = at.iter().map(|(&s, runs)| (s as f64, mean(runs, &Run::change))).collect();
        series.push(Series { name: way.name.into(), points });
    }
    print!("{table}");
    let marks = budgets.iter().map(|&s| (s as f64, format!("{s} s"))).collect();
    let title = "What does time buy? Mini model, 24 pictures";
    let axes = ["budget", "held-out velocity error against the bare model, %"];
    save(&Chart { title, axes, marks, series: &series }, picture)?;
    Ok(())
}
