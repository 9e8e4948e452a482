//! A run's news on the terminal.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};
use tenggat_plan::{Clock, Forecast, Phase, RuledBy};
use tenggat_train::job::ErrorWeights;
use tenggat_train::run::{Contender, Event, Scores, Step};

use crate::output::{self, Bar, say};

/// Seconds between two progress lines when the output is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows the events of one run.
pub struct Progress {
    /// When the run's clock read zero.
    started: Timestamp,
    /// The deadline as a person reads it.
    deadline: Option<String>,
    bar: Option<Bar>,
    quantising: Option<Bar>,
    last_line: Option<Instant>,
    weights: ErrorWeights,
}

impl Progress {
    /// A display for a run on this clock.
    pub fn new(clock: &dyn Clock, deadline_s: Option<f64>) -> Self {
        let started = moment(Timestamp::now(), -clock.now_s());
        let deadline = deadline_s.map(|at_s| time_of_day(moment(started, at_s)));
        Progress {
            started,
            deadline,
            bar: None,
            quantising: None,
            last_line: None,
            weights: ErrorWeights::default(),
        }
    }

    /// The same, for a run whose held-out errors count so.
    pub fn weighting(self, weights: ErrorWeights) -> Self {
        Progress { weights, ..self }
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::PhaseStarted(Phase::Train) => self.start_bar(),
            Event::PhaseStarted(phase) => tracing::info!("{} …", phase.name()),
            Event::PhaseFinished { phase, seconds } => {
                if phase == Phase::Train
                    && let Some(bar) = self.bar.take()
                {
                    bar.finish();
                }
                say!("{:<14} {seconds:7.1} s", phase.name());
            }
            Event::Quantised { done, total } => self.quantised(done, total),
            Event::Warning(text) => say!("warning: {text}"),
            Event::Data { entries, buckets, trainable } => say!(
                "{:<14} {entries} entries in {buckets} {}, {:.2} M trainable parameters",
                "data",
                if buckets == 1 { "size" } else { "sizes" },
                trainable as f64 / 1e6
            ),
            Event::Resumed { steps, spent_before_s, deadline_s } => {
                self.started = moment(self.started, -spent_before_s);
                self.deadline = deadline_s.map(|at_s| time_of_day(moment(self.started, at_s)));
                let spent = if spent_before_s > 0.0 {
                    format!(", {} spent", tenggat_plan::format_duration(spent_before_s))
                } else {
                    String::new()
                };
                say!("{:<14} after {steps} steps{spent}", "resuming");
            }
            Event::Done { steps, advice } => {
                say!("{:<14} this job is finished, {steps} steps; {advice}", "done");
            }
            Event::Forecast(forecast) => self.forecast(&forecast),
            Event::DeadlineMoved { deadline_s, by_s } => {
                let deadline = time_of_day(moment(self.started, deadline_s));
                let by = by_s.map_or(String::new(), |s| format!(", {s:+.0} s"));
                say!("{:<14} now {deadline}{by}", "deadline");
                self.deadline = Some(deadline);
            }
            Event::Step(step) => self.step(&step),
            Event::Saved { path, steps } => tracing::info!("{} holds {steps} steps", path.display()),
            Event::Scored(scores) => self.scores(&scores),
            Event::Contender(Contender { steps, error, is_best }) => say!(
                "{:<14} {:.5} after {steps} steps{}",
                "held-out error",
                error.total(self.weights),
                if is_best { "" } else { ", no better" }
            ),
            Event::Wrote { what, path } => say!("{what:<14} {}", path.display()),
        }
    }

    fn start_bar(&mut self) {
        if output::shows_bars() {
            self.bar = Some(Bar::new(0, "{bar:28} {pos}/{len}  {msg}"));
        }
    }

    /// Shows how far a first quantisation is: 41 GB are read for it.
    fn quantised(&mut self, done: u64, total: u64) {
        let bar = self.quantising.get_or_insert_with(|| quantisation_bar(total));
        bar.set_position(done);
        if done == total {
            self.quantising = None;
            say!("{:<14} {:7.2} GB stored for later runs", "quantised", total as f64 / 1e9);
        }
    }

    fn forecast(&self, forecast: &Forecast) {
        let steps = forecast.steps_total.map_or("as many steps as fit".into(), |n| format!("{n} steps"));
        let speed = forecast.step_s.map_or(String::new(), |s| format!(" at {:.0} ms", s * 1e3));
        let ruled = match forecast.ruled_by {
            RuledBy::Deadline => "fit the budget",
            RuledBy::Steps => "are set by the job",
        };
        let end = forecast.end_s.map_or(String::new(), |s| format!(", ending after {s:.1} s"));
        say!("{:<14} {steps}{speed} {ruled}{end}", "forecast");
        for note in &forecast.notes {
            say!("{:<14} {note}", "note");
        }
    }

    fn step(&mut self, step: &Step) {
        let left = step.left_s.map_or(String::new(), |s| format!("  left {}", clock_face(s)));
        let deadline = self.deadline.as_ref().map_or(String::new(), |d| format!("  deadline {d}"));
        let text = format!(
            "loss {:.4}  lr {:.1e}  {:.0} ms/step{left}{deadline}",
            step.smoothed,
            step.lr,
            step.step_s * 1e3
        );
        if let Some(bar) = &self.bar {
            bar.set_length(step.total.unwrap_or(step.done));
            bar.set_position(step.done);
            bar.set_message(&text);
        } else if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            let total = step.total.map_or("?".into(), |n| n.to_string());
            say!("step {}/{total}  {text}", step.done);
        }
    }

    fn scores(&self, scores: &Scores) {
        let what = if scores.trained { "with the LoRA" } else { "bare model" };
        let picture = scores.picture.total(self.weights);
        let velocity = scores
            .velocity
            .map_or(String::new(), |v| format!(", velocity error {:.5}", v.total(self.weights)));
        say!("{what:<14} held-out picture error {picture:.5}{velocity}");
    }
}

/// A bar over the bytes of a model that is being quantised.
pub fn quantisation_bar(total: u64) -> Bar {
    Bar::new(total, "quantising {bar:28} {bytes}/{total_bytes}, {eta} left")
}

/// The time this many seconds after another.
fn moment(start: Timestamp, seconds: f64) -> Timestamp {
    let span = SignedDuration::from_secs_f64(seconds.clamp(-1e9, 1e9));
    start.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// Hours, minutes and seconds in this machine's time zone.
fn time_of_day(at: Timestamp) -> String {
    Zoned::new(at, TimeZone::system()).strftime("%H:%M:%S").to_string()
}

/// `1:02:03` or `02:03`.
fn clock_face(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9) as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m:02}:{s:02}") }
}
