//! `deliver: best` of a drive: which of the trainer's saves has the lowest error on pictures that it was not
//! trained on. Our engine measures, so that it must know the architecture.

use std::path::Path;

use anyhow::Context;
use tenggat_drive::{Deliver, Driven, Save, ToolkitJob, lora};
use tenggat_plan::Clock;
use tenggat_train::contest::evaluate::Measures;
use tenggat_train::contest::{rules, test_pictures};
use tenggat_train::job::ErrorWeights;

use super::model::locate;
use super::scorer::Scorer;
use crate::assets;
use crate::device::{self, Choice};
use crate::output::{say, warning};

/// Share of the budget that is kept for measuring, and most seconds of it.
const SHARE: f64 = 0.08;
const MOST_S: f64 = 600.0;
/// Time that another measurement may take, as a multiple of the longest so far.
const CAUTION: f64 = 1.3;
/// Seconds kept free for publishing, at least.
const PUBLISHING_S: f64 = 0.2;

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

impl Choosing<'_> {
    /// Measures the saves, the newest first, as long as there is time until `until_s`, and publishes the
    /// best. What goes wrong leaves the newest where it is.
    pub fn deliver(
        &self,
        job: &ToolkitJob,
        driven: Driven,
        (clock, until_s): (&dyn Clock, f64),
        choice: Choice,
    ) -> Driven {
        match self.best(job, &driven, (clock, until_s), choice) {
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
        (clock, until_s): (&dyn Clock, f64),
        choice: Choice,
    ) -> anyhow::Result<Option<(Save, String)>> {
        let (mut saves, _) = job.saves().all();
        // One after as many steps is the published one under its own name.
        saves.dedup_by_key(|save| save.steps);
        if saves.len() < 2 {
            return Ok(None);
        }
        let until_s = until_s - PUBLISHING_S.max(0.005 * until_s);
        let side = if job.model() == assets::MINI { rules::LONG_SIDE / 8 } else { rules::LONG_SIDE };
        let pictures = test_pictures(self.held_out, side)?;
        let scorer = Scorer::load(&locate(job.model())?, &device::open(choice)?, &pictures)?;
        let measures = Measures { picture: None, velocity: Some(1), weights: self.weights };
        let (mut longest_s, mut measured) = (0.0f64, Vec::new());
        for save in saves.iter().rev() {
            let began_s = clock.now_s();
            if began_s + CAUTION * longest_s > until_s {
                warning!("there was no time to measure all {} saves", saves.len());
                break;
            }
            // One that is spoilt is no candidate.
            if lora::check(&save.path).is_err() {
                continue;
            }
            let adapter = scorer.lora(&save.path)?;
            let errors = scorer.evaluate(Some(&adapter), measures, &mut |_| {})?;
            let Some(error) = errors.velocity.map(|errors| errors.total) else { break };
            say!("{:<14} {error:.5} after {} steps", "held-out error", save.steps);
            measured.push((save, error));
            longest_s = longest_s.max(clock.now_s() - began_s);
        }
        let best = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied();
        let Some((save, error)) = best.filter(|(_, error)| error.is_finite()) else { return Ok(None) };
        if save.steps != driven.steps {
            lora::publish(&save.path, &driven.lora).context("the best save cannot be published")?;
        }
        let ended = format!(
            "of {} saves the one after {} steps has the lowest held-out error, {error:.5}",
            measured.len(),
            save.steps
        );
        Ok(Some((save.clone(), ended)))
    }
}
