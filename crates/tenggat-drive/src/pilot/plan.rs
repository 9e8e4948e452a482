//! The plan of a drive, and how many steps a session is given.

use serde::{Deserialize, Serialize};
use tenggat_plan::{BucketConfig, BudgetConfig, Phase, PhaseCosts, SamplePlan};

use crate::trainer::Session;

/// Steps of a trainer whose schedule does not depend on their number and that is stopped when time is up.
const ENDLESS: u64 = 1_000_000;
/// Steps of a first session that nothing is known for.
const GUESS: u64 = 1000;
/// A schedule that is to reach its end at the deadline is given this share of steps more than are thought to
/// fit: ending a few hundredths before the schedule's end costs nothing, and ending before the deadline would
/// cost time.
const STRETCH: f64 = 1.04;

/// What is known of a trainer on this machine with this job; all seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// One step.
    pub step_s: Option<f64>,
    /// From the start of the process to its first step, caches being there.
    pub load_s: Option<f64>,
    /// Writing a save.
    pub save_s: Option<f64>,
    /// Checking and publishing one.
    pub publish_s: Option<f64>,
    /// A round of sample pictures.
    pub round_s: Option<f64>,
    /// From the wish to stop to the end of the process.
    pub stop_s: Option<f64>,
}

/// The plan of a drive.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The moment by which everything must have ended, on the run's clock.
    pub deadline_s: f64,
    /// Time kept free before the end, in place of what the budget works out.
    pub margin_s: Option<f64>,
    /// Steps that the job asks for; `None` for as many as fit.
    pub steps: Option<u64>,
    /// Use all of the budget even if the job's steps are done earlier.
    pub fill: bool,
    /// Whether the learning-rate schedule depends on the number of steps.
    pub anneals: bool,
    /// Steps between two rounds of sample pictures; `None` without them.
    pub sample_every: Option<u64>,
    /// First step with sample pictures.
    pub sample_from: u64,
    /// Entries of `on_out_of_memory`.
    pub shrinks: usize,
    /// Updates in the LoRA that is resumed from; 0 for a fresh start.
    pub resume: u64,
    /// Updates in the published LoRA: fewer than in the one that is resumed from if that does not fit its
    /// model.
    pub delivered: u64,
    /// What is known from earlier drives.
    pub known: Known,
}

impl Plan {
    /// The steps that the run is to have, if their number rules and not time.
    pub fn asked(&self) -> Option<u64> {
        self.steps.filter(|_| !self.fill)
    }

    /// The steps that a session is given if `fit` steps are expected to fit in all.
    pub(super) fn steps_for(&self, fit: Option<u64>) -> u64 {
        let stretched = fit.map(|n| (n as f64 * STRETCH).ceil() as u64 + 1);
        match (self.asked(), stretched) {
            (Some(asked), _) if !self.anneals => asked,
            (Some(asked), Some(stretched)) => asked.min(stretched),
            (Some(asked), None) => asked,
            (None, _) if !self.anneals => ENDLESS,
            (None, Some(stretched)) => stretched,
            (None, None) => self.steps.unwrap_or(GUESS),
        }
    }

    /// The first session.
    pub(super) fn first_session(&self) -> Session {
        let fit = self.known.step_s.filter(|s| *s > 0.0).map(|step_s| {
            let room_s = self.deadline_s - self.known.load_s.unwrap_or(0.0);
            self.resume + (room_s / step_s).max(1.0) as u64
        });
        let steps = self.steps_for(fit).max(self.resume + 1);
        Session { number: 1, from: self.resume, steps, no_samples: false, shrink: 0 }
    }

    /// Seconds kept for the trainer's process to end after the last save: it may be ended by force then,
    /// since nothing is lost by it.
    pub(super) fn stop_room_s(&self, known: &Known) -> f64 {
        let most_s = (0.01 * self.deadline_s).min(10.0);
        known.stop_s.unwrap_or(2.0).min(most_s)
    }

    /// Seconds between asking for a save and its file being published, beside the step that is under way.
    pub(super) fn delivery_s(&self, known: &Known) -> f64 {
        let guess_s = (0.005 * self.deadline_s).clamp(0.05, 5.0);
        known.save_s.unwrap_or(guess_s) + known.publish_s.unwrap_or(0.2 * guess_s)
    }

    /// The budget of one session.
    pub(super) fn budget(&self, deadline_s: f64, session: &Session, known: &Known) -> BudgetConfig {
        let delivery_s = self.delivery_s(known);
        BudgetConfig {
            deadline_s: Some(deadline_s),
            steps: self.asked(),
            fill: false,
            margin_s: self.margin_s,
            phases: PhaseCosts::default()
                .with(Phase::Load, known.load_s.unwrap_or(0.0))
                .with(Phase::FinalSave, delivery_s)
                // Ending a process takes no longer where steps do: of the phases after the last save, the
                // budget lets all but this one grow with them.
                .with(Phase::Upload, self.stop_room_s(known)),
            save_s: delivery_s,
            buckets: vec![BucketConfig { step_s: known.step_s, share: None }],
            samples: self.samples(session, known),
            steps_done: session.from,
            progress_done: 0.0,
            ..BudgetConfig::default()
        }
    }

    fn samples(&self, session: &Session, known: &Known) -> Option<SamplePlan> {
        let every_steps = self.sample_every.filter(|_| !session.no_samples)?;
        Some(SamplePlan { every_steps, round_s: known.round_s.unwrap_or(0.0) })
    }

    /// The step before the next round of sample pictures that is due after `step` updates: a save that is
    /// asked for while it runs is written before the round.
    ///
    /// ai-toolkit draws after the update of index `n` where `n` is a multiple of `sample_every`, so with `n +
    /// 1` updates done. Source: `jobs/process/BaseSDTrainProcess.py`, the training loop.
    pub(super) fn last_step_before_samples(&self, step: u64) -> Option<u64> {
        let every = self.sample_every.filter(|n| *n > 0)?;
        let from = (step + 1).max(self.sample_from).max(1);
        Some(from.div_ceil(every) * every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            deadline_s: 100.0,
            margin_s: None,
            steps: None,
            fill: false,
            anneals: false,
            sample_every: None,
            sample_from: 0,
            shrinks: 0,
            resume: 0,
            delivered: 0,
            known: Known::default(),
        }
    }

    #[test]
    fn steps_follow_the_schedule_and_the_wish() {
        assert_eq!(plan().steps_for(Some(500)), ENDLESS);
        let anneals = Plan { anneals: true, ..plan() };
        assert_eq!(anneals.steps_for(Some(500)), 521);
        assert_eq!(anneals.steps_for(None), GUESS);
        let asked = Plan { steps: Some(300), ..anneals.clone() };
        assert_eq!((asked.steps_for(Some(500)), asked.steps_for(Some(100))), (300, 105));
        assert_eq!(Plan { fill: true, ..asked.clone() }.steps_for(Some(500)), 521);
        // A constant rate does not care: it is stopped when time is up.
        assert_eq!(Plan { anneals: false, ..asked }.steps_for(Some(100)), 300);
    }

    #[test]
    fn an_earlier_drive_gives_the_first_guess() {
        let known = Known { step_s: Some(0.5), load_s: Some(10.0), ..Known::default() };
        let session = Plan { anneals: true, resume: 20, known, ..plan() }.first_session();
        assert_eq!((session.from, session.steps), (20, 209));
    }

    #[test]
    fn the_step_before_samples_is_the_round_itself() {
        let plan = Plan { sample_every: Some(10), ..plan() };
        let due = |step| plan.last_step_before_samples(step).unwrap();
        assert_eq!((due(0), due(8), due(9), due(10), due(15)), (10, 10, 10, 20, 20));
        assert_eq!(Plan { sample_from: 25, ..plan }.last_step_before_samples(3), Some(30));
    }
}
