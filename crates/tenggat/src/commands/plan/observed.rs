//! The speed of a run as its log shows it: our `metrics.jsonl`, or the progress bar (tqdm) of ai-toolkit,
//! musubi-tuner and others.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use tenggat_plan::{Gpu, Program, Span, format_duration};
use tenggat_train::job::Job;
use tenggat_train::outcome::metrics::{self, Record};

/// What a log says about a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Observed {
    /// Where it was read.
    pub source: PathBuf,
    /// Steps that it shows.
    pub done: u64,
    /// Steps that the run was to take, if the log says.
    pub asked: Option<u64>,
    /// Mean seconds per step.
    pub step_s: f64,
    /// Seconds per step once the first steps, which compile and time kernels, are over.
    pub steady_s: f64,
    /// The program that wrote it, by its look.
    pub program: Option<Program>,
    /// The card that it names.
    pub card: Option<String>,
    /// Middle four fifths of the steps, seconds; of ai-toolkit's log, of stretches between two lines.
    pub middle: Span,
    /// Seconds beside the steps, as far as the log shows them.
    pub beside_s: f64,
}

impl Observed {
    /// Reads a run folder, a `metrics.jsonl`, or the output of ai-toolkit.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_owned() };
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let own = text.trim_start().starts_with('{');
        let observed = if own { from_metrics(&file)? } else { from_bars(&text) };
        let observed = observed.map(|observed| Observed { card: card(&text), ..observed });
        let Some(mut observed) = observed else {
            bail!(
                "{} shows no training steps; expected metrics.jsonl, or lines such as \
                 `12/1500 [00:54<1:51:36, 4.50s/it, lr: …]`",
                file.display()
            );
        };
        observed.asked = observed.asked.or_else(|| asked_beside(&file));
        observed.source = file;
        Ok(observed)
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, step_s, middle, .. } = self;
        write!(f, "{}: {done} steps at {} s", self.source.display(), Span::exactly(*step_s))?;
        if !middle.is_exact() {
            write!(
                f,
                " on average (four of five between {} and {} s)",
                short(middle.low),
                short(middle.high)
            )?;
        }
        if self.beside_s > 0.0 {
            write!(f, ", {} of other work", format_duration(self.beside_s))?;
        }
        write!(f, ".")
    }
}

fn short(seconds: f64) -> String {
    Span::exactly(seconds).to_string()
}

/// The card of the catalogue that a log names, as drivers do.
fn card(text: &str) -> Option<String> {
    let lines = text.lines().filter(|line| line.contains("NVIDIA") || line.contains("GeForce"));
    lines.filter_map(Gpu::called).next().map(|gpu| gpu.name.clone().into_owned())
}

/// Steps of the job beside the log.
fn asked_beside(file: &Path) -> Option<u64> {
    let config = file.parent()?.join("config.yaml");
    Job::from_file(&config, None, &|_| None).ok()?.0.train.steps
}

fn from_metrics(file: &Path) -> anyhow::Result<Option<Observed>> {
    let records: Vec<Record> =
        metrics::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (Some(first), Some(last)) = (records.first(), records.last()) else {
        return Ok(None);
    };
    let seconds: Vec<f64> = records.iter().map(|r| r.s_per_step).filter(|s| *s > 0.0).collect();
    let in_steps: f64 = seconds.iter().sum();
    // A resumed run's clock starts anew; what lies between the parts is not known.
    let whole_s = if last.time_s >= first.time_s { last.time_s } else { in_steps };
    let done = last.step;
    let settled = &seconds[warm_up(seconds.len())..];
    let steady_s = settled.iter().sum::<f64>() / settled.len().max(1) as f64;
    Ok(of_pieces(&seconds, in_steps / seconds.len().max(1) as f64).map(|middle| Observed {
        done,
        steady_s,
        beside_s: (whole_s - in_steps).max(0.0),
        program: Some(Program::Tenggat),
        ..middle
    }))
}

/// First steps that are left out of a steady speed: a tenth, at most 20.
fn warm_up(steps: usize) -> usize {
    (steps / 10).min(20)
}

/// A progress bar's state: `12/1500 [00:54<1:51:36,  4.50s/it, lr: …]`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bar {
    done: u64,
    total: u64,
    elapsed_s: f64,
    /// As printed, smoothed.
    step_s: Option<f64>,
    /// The program whose training shows such a bar; `None` for other bars.
    program: Option<Program>,
}

/// The training's progress bar among everything else that a program prints. Bars are redrawn after carriage
/// returns.
fn from_bars(text: &str) -> Option<Observed> {
    let bars: Vec<Bar> = text.split(['\n', '\r']).filter_map(bar).collect();
    let training = bars.iter().any(|bar| bar.program.is_some());
    let of_training = |bar: &&Bar| bar.program.is_some() == training;
    let total = bars.iter().filter(of_training).map(|bar| bar.total).max()?;
    let mut bars: Vec<Bar> =
        bars.iter().filter(of_training).filter(|bar| bar.total == total).copied().collect();
    bars.dedup_by_key(|bar| bar.done);
    let (first, last) = (bars.first()?, bars.last()?);
    let stretch = |a: &Bar, b: &Bar| {
        (b.done > a.done && b.elapsed_s > a.elapsed_s)
            .then(|| (b.elapsed_s - a.elapsed_s) / (b.done - a.done) as f64)
    };
    // Elapsed time is printed in whole seconds, so only long stretches tell more than the smoothed figure.
    let long = |seconds: &f64| seconds * (last.done - first.done) as f64 >= 30.0;
    let mean_s = stretch(first, last).filter(long).or(last.step_s)?;
    let pieces: Vec<f64> =
        bars.windows(2).filter_map(|pair| pair[1].step_s.or(stretch(&pair[0], &pair[1]))).collect();
    let settled = bars.get(warm_up(bars.len()))?;
    let steady_s = stretch(settled, last).filter(|s| s * (last.done - settled.done) as f64 >= 30.0);
    of_pieces(&pieces, mean_s).or(of_pieces(&[mean_s], mean_s)).map(|observed| Observed {
        done: last.done,
        asked: Some(total),
        steady_s: steady_s.unwrap_or(mean_s),
        program: last.program,
        ..observed
    })
}

fn of_pieces(seconds: &[f64], step_s: f64) -> Option<Observed> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get((share * sorted.len().saturating_sub(1) as f64).round() as usize);
    let middle = Span { low: *at(0.1)?, high: *at(0.9)? };
    let known = step_s.is_finite() && step_s > 0.0;
    known.then(|| Observed {
        source: PathBuf::new(),
        done: 0,
        asked: None,
        step_s,
        steady_s: step_s,
        program: None,
        card: None,
        middle,
        beside_s: 0.0,
    })
}

fn bar(line: &str) -> Option<Bar> {
    let (before, inside) = line.split_once('[').filter(|(before, _)| before.contains('/'))?;
    let (head, total) = before.trim_end().rsplit_once('/')?;
    let done = head.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    let (times, rest) = inside.split_once(',')?;
    let (elapsed, _) = times.split_once('<')?;
    let rate = rest.split([',', ']']).next().unwrap_or_default().trim();
    let number = |unit: &str| rate.strip_suffix(unit)?.parse::<f64>().ok().filter(|rate| *rate > 0.0);
    Some(Bar {
        done: done.parse().ok()?,
        total: total.trim().parse().ok()?,
        elapsed_s: clock_face_s(elapsed.trim())?,
        step_s: number("s/it").or_else(|| number("it/s").map(f64::recip)),
        program: program(before, rest),
    })
}

/// The program whose training shows a bar like this: ai-toolkit `lr: …`, musubi-tuner and sd-scripts `steps:
/// …, avr_loss=…`, the scripts of diffusers `Steps: …, loss=…, lr=…`.
fn program(before: &str, behind: &str) -> Option<Program> {
    let before = before.trim_start();
    if behind.contains("lr:") {
        Some(Program::AiToolkit)
    } else if behind.contains("avr_loss=") {
        Some(Program::Musubi)
    } else if behind.contains("step_loss=") {
        Some(Program::SimpleTuner)
    } else if before.starts_with("Steps:") && behind.contains("loss=") {
        Some(Program::Diffusers)
    } else if before.starts_with("step:") && behind.contains("loss=") {
        Some(Program::OneTrainer)
    } else {
        None
    }
}

/// Seconds of `54`, `00:54`, `1:51:36`; tqdm writes days as more hours.
fn clock_face_s(text: &str) -> Option<f64> {
    text.split(':').try_fold(0.0, |sum, part| Some(60.0 * sum + part.parse::<u32>().ok()? as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_of_ai_toolkit_are_read() {
        let line =
            "my_lora:   1%|▏         | 12/1500 [00:54<1:51:36,  4.50s/it, lr: 1.0e-04 loss: 3.210e-01]";
        let expected = Bar {
            done: 12,
            total: 1500,
            elapsed_s: 54.0,
            step_s: Some(4.5),
            program: Some(Program::AiToolkit),
        };
        assert_eq!(bar(line), Some(expected));
        assert_eq!(bar("100%|██| 3/3 [1:00:05<00:00,  2.00it/s]").unwrap().step_s, Some(0.5));
        assert_eq!(bar("0%| | 0/1500 [00:00<?, ?it/s, lr: 0]").unwrap().step_s, None);
        for other in ["", "Loading a/b [c]", "1/2", "1/2 [x<y, 1s/it]", "[00:01<00:02, 3s/it]"] {
            assert_eq!(bar(other), None, "{other}");
        }
    }

    #[test]
    fn the_training_is_told_from_other_bars() {
        let mut log = String::from("Caching latents: 100%|█| 9000/9000 [00:05<00:00, 1800.0it/s]\nhello\n");
        for step in 0..=40 {
            let (minutes, seconds) = (step * 5 / 60, step * 5 % 60);
            log += &format!(
                "\rrun: 1%| | {step}/1500 [{minutes:02}:{seconds:02}<9:99, 4.9{}s/it, lr: 1e-4]",
                step % 10
            );
        }
        let observed = from_bars(&log).unwrap();
        assert_eq!((observed.done, observed.asked, observed.step_s), (40, Some(1500), 5.0));
        assert!(observed.middle.low >= 4.9 && observed.middle.high < 5.0);
        assert_eq!(from_bars("nothing here"), None);
    }

    #[test]
    fn programs_are_known_by_their_bars() {
        for (line, program, step_s) in [
            ("steps:   1%|▏ | 12/1600 [01:05<2:22:34, 5.39s/it, avr_loss=0.0712]", Program::Musubi, 5.39),
            (
                "Steps:  10%|█ | 70/700 [04:06<36:54, 3.51s/it, loss=0.41, lr=0.0001]",
                Program::Diffusers,
                3.51,
            ),
            (
                "step: 50%|█ | 50/100 [01:00<01:00, 1.20s/it, loss=0.1, smooth loss=0.1]",
                Program::OneTrainer,
                1.2,
            ),
        ] {
            let bar = bar(line).unwrap();
            assert_eq!((bar.program, bar.step_s), (Some(program), Some(step_s)), "{line}");
        }
        assert_eq!(bar("Loading: 100%|█| 3/3 [00:01<00:00, 3.0it/s]").unwrap().program, None);
    }

    #[test]
    fn the_first_steps_do_not_count_for_a_steady_speed() {
        let mut log = String::from("NVIDIA GeForce RTX 5090, 32 GB\n");
        for step in 0..=100_u64 {
            let s = if step <= 5 { 60 * step } else { 300 + 2 * (step - 5) };
            log += &format!(
                "\rsteps: 1%| | {step}/200 [{:02}:{:02}<9:99, 2.00s/it, avr_loss=0.1]",
                s / 60,
                s % 60
            );
        }
        let observed = from_bars(&log).unwrap();
        assert!(observed.step_s > 4.0 && (observed.steady_s - 2.0).abs() < 0.01, "{observed:?}");
        assert_eq!(card(&log).as_deref(), Some("RTX 5090"));
    }

    #[test]
    fn a_single_line_is_enough() {
        let observed = from_bars("12/1500 [00:54<1:51:36, 4.50s/it, lr: 1.0e-04]").unwrap();
        assert_eq!((observed.step_s, observed.done), (4.5, 12));
    }
}
