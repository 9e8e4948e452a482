//! `deliver: best` of a drive: which of the trainer's saves has the lowest error on pictures that it was not
//! trained on. Our engine measures, so that it must know the architecture.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::Context;
use tenggat_drive::{Deliver, Driven, Save, ToolkitJob, lora};
use tenggat_plan::{Clock, WallClock};
use tenggat_train::contest::evaluate::Measures;
use tenggat_train::contest::{rules, test_pictures};
use tenggat_train::job::ErrorWeights;

use super::model::locate;
use super::scorer::Scorer;
use crate::assets;
use crate::device::{self, Choice};
use crate::output::{say, warning};
use crate::when::plural;

/// Share of the budget that is kept for measuring, and most seconds of it.
const SHARE: f64 = 0.08;
const MOST_S: f64 = 600.0;
/// Time that another measurement may take, as a multiple of the longest so far.
const CAUTION: f64 = 1.3;
/// Seconds kept free for publishing, at least.
const PUBLISHING_S: f64 = 0.2;
/// Longest wait between two looks at whether somebody asks for the end.
const LOOK_EVERY_S: f64 = 0.05;

/// What is measured on, and how long that may take.
pub struct Choosing<'a> {
    held_out: &'a Path,
    weights: ErrorWeights,
    /// Seconds of the budget that are kept for it.
    pub reserve_s: f64,
}

/// Whether the best of a job's saves is asked for and can be found.
///
/// # Errors
/// The job asks for what makes no sense.
pub fn choosing(job: &ToolkitJob, deadline_s: f64) -> anyhow::Result<Option<Choosing<'_>>> {
    if job.wishes.deliver == Deliver::Newest {
        return Ok(None);
    }
    let held_out = job.wishes.held_out.as_deref().context(
        "`tenggat.deliver: best` needs images to measure on; name their folder as `held_out`, beside it",
    )?;
    let weights = job.wishes.held_out_weights.as_deref().map(str::parse).transpose();
    let weights =
        weights.map_err(|e: String| anyhow::anyhow!("the job's `tenggat.held_out_weights`: {e}"))?;
    if job.arch() != tenggat_train::job::ARCH {
        warning!(
            "`deliver: best` is for `arch: {}`, which tenggat can measure; of `{}` the newest LoRA is \
             delivered",
            tenggat_train::job::ARCH,
            job.arch()
        );
        return Ok(None);
    }
    let reserve_s = (SHARE * deadline_s).min(MOST_S);
    Ok(Some(Choosing { held_out, weights: weights.unwrap_or_default(), reserve_s }))
}

/// Until when saves may be measured, and who may end it sooner.
#[derive(Clone, Copy)]
pub struct Until<'a> {
    /// The clock of this process.
    pub clock: WallClock,
    /// The deadline on it.
    pub deadline_s: f64,
    /// Whether somebody asked for the end.
    pub stop: &'a AtomicBool,
}

/// What the thread that measures has to say.
enum News {
    /// A save has this error.
    Measured(Save, f64),
    /// A save could not be measured.
    Failed(Save, anyhow::Error),
    /// No save can be.
    Hopeless(anyhow::Error),
    /// Another measurement would take too long.
    NoTime,
}

impl Choosing<'_> {
    /// Measures the saves, the newest first, as long as there is time and nobody asks for the end, and
    /// publishes the best. What goes wrong leaves the newest where it is.
    pub fn deliver(&self, job: &ToolkitJob, driven: Driven, until: Until<'_>, choice: Choice) -> Driven {
        match self.best(job, &driven, until, choice) {
            Ok(Some((save, ended))) => {
                Driven { steps: save.steps, ended: format!("{}; {ended}", driven.ended), ..driven }
            }
            Ok(None) => driven,
            Err(e) => {
                warning!("the newest LoRA is delivered, for the saves could not be measured: {e:#}");
                driven
            }
        }
    }

    fn best(
        &self,
        job: &ToolkitJob,
        driven: &Driven,
        until: Until<'_>,
        choice: Choice,
    ) -> anyhow::Result<Option<(Save, String)>> {
        let (mut saves, _) = job.saves().all();
        // One after as many steps is the published one under its own name.
        saves.dedup_by_key(|save| save.steps);
        if saves.len() < 2 {
            return Ok(None);
        }
        let until =
            Until { deadline_s: until.deadline_s - PUBLISHING_S.max(0.005 * until.deadline_s), ..until };
        let all = saves.len();
        let measuring = Measuring {
            model: job.model().to_owned(),
            held_out: self.held_out.into(),
            weights: self.weights,
            choice,
            clock: until.clock,
            until_s: until.deadline_s,
        };
        let (sender, news) = mpsc::channel();
        // Loading a model takes as long as it takes: whatever is not there in time is not waited for. The
        // thread ends with the process.
        std::thread::spawn(move || measuring.measure(saves, &sender));
        let measured = gather(&news, until)?;
        if measured.len() < all && until.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some((save, error)) = lowest(&measured) else { return Ok(None) };
        if save.steps != driven.steps {
            lora::publish(&save.path, &driven.lora).context("the best save cannot be published")?;
        }
        let ended = format!(
            "the save after {} has the lowest held-out error of the {} measured, {error:.5}",
            plural(save.steps, "step"),
            measured.len()
        );
        Ok(Some((save.clone(), ended)))
    }
}

/// What a thread needs to measure saves.
struct Measuring {
    model: String,
    held_out: PathBuf,
    weights: ErrorWeights,
    choice: Choice,
    clock: WallClock,
    until_s: f64,
}

impl Measuring {
    /// Measures one save after another, the newest first.
    fn measure(&self, saves: Vec<Save>, news: &Sender<News>) {
        let scorer = match self.scorer() {
            Ok(scorer) => scorer,
            Err(e) => return drop(news.send(News::Hopeless(e))),
        };
        let measures = Measures { picture: None, velocity: Some(1), weights: self.weights };
        let mut longest_s = 0.0f64;
        for save in saves.into_iter().rev() {
            let began_s = self.clock.now_s();
            if began_s + CAUTION * longest_s > self.until_s {
                return drop(news.send(News::NoTime));
            }
            // One that is spoilt is no candidate.
            if lora::check(&save.path).is_err() {
                continue;
            }
            let error = scorer.lora(&save.path).and_then(|adapter| {
                let errors = scorer.evaluate(Some(&adapter), measures, &mut |_| {})?;
                errors.velocity.map(|errors| errors.total).context("no error came of it")
            });
            longest_s = longest_s.max(self.clock.now_s() - began_s);
            let told = match error {
                Ok(error) => News::Measured(save, error),
                Err(e) => News::Failed(save, e),
            };
            // Nobody waits any more.
            if news.send(told).is_err() {
                return;
            }
        }
    }

    fn scorer(&self) -> anyhow::Result<Scorer> {
        let side = if self.model == assets::MINI { rules::LONG_SIDE / 8 } else { rules::LONG_SIDE };
        let pictures = test_pictures(&self.held_out, side)?;
        Scorer::load(&locate(&self.model)?, &device::open(self.choice)?, &pictures)
    }
}

/// Takes measurements as they come, until all are there, time is up or somebody asks for the end.
///
/// # Errors
/// Nothing can be measured.
fn gather(news: &Receiver<News>, until: Until<'_>) -> anyhow::Result<Vec<(Save, f64)>> {
    let mut measured = Vec::new();
    let no_time = "there was no time to measure all of the saves";
    while !until.stop.load(Ordering::Relaxed) {
        let left_s = until.deadline_s - until.clock.now_s();
        if left_s <= 0.0 {
            warning!("{no_time}");
            break;
        }
        match news.recv_timeout(Duration::from_secs_f64(left_s.min(LOOK_EVERY_S))) {
            Ok(News::Measured(save, error)) => {
                say!("{:<14} {error:.5} after {}", "held-out error", plural(save.steps, "step"));
                measured.push((save, error));
            }
            Ok(News::Failed(save, e)) => warning!("{} cannot be measured: {e:#}", save.path.display()),
            Ok(News::Hopeless(e)) => return Err(e),
            Ok(News::NoTime) => warning!("{no_time}"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(measured)
}

/// The save with the lowest error; one whose error is no number is none.
fn lowest(measured: &[(Save, f64)]) -> Option<(&Save, f64)> {
    for (save, _) in measured.iter().filter(|(_, error)| !error.is_finite()) {
        warning!("{} is no candidate: its held-out error is no number", save.path.display());
    }
    let finite = measured.iter().filter(|(_, error)| error.is_finite());
    finite.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(save, error)| (save, *error))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn save(steps: u64) -> Save {
        Save { path: format!("fox_{steps}.safetensors").into(), steps, written: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn an_error_that_is_no_number_is_never_the_lowest() {
        // The sign of a NaN is nobody's choice: on x86 that of 0 / 0 is negative, and sorts first.
        for no_number in [f64::NAN, -f64::NAN, f64::NEG_INFINITY] {
            let measured = [(save(30), 0.3), (save(20), no_number), (save(10), 0.2)];
            assert_eq!(lowest(&measured).map(|(save, error)| (save.steps, error)), Some((10, 0.2)));
        }
        assert_eq!(lowest(&[(save(1), f64::NAN)]), None);
    }

    #[test]
    fn one_save_that_cannot_be_measured_costs_no_other() {
        let (stop, clock) = (AtomicBool::new(false), WallClock::start());
        let (sender, news) = mpsc::channel();
        for said in [
            News::Measured(save(30), 0.3),
            News::Failed(save(20), anyhow::anyhow!("it is spoilt")),
            News::Measured(save(10), 0.2),
        ] {
            sender.send(said).unwrap();
        }
        drop(sender);
        let measured = gather(&news, Until { clock, deadline_s: 600.0, stop: &stop }).unwrap();
        assert_eq!(measured, [(save(30), 0.3), (save(10), 0.2)]);
    }

    #[test]
    fn a_measurement_that_does_not_end_is_not_waited_for() {
        let (stop, clock) = (AtomicBool::new(false), WallClock::start());
        // The sender lives on, as that of a thread that hangs.
        let (sender, news) = mpsc::channel();
        sender.send(News::Measured(save(30), 0.3)).unwrap();
        let deadline_s = clock.now_s() + 0.2;
        let measured = gather(&news, Until { clock, deadline_s, stop: &stop }).unwrap();
        assert_eq!(measured, [(save(30), 0.3)]);
        stop.store(true, Ordering::Relaxed);
        assert!(gather(&news, Until { clock, deadline_s: f64::MAX, stop: &stop }).unwrap().is_empty());
        drop(sender);
    }
}
