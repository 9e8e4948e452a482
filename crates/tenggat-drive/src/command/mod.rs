//! Any other trainer: started by its own command, read by its progress bar, and stopped so that its newest
//! whole save is published in time.
//!
//! Such a trainer cannot be asked to save. One that saves when it is interrupted is let run as long as that
//! leaves time to; of any other, only saves that it makes by itself count, so it is ended once no further one
//! would come in time.

mod found;
mod profile;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tenggat_plan::{Budget, BudgetConfig, Clock, Phase, PhaseCosts, format_duration};

use crate::drive::Driven;
use crate::error::{Error, Result};
use crate::event::{Event, Step};
use crate::gpu;
use crate::lora::{self, LAST};
use crate::metrics::{Metrics, Record};
use crate::orders::Orders;
use crate::process::Process;
use crate::state::Home;
use crate::trainer::Trouble;
use crate::words::{Bar, Tail};

pub use found::{Found, Pattern};
pub use profile::Profile;

/// Options of a trainer's command.
pub struct CommandOptions<'a> {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where its saves go.
    pub saves: Pattern,
    /// The run's clock.
    pub clock: &'a dyn Clock,
    /// The moment by which everything must have ended, on that clock.
    pub deadline_s: f64,
    /// Time kept free before the end.
    pub margin_s: Option<f64>,
    /// Set when the drive should end.
    pub stop: &'a AtomicBool,
}

/// Why the trainer is being ended.
#[derive(Debug, Clone, PartialEq)]
struct Ending {
    why: String,
    as_planned: bool,
    since_s: f64,
    terminated: bool,
}

struct Follower<'a> {
    options: &'a CommandOptions<'a>,
    /// The deadline, which somebody may have moved.
    deadline_s: f64,
    orders: Orders,
    profile: Profile,
    show: &'a mut dyn FnMut(Event),
    last: PathBuf,
    log: PathBuf,
    process: Process,
    tail: Tail,
    metrics: std::io::Result<Metrics>,
    budget: Budget,
    started: SystemTime,
    /// Steps in all that the command names.
    told_steps: Option<u64>,
    /// Steps of the bars before the present one, and of that.
    epochs_before: u64,
    bar_done: u64,
    step: Option<u64>,
    step_at_s: f64,
    measured: u64,
    /// Steps between two saves, as the command says or as seen.
    save_every: Option<u64>,
    last_save_step: u64,
    published: Option<Found>,
    published_steps: u64,
    publish_s: f64,
    warned_fit: bool,
    warned_stall: bool,
    forecast_due_s: f64,
    looked_s: f64,
    ending: Option<Ending>,
}

/// Follows a trainer that is run by a command.
///
/// # Errors
/// The command cannot be started, or no whole save came of it.
pub fn follow(options: &CommandOptions<'_>, show: &mut dyn FnMut(Event)) -> Result<Driven> {
    let base = options.saves.base().to_path_buf();
    std::fs::create_dir_all(&base).map_err(|e| Error::file("make the folder", &base, e))?;
    let home = Home::open(&base)?;
    lora::sweep(&base);
    let log = home.file("trainer.log");
    let profile = Profile::of(&options.command);
    let now_s = options.clock.now_s();
    let process = start(options, &log)?;
    show(Event::Note(greeting(&profile)));
    show(Event::PhaseStarted(Phase::Load));
    let mut follower = Follower {
        deadline_s: options.deadline_s,
        orders: Orders::new(&base),
        tail: Tail::new(&log),
        last: base.join(LAST),
        metrics: Metrics::resume(&base.join("metrics.jsonl"), 0),
        budget: Budget::new(budget(options))?,
        started: SystemTime::now() - Duration::from_secs(2),
        told_steps: Profile::number(profile.steps, &options.command),
        epochs_before: 0,
        bar_done: 0,
        step: None,
        step_at_s: now_s,
        measured: 0,
        save_every: Profile::number(profile.save_every, &options.command),
        last_save_step: 0,
        published: None,
        published_steps: 0,
        publish_s: 0.0,
        warned_fit: false,
        warned_stall: false,
        forecast_due_s: 0.0,
        looked_s: now_s,
        ending: None,
        options,
        profile,
        show,
        log,
        process,
    };
    follower.run()
}

fn greeting(profile: &Profile) -> String {
    let how = if profile.saves_on_interrupt {
        "it saves when interrupted, and will be interrupted in time"
    } else {
        "it cannot be asked to save: the last of its own saves before the deadline counts"
    };
    format!("the trainer is {}; {how}", profile.name)
}

fn start(options: &CommandOptions<'_>, log: &Path) -> Result<Process> {
    let mut words = options.command.iter();
    let program = words.next().cloned().unwrap_or_default();
    let mut command = Command::new(&program);
    command.args(words);
    Process::start(&mut command, log).map_err(|source| Error::Start {
        program,
        source,
        advice: "the words after `--` are the trainer's command as you would type it",
    })
}

fn budget(options: &CommandOptions<'_>) -> BudgetConfig {
    // Nobody has seen a save yet; a quarter of a second is little even for a short run on a busy machine.
    let save_s = (0.005 * options.deadline_s).clamp(0.25, 5.0);
    BudgetConfig {
        deadline_s: Some(options.deadline_s),
        margin_s: options.margin_s,
        phases: PhaseCosts::default()
            .with(Phase::FinalSave, save_s)
            // Of the phases after the last save, the one that does not grow with the steps.
            .with(Phase::Upload, (0.01 * options.deadline_s).min(5.0)),
        save_s,
        ..BudgetConfig::default()
    }
}

impl Follower<'_> {
    fn run(&mut self) -> Result<Driven> {
        loop {
            let now_s = self.options.clock.now_s();
            self.follow_orders(now_s);
            self.tail.follow();
            self.take_steps(now_s);
            if now_s - self.looked_s >= 0.5 {
                self.looked_s = now_s;
                self.publish_newest();
            }
            if let Some(status) = self.process.ended() {
                // Its last words may have come since.
                self.tail.follow();
                return self.conclude(Some(status.success()));
            }
            if now_s >= self.kill_s() {
                self.process.kill();
                return self.conclude(None);
            }
            match self.ending.clone() {
                Some(ending) => self.press(ending, now_s),
                None => self.decide(now_s),
            }
            let left_s = (self.kill_s() - self.options.clock.now_s()).clamp(0.002, 0.1);
            std::thread::sleep(Duration::from_secs_f64(left_s));
        }
    }

    /// Moves the deadline or ends if somebody asks for it; a save cannot be had.
    fn follow_orders(&mut self, now_s: f64) {
        let moved_s = self.orders.moved_by_s(now_s, self.deadline_s);
        if self.orders.wants_stop {
            self.options.stop.store(true, Ordering::Relaxed);
        }
        if std::mem::take(&mut self.orders.wants_save) {
            (self.show)(Event::Warning(format!(
                "a save was asked for, but {} cannot be asked to save; its own saves are published as they \
                 come",
                self.profile.name
            )));
        }
        let Some(by_s) = moved_s else { return };
        let Some(deadline_s) = self.budget.extend(now_s, by_s) else { return };
        let by_s = deadline_s - self.deadline_s;
        self.deadline_s = deadline_s;
        self.forecast_due_s = 0.0;
        (self.show)(Event::DeadlineMoved { deadline_s, by_s });
    }

    /// The moment from which nothing is waited for any more.
    fn kill_s(&self) -> f64 {
        let closing_s = (0.02 * self.deadline_s).clamp(0.1, 0.75);
        self.deadline_s - 0.4 * self.options.margin_s.unwrap_or(closing_s) - self.publish_s
    }

    fn take_steps(&mut self, now_s: f64) {
        let Some(mut bar) = self.tail.bar.filter(|bar| self.is_training(bar)) else { return };
        // Some draw a bar of each epoch.
        if bar.done < self.bar_done {
            self.epochs_before += self.bar_done;
        }
        self.bar_done = bar.done;
        bar.done += self.epochs_before;
        let Some(before) = self.step else {
            (self.show)(Event::PhaseFinished { phase: Phase::Load, seconds: now_s });
            (self.show)(Event::PhaseStarted(Phase::Train));
            self.budget.phase_started(Phase::Train, now_s);
            (self.step, self.step_at_s) = (Some(bar.done), now_s);
            return;
        };
        if bar.done <= before {
            return;
        }
        let new = bar.done - before;
        let step_s = (now_s - self.step_at_s) / new as f64;
        for _ in 0..new.min(10_000) {
            self.budget.decide(now_s, 0);
            self.budget.observe_step(now_s, 0, step_s);
        }
        self.measured += new;
        (self.step, self.step_at_s, self.warned_stall) = (Some(bar.done), now_s, false);
        let (loss, lr, time_s) = (bar.loss, bar.lr, now_s);
        if let Ok(metrics) = &mut self.metrics {
            let (grad_norm, bucket) = (None, String::new());
            // The curve is worth less than the run.
            let _ = metrics.write(&Record {
                step: bar.done,
                time_s,
                loss,
                lr,
                grad_norm,
                s_per_step: step_s,
                bucket,
            });
        }
        let left_s = (self.deadline_s - now_s).max(0.0);
        let total = self.total();
        (self.show)(Event::Step(Step {
            done: bar.done,
            total: Some(bar.total),
            loss,
            lr,
            step_s,
            time_s,
            left_s,
        }));
        if self.measured >= 3 && now_s >= self.forecast_due_s {
            self.forecast_due_s = now_s + 60.0;
            let mut forecast = self.budget.forecast(now_s);
            forecast.steps_total = forecast.steps_total.map(|n| n.min(total.unwrap_or(n)));
            (self.show)(Event::Forecast(forecast));
        }
    }

    /// Whether a bar is that of the training: loading and caching draw some, too.
    fn is_training(&self, bar: &Bar) -> bool {
        bar.loss.is_some()
            || self.told_steps == Some(bar.total)
            || self.step.is_some() && self.told_steps.is_none()
    }

    /// Steps in all, as far as they are known.
    fn total(&self) -> Option<u64> {
        let bar = self.tail.bar.filter(|bar| self.is_training(bar)).map(|bar| bar.total);
        self.told_steps.or(bar.filter(|_| self.epochs_before == 0 && !self.profile.bar_of_epochs))
    }

    fn decide(&mut self, now_s: f64) {
        if self.options.stop.load(Ordering::Relaxed) {
            return self.end("stopped by hand".into(), true, now_s);
        }
        let Some(step) = self.step else { return };
        let total = self.total();
        let forecast = self.budget.forecast(now_s);
        let (Some(mean_s), Some(fit)) = (forecast.step_s, forecast.steps_total) else { return };
        if let Some(total) = total {
            self.warn_of_fit(total, fit, mean_s, now_s);
        }
        self.warn_of_stall(mean_s, now_s);
        let spare_s = self.budget.spare_s(now_s);
        if self.profile.saves_on_interrupt {
            if spare_s < 1.5 * mean_s {
                self.end("the budget is spent".into(), true, now_s);
            }
            return;
        }
        let Some(every) = self.save_every.filter(|n| *n > 0) else {
            if spare_s <= 0.0 {
                self.end("the budget is spent".into(), true, now_s);
            }
            return;
        };
        // Its next save, its last one included, which comes with the last step.
        let next = (step / every + 1) * every;
        let next = total.map_or(next, |total| next.min(total.max(step + 1)));
        let late = (next - step) as f64 * mean_s - (now_s - self.step_at_s) > spare_s;
        let saved =
            self.published_steps >= step / every * every || now_s - self.step_at_s > 2.0 * mean_s + 2.0;
        if late && saved && self.measured >= 5 {
            let left = format_duration(self.deadline_s - now_s);
            let why =
                format!("its next save, at step {next}, would come too late; {left} of the budget is left");
            self.end(why, true, now_s);
        }
    }

    /// Says at once if the steps do not fit, and what would.
    fn warn_of_fit(&mut self, total: u64, fit: u64, mean_s: f64, now_s: f64) {
        if self.warned_fit || self.measured < 10 || now_s < 0.02 * self.deadline_s {
            return;
        }
        self.warned_fit = true;
        if fit >= total {
            return;
        }
        let needed_s = now_s + (total.saturating_sub(self.step.unwrap_or(0))) as f64 * mean_s;
        let option = self.profile.steps.unwrap_or("fewer steps, such as");
        let fit =
            self.save_every.map_or(fit, |every| (fit / every.max(1) * every.max(1)).max(every.min(fit)));
        (self.show)(Event::Warning(format!(
            "{total} steps would take {} and the budget is {}: {option} {fit} would fit, and the learning \
             rate would reach its end",
            format_duration(needed_s),
            format_duration(self.deadline_s)
        )));
    }

    fn warn_of_stall(&mut self, mean_s: f64, now_s: f64) {
        let silent_s = now_s - self.step_at_s;
        let limit_s = (12.0 * mean_s).max((0.02 * self.deadline_s).clamp(1.0, 30.0));
        if self.warned_stall || silent_s < limit_s || self.measured == 0 {
            return;
        }
        self.warned_stall = true;
        let clues = if self.kill_s() - now_s > 10.0 { gpu::clues() } else { Vec::new() };
        let clues: String = clues.iter().map(|clue| format!("; {clue}")).collect();
        (self.show)(Event::Slowed(format!(
            "no step for {silent_s:.1} s, though one takes {mean_s:.2} s (a save, samples, or a hung \
             trainer){clues}"
        )));
    }

    fn end(&mut self, why: String, as_planned: bool, now_s: f64) {
        self.process.interrupt();
        self.ending = Some(Ending { why, as_planned, since_s: now_s, terminated: false });
    }

    /// Stronger means for a trainer that does not end. One that is writing is let finish while there is time.
    fn press(&mut self, ending: Ending, now_s: f64) {
        let waited_s = now_s - ending.since_s;
        let left_s = self.kill_s() - now_s;
        let patience_s = if self.profile.saves_on_interrupt { f64::INFINITY } else { 10.0 };
        if !ending.terminated && (waited_s > patience_s.min(0.6 * (left_s + waited_s))) {
            let (_, writing) = self.options.saves.newest(self.started);
            if !writing {
                self.process.terminate();
                self.ending = Some(Ending { terminated: true, ..ending });
            }
        }
    }

    /// Publishes the newest whole save if it is another than the published one.
    fn publish_newest(&mut self) {
        let (found, _) = self.options.saves.newest(self.started);
        let Some(found) = found.filter(|found| self.published.as_ref() != Some(found)) else { return };
        let began = std::time::Instant::now();
        match lora::publish(&found.path, &self.last) {
            Ok(_) => {
                self.publish_s = began.elapsed().as_secs_f64();
                let steps = found.steps.or(self.step).unwrap_or(0);
                if self.save_every.is_none() && self.last_save_step > 0 && steps > self.last_save_step {
                    self.save_every = Some(steps - self.last_save_step);
                }
                (self.last_save_step, self.published_steps) = (steps, steps);
                (self.show)(Event::Saved { path: self.last.clone(), steps, seconds: self.publish_s });
                self.published = Some(found);
            }
            Err(e) if e.may_grow() => {}
            Err(e) => {
                (self.show)(Event::Warning(format!("{} is not published: {e}", found.path.display())));
                self.published = Some(found);
            }
        }
    }

    fn conclude(&mut self, success: Option<bool>) -> Result<Driven> {
        self.publish_newest();
        if self.step.is_some() {
            let seconds = self.options.clock.now_s();
            (self.show)(Event::PhaseFinished { phase: Phase::Train, seconds });
        }
        let (ended, as_planned) = match (self.ending.take(), success) {
            (Some(ending), _) => (ending.why, ending.as_planned),
            (None, Some(true)) => ("the trainer finished its steps".into(), true),
            (None, Some(false)) => {
                let (trouble, words) = self.tail.trouble();
                let said = if trouble == Trouble::None { String::new() } else { format!(": {words}") };
                (format!("{}{said} (the log is {})", trouble.in_words(), self.log.display()), false)
            }
            (None, None) => ("the deadline came before the trainer saved again".into(), false),
        };
        if !lora::check(&self.last).is_ok_and(|_| self.published.is_some()) {
            return Err(Error::NothingDelivered(format!("it left no whole save: {ended}")));
        }
        Ok(Driven { lora: self.last.clone(), steps: self.published_steps, ended, as_planned, sessions: 1 })
    }
}
