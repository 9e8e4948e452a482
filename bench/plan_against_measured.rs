//! Predicted against measured seconds per step: calibrates this processor and measures twelve training steps
//! that the calibration has not seen (three model sizes, two resolutions, two ranks) and prints both.
//!
//! ```sh
//! cargo run --release -p tenggat-bench --bin plan_against_measured
//! RAYON_NUM_THREADS=1 cargo run --release -p tenggat-bench --bin plan_against_measured -- --processor-time
//! ```
//!
//! Calibration and measurement alternate five times, and the medians are compared. On a machine with other
//! things to do, wall-clock time is as much theirs as ours; `--processor-time` with one thread counts only
//! what this process used (Linux).
#![allow(clippy::print_stdout, reason = "what it measured is its output")]

use std::fs;

use tenggat_plan::{Clock, Machine, WallClock};
use tenggat_tensor::Device;
use tenggat_train::plan::calibrate::calibrate;
use tenggat_train::plan::calibrate::rehearsal::Rehearsal;
use tenggat_train::plan::calibrate::timing::{Trial, in_turn, median};

/// How often calibration and measurement alternate, and seconds for each.
const ROUNDS: usize = 5;
const CALIBRATION_S: f64 = 12.0;
const STEPS_S: f64 = 12.0;
/// Blocks and heads of 64 channels.
const SIZES: [(usize, usize); 3] = [(6, 3), (4, 4), (3, 8)];
/// Pixels on a side; 16 make a token.
const RESOLUTIONS: [usize; 2] = [128, 256];
const RANKS: [usize; 2] = [8, 32];

/// Processor time of all threads of this process, in seconds.
struct ProcessorClock;

impl Clock for ProcessorClock {
    fn now_s(&self) -> f64 {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let spent = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        });
        spent.sum::<f64>() * 1e-9
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let by_processor = std::env::args().any(|arg| arg == "--processor-time");
    let wall = WallClock::start();
    let clock: &dyn Clock = if by_processor { &ProcessorClock } else { &wall };
    let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "all".to_owned());
    let kind = if by_processor { "processor" } else { "wall-clock" };
    println!("{kind} time, {threads} threads, load {} at the start", load());

    let device = Device::cpu();
    let mut steps = Vec::new();
    for (layers, heads) in SIZES {
        for side in RESOLUTIONS {
            for rank in RANKS {
                let grid = (side / 16, side / 16);
                let text_tokens = 20;
                let step = Rehearsal {
                    layers,
                    heads,
                    head_dim: 64,
                    joint_dim: 128,
                    grid,
                    text_tokens,
                    batch: 1,
                    rank,
                };
                steps.push((side, step));
            }
        }
    }
    let models = steps.iter().map(|(_, step)| step.model(&device)).collect::<Result<Vec<_>, _>>()?;
    let (mut measured, mut predicted) = (vec![Vec::new(); steps.len()], vec![Vec::new(); steps.len()]);
    for _ in 0..ROUNDS {
        let (calibration, _) = calibrate(&device, "here", 16e9, clock, CALIBRATION_S)?;
        let rates = Machine::from(&calibration).rates;
        println!("{:.1} µs per kernel, load {}", rates.kernel_s * 1e6, load());
        let mut trials = Vec::new();
        for ((_, step), model) in steps.iter().zip(&models) {
            let mut stage = step.stage(model)?;
            trials.push(Trial::new(move || stage.step()));
        }
        in_turn(&mut trials, clock, STEPS_S)?;
        for (i, ((_, step), trial)) in steps.iter().zip(&trials).enumerate() {
            measured[i].push(trial.seconds());
            predicted[i].push(rates.step_seconds(&step.step_config().work()));
        }
    }

    println!("| width × blocks | pixels | rank | measured | predicted | error |\n|---|---|---|---|---|---|");
    let mut worst: f64 = 0.0;
    for (i, (side, step)) in steps.iter().enumerate() {
        let (measured, predicted) = (median(&measured[i]), median(&predicted[i]));
        let error = 100.0 * (predicted / measured - 1.0);
        worst = worst.max(error.abs());
        println!(
            "| {} × {} | {side}² | {} | {:.1} ms | {:.1} ms | {error:+.1} % |",
            step.heads * step.head_dim,
            step.layers,
            step.rank,
            measured * 1e3,
            predicted * 1e3
        );
    }
    println!("\nlargest error {worst:.1} %; load {} at the end", load());
    Ok(())
}
