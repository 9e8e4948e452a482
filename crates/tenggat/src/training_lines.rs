//! What the terminal shows of the training: three lines that are redrawn, or a plain one now and then.

use std::time::{Duration, Instant};

use tenggat_train::run::Step;

use crate::output::sparkline;
use crate::process;
use crate::when::{plural, span};

/// Losses that the sparkline is made of; of more, every second one is kept.
const MOST_LOSSES: usize = 512;
/// Weight of the newest step in the time per step of late.
const NEWEST: f64 = 0.1;
/// Time between two measurements of memory.
const MEMORY_EVERY: Duration = Duration::from_secs(2);

/// Steps between saves and between rounds of samples; 0 for none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cadence {
    pub save_every: u64,
    pub sample_every: u64,
}

/// What was seen of the training.
#[derive(Debug, Default)]
pub struct TrainingLines {
    pub cadence: Cadence,
    step: Option<Step>,
    losses: Vec<f32>,
    /// Of so many steps one loss is kept.
    every: u64,
    /// Steps that were seen, and the seconds that they took.
    seen: u64,
    seconds: f64,
    /// Seconds per step of late.
    now_s: f64,
    memory: Option<(Instant, u64)>,
    last_saved: Option<u64>,
    drawn: String,
}

impl TrainingLines {
    /// Takes in a step.
    pub fn add(&mut self, step: &Step) {
        self.seen += 1;
        self.seconds += step.step_s;
        self.now_s =
            if self.seen == 1 { step.step_s } else { self.now_s + NEWEST * (step.step_s - self.now_s) };
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) {
            self.losses.push(step.smoothed as f32);
        }
        if self.losses.len() > MOST_LOSSES {
            let mut n = 0;
            self.losses.retain(|_| {
                n += 1;
                n % 2 == 0
            });
            self.every *= 2;
        }
        self.step = Some(*step);
        if self.memory.is_none_or(|(at, _)| at.elapsed() >= MEMORY_EVERY) {
            self.memory = process::resident_bytes().map(|bytes| (Instant::now(), bytes));
        }
    }

    /// Takes note of a save.
    pub fn saved(&mut self, steps: u64) {
        self.last_saved = Some(steps);
    }

    /// Steps done.
    pub fn done(&self) -> u64 {
        self.step.map_or(0, |step| step.done)
    }

    /// What stays on the screen when the training is over.
    pub fn summary(&self) -> String {
        let loss = self.step.map_or(f64::NAN, |step| step.smoothed);
        let each = self.seconds / self.seen.max(1) as f64;
        let loss = if loss.is_finite() { format!(", loss {loss:.4}") } else { String::new() };
        format!("{}, {} each{loss}", plural(self.done(), "step"), per_step(each))
    }

    /// One line for a log. `deadline` is what is spent, the budget, and the moment of the deadline.
    pub fn plain(&self, ends: Option<&str>, deadline: Option<&(f64, f64, String)>) -> String {
        let Some(step) = self.step else { return String::new() };
        let ends = ends.map_or(String::new(), |ends| format!("  {ends}"));
        let deadline = deadline.map_or(String::new(), |(_, _, moment)| format!("  deadline {moment}"));
        format!(
            "step {}  loss {}  lr {:.1e}  {}/step{ends}{deadline}",
            counted(&step),
            number(step.smoothed),
            step.lr,
            per_step(self.now_s)
        )
    }

    /// Lines of so many columns at most.
    pub fn drawn(
        &mut self,
        ends: Option<&str>,
        deadline: Option<&(f64, f64, String)>,
        width: usize,
    ) -> String {
        let Some(step) = self.step else { return String::new() };
        let width = width.saturating_sub(1).max(30);
        let share = step.total.filter(|t| *t > 0).map(|total| step.done as f64 / total as f64);
        let bar_width = if width < 60 { 10 } else { 24 };
        let percent = share.map_or(String::new(), |share| format!(" {:.0} %", 100.0 * share.min(1.0)));
        let head = format!(
            "{} {}{percent}  loss {} ",
            bar(share.unwrap_or(0.0), bar_width),
            counted(&step),
            number(step.smoothed)
        );
        let room = width.saturating_sub(head.chars().count());
        let first = format!("{head}{}", sparkline(&self.losses, room.min(40)));
        let mut second: Vec<String> = ends.map(str::to_owned).into_iter().collect();
        second.push(format!("{}/step", per_step(self.now_s)));
        second.push(format!("mean {}", per_step(self.seconds / self.seen.max(1) as f64)));
        second.extend(self.memory.map(|(_, bytes)| format!("{:.1} GB", bytes as f64 / 1e9)));
        second.extend(self.next(&step));
        let third = deadline.map(|(spent_s, budget_s, moment)| {
            let share = if *budget_s > 0.0 { spent_s / budget_s } else { 0.0 };
            format!("{} {} of {}  deadline {moment}", bar(share, bar_width), span(*spent_s), span(*budget_s))
        });
        let lines = [Some(first), Some(fitting(&second, width)), third];
        let cut = |line: String| console::truncate_str(&line, width, "…").into_owned();
        self.drawn = lines.into_iter().flatten().map(cut).collect::<Vec<_>>().join("\n");
        self.drawn.clone()
    }

    /// The lines of the last step with another below them.
    pub fn with_below(&self, text: &str) -> String {
        if self.drawn.is_empty() { text.to_owned() } else { format!("{}\n{text}", self.drawn) }
    }

    /// When the next save and the next samples are due.
    fn next(&self, step: &Step) -> Vec<String> {
        let due = |every: u64, what: &str| {
            let left = every.checked_sub(step.done.checked_rem(every)?)?;
            // What comes after the last step is not due.
            step.total.is_none_or(|total| step.done + left <= total).then(|| format!("{what} in {left}"))
        };
        [due(self.cadence.sample_every, "samples"), due(self.cadence.save_every, "save")]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// As many parts as fit, with two blanks between them.
fn fitting(parts: &[String], width: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { 0 } else { 2 };
        if line.chars().count() + gap + part.chars().count() <= width {
            line += &" ".repeat(gap);
            line += part;
        }
    }
    line
}

fn counted(step: &Step) -> String {
    format!("{}/{}", step.done, step.total.map_or("?".into(), |total| total.to_string()))
}

fn number(loss: f64) -> String {
    if loss.is_finite() { format!("{loss:.4}") } else { "–".into() }
}

/// Seconds of a step with three digits: `56 ms`, `1.25 s`.
pub fn per_step(seconds: f64) -> String {
    if !seconds.is_finite() {
        "–".into()
    } else if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{seconds:.1} s")
    }
}

fn bar(share: f64, width: usize) -> String {
    let full = ((share.clamp(0.0, 1.0) * width as f64) as usize).min(width);
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(done: u64) -> Step {
        let (loss, smoothed, lr) = (0.4, 0.4 + 1.0 / done as f64, 1e-4);
        Step {
            done,
            total: Some(480),
            loss,
            smoothed,
            lr,
            step_s: 0.5,
            left_s: Some(60.0),
            end_s: Some(240.0),
        }
    }

    fn trained(steps: u64) -> TrainingLines {
        let mut lines = TrainingLines {
            cadence: Cadence { save_every: 100, sample_every: 250 },
            ..TrainingLines::default()
        };
        (1..=steps).for_each(|n| lines.add(&step(n)));
        lines
    }

    #[test]
    fn the_lines_fit_whatever_the_width() {
        let deadline = (120.0, 7200.0, "2026-12-24 18:00".to_owned());
        for width in [30, 40, 60, 80, 120, 300] {
            let text = trained(123).drawn(Some("ends Tue 16:47, in 1:12 h"), Some(&deadline), width);
            assert_eq!(text.lines().count(), 3);
            for line in text.lines() {
                assert!(console::measure_text_width(line) < width.max(31), "{width}: {line}");
            }
        }
        let text = trained(123).drawn(Some("ends 16:47, in 1:12 h"), Some(&deadline), 80);
        for part in [
            "123/480",
            "26 %",
            "ends 16:47, in 1:12 h",
            "500 ms/step",
            "samples in 127",
            "2:00 min of 2:00 h",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn an_end_without_a_budget_has_two_lines_and_none_is_promised_after_the_last_step() {
        let text = trained(450).drawn(Some("ends 16:47:10, in 15 s"), None, 120);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains("samples in") && !text.contains("save in"), "{text}");
    }

    #[test]
    fn the_summary_is_of_what_was_done() {
        assert_eq!(trained(315).summary(), "315 steps, 500 ms each, loss 0.4032");
        assert_eq!(trained(1).summary(), "1 step, 500 ms each, loss 1.4000");
    }

    #[test]
    fn long_runs_keep_few_losses() {
        let lines = trained(20_000);
        assert!(lines.losses.len() <= MOST_LOSSES && lines.losses.len() > MOST_LOSSES / 4);
    }
}
