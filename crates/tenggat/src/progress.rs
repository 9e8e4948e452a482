//! A run's news on the terminal.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tenggat_plan::{Clock, Forecast, Phase, RuledBy, format_duration};
use tenggat_train::run::{Contender, Event, Step};

use crate::output::{self, Bar, say};
use crate::training_lines::{Cadence, TrainingLines};
use crate::when::{self, plural};

/// Seconds between two progress lines when the output is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Time between two drawings of a step.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Shows the events of one run.
pub struct Progress {
    /// When the run's clock read zero.
    started: Timestamp,
    deadline_s: Option<f64>,
    /// What is drawn of the phase under way.
    bar: Option<Bar>,
    phase: Option<Phase>,
    training: TrainingLines,
    quantising: Option<Bar>,
    last_line: Option<Instant>,
    drawn: Option<Instant>,
}

impl Progress {
    /// A display for a run on this clock.
    pub fn new(clock: &dyn Clock, deadline_s: Option<f64>) -> Self {
        Progress {
            started: when::after(Timestamp::now(), -clock.now_s()),
            deadline_s,
            bar: None,
            phase: None,
            training: TrainingLines::default(),
            quantising: None,
            last_line: None,
            drawn: None,
        }
    }

    /// Shows as well when the next save and the next samples are due.
    #[must_use]
    pub fn with_cadence(mut self, cadence: Cadence) -> Self {
        self.training.cadence = cadence;
        self
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::Started { .. } | Event::Ended { .. } | Event::Memory { .. } => {}
            Event::Progress { done, total } => self.part(done, total),
            Event::PhaseStarted(phase) => self.begin(phase),
            Event::PhaseFinished { phase, seconds } => self.finish(phase, seconds),
            Event::Quantised { done, total } => self.quantised(done, total),
            Event::Warning(text) => output::warning!("{text}"),
            Event::Data { entries, buckets, trainable } => say!(
                "{:<14} {entries} {} in {}, {:.2} M trainable parameters",
                "data",
                if entries == 1 { "entry" } else { "entries" },
                plural(buckets as u64, "size"),
                trainable as f64 / 1e6
            ),
            Event::Resumed { steps, spent_before_s, deadline_s } => {
                self.started = when::after(self.started, -spent_before_s);
                self.deadline_s = deadline_s;
                let spent = if spent_before_s > 0.0 {
                    format!(", {} spent", format_duration(spent_before_s))
                } else {
                    String::new()
                };
                say!("{:<14} after {}{spent}", "resuming", plural(steps, "step"));
            }
            Event::Done { steps, advice } => {
                say!("{:<14} this job is finished, {}; {advice}", "done", plural(steps, "step"));
            }
            Event::Forecast(forecast) => self.forecast(&forecast),
            Event::DeadlineMoved { deadline_s, by_s } => {
                self.deadline_s = Some(deadline_s);
                let by = by_s.map_or(String::new(), |s| {
                    format!(", {} {}", format_duration(s.abs()), if s < 0.0 { "earlier" } else { "later" })
                });
                say!("{:<14} now {}{by}", "deadline", self.moment(deadline_s));
            }
            Event::Step(step) => self.step(&step),
            Event::Saved { path, steps } => {
                self.training.saved(steps);
                tracing::info!("{} holds {}", path.display(), plural(steps, "step"));
            }
            // Shown side by side when the run has ended: only then are they of the same images and noise.
            Event::Scored(_) => {}
            Event::Contender(Contender { steps, error, is_best }) => say!(
                "{:<14} {:.5} after {}{}",
                "held-out error",
                error.total,
                plural(steps, "step"),
                if is_best { "" } else { ", not an improvement" }
            ),
            Event::Wrote { what, path } => say!("{what:<14} {}", path.display()),
        }
    }

    /// A moment of the run's clock as people read it.
    fn moment(&self, at_s: f64) -> String {
        when::moment(when::after(self.started, at_s))
    }

    /// Shows that a phase is under way: on a terminal by a wheel or a bar, elsewhere by a line.
    fn begin(&mut self, phase: Phase) {
        self.phase = Some(phase);
        self.bar = None;
        self.last_line = None;
        if !output::shows_bars() {
            match phase {
                Phase::Train => {}
                // These take a moment.
                Phase::FinalSave | Phase::Report => tracing::info!("{} …", phase.name()),
                _ => say!("{} …", phase.name()),
            }
        } else if phase == Phase::Train {
            self.bar = Some(Bar::lines());
        } else {
            let bar = Bar::spinner();
            bar.set_message(&format!("{:<12} …", phase.name()));
            self.bar = Some(bar);
        }
    }

    fn finish(&mut self, phase: Phase, seconds: f64) {
        self.phase = None;
        // What it showed is no longer so; the line below stays.
        self.bar = None;
        if phase == Phase::Train && self.training.done() > 0 {
            say!("{:<14} {seconds:7.1} s, {}", phase.name(), self.training.summary());
        } else {
            say!("{:<14} {seconds:7.1} s", phase.name());
        }
    }

    /// Shows how far the phase under way is.
    fn part(&mut self, done: u64, total: u64) {
        let Some(phase) = self.phase else { return };
        let text =
            format!("{:<14} {done}/{total}", if phase == Phase::Train { "samples" } else { phase.name() });
        match &self.bar {
            Some(bar) if phase == Phase::Train => bar.set_lines(&self.training.with_below(&text)),
            Some(bar) => bar.set_message(&text),
            None => self.line(|_| text),
        }
    }

    /// Prints a line where there is no bar, but not too often.
    fn line(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            let text = text(self);
            self.last_line = Some(Instant::now());
            say!("{text}");
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
        let steps = forecast.steps_total.map_or("as many steps as fit".into(), |n| plural(n, "step"));
        let speed = forecast.step_s.map_or(String::new(), |s| format!(" at {:.0} ms", s * 1e3));
        let ruled = match (forecast.ruled_by, forecast.steps_total) {
            (RuledBy::Deadline, Some(1)) => "fits the budget",
            (RuledBy::Deadline, _) => "fit the budget",
            (RuledBy::Steps, Some(1)) => "is set by the job",
            (RuledBy::Steps, _) => "are set by the job",
        };
        let end = forecast.end_s.map_or(String::new(), |s| format!(", {}", self.ends(s)));
        say!("{:<14} {steps}{speed} {ruled}{end}", "forecast");
        for note in &forecast.notes {
            say!("{:<14} {note}", "note");
        }
    }

    /// `ends 16:47, in 1:12 h`.
    fn ends(&self, end_s: f64) -> String {
        let at = when::after(self.started, end_s);
        let in_s = at.duration_since(Timestamp::now()).as_secs_f64();
        format!("ends {}, in {}", when::moment(at), when::span(in_s))
    }

    fn step(&mut self, step: &Step) {
        self.training.add(step);
        let is_drawn = self.drawn.is_some_and(|at| at.elapsed() < DRAW_EVERY);
        if self.bar.is_some() && is_drawn && step.total != Some(step.done) {
            return;
        }
        let ends = step.end_s.map(|end_s| self.ends(end_s));
        let deadline = self.deadline_s.map(|at_s| {
            let spent_s = step.left_s.map_or(0.0, |left_s| at_s - left_s);
            (spent_s, at_s, self.moment(at_s))
        });
        if let Some(bar) = &self.bar {
            self.drawn = Some(Instant::now());
            bar.set_lines(&self.training.drawn(ends.as_deref(), deadline.as_ref(), output::bar_width()));
        } else {
            self.line(|own| own.training.plain(ends.as_deref(), deadline.as_ref()));
        }
    }
}

/// A bar over the bytes of a model that is being quantised.
pub fn quantisation_bar(total: u64) -> Bar {
    Bar::new(total, "quantising {bar:28} {bytes}/{total_bytes}, {eta} left")
}
