//! Flies a trainer that can be asked to save and to stop: one life of its process after another, inside one
//! budget.
//!
//! The pilot owns no clock, no process and no file: it sees a [`Trainer`], asks [`tenggat_plan::Budget`], and
//! decides.
//!
//! - **Learning.** The trainer says which step it is at. Time between two steps, less saves and sample
//!   pictures between them, is a step's time.
//! - **Saves.** Asked for when the budget says so; each is checked and published before anything relies on
//!   it.
//! - **The end.** A save that is asked for now is written after the present step. So the pilot asks, during
//!   each step, whether one more step after it would still leave time to save, publish and close; if not,
//!   this save is the last.
//! - **Corrections.** The number of steps of a running trainer is fixed, and with it the learning-rate
//!   schedule. Where the schedule depends on it, or the trainer would be done too early, a save and a restart
//!   with another number may pay for itself.
//! - **Trouble.** A trainer that dies or hangs is started again from its last whole LoRA, if there is time
//!   and sense in it. Whatever happens, the newest whole LoRA stays published.

mod flight;
mod landing;
mod plan;
mod steps;
mod trouble;

use std::sync::atomic::{AtomicBool, Ordering};

use tenggat_plan::{Budget, Phase};

use crate::error::Result;
use crate::event::Event;
use crate::trainer::{Ask, Exit, Look, Session, Trainer};

pub use plan::{Known, Plan};

use flight::Flight;

/// Restarts in a row that may come no further than the one before, until the drive gives up.
const FRUITLESS: u32 = 2;

/// Seconds before the deadline from which nothing is waited for, at least.
const CLOSING_LEAST_S: f64 = 0.25;

/// What came of a drive.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Updates in the published LoRA; 0 if there is none.
    pub steps: u64,
    /// Why the training ended, in words.
    pub ended: String,
    /// Whether all steps that the job asks for were done, or time was what ended it: nothing was given up.
    pub as_planned: bool,
    /// Lives that the trainer's process had.
    pub sessions: u32,
    /// What was learnt of the trainer, for the next drive of this job.
    pub known: Known,
}

/// What a drive leaves on disk from time to time, so that an interrupted drive can be resumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// Seconds of the budget that are spent.
    pub spent_s: f64,
    /// Updates in the published LoRA.
    pub delivered: u64,
    /// The deadline on the run's clock.
    pub deadline_s: f64,
    /// What is known of the trainer.
    pub known: Known,
}

/// Whoever the pilot reports to, and takes orders from.
pub trait Tower {
    /// Takes news.
    fn show(&mut self, event: Event);

    /// Keeps a mark.
    fn keep(&mut self, mark: Mark);

    /// Seconds by which somebody asks the deadline to be moved, if anybody does.
    fn moved_by_s(&mut self, _now_s: f64, _deadline_s: f64) -> Option<f64> {
        None
    }

    /// Whether somebody has asked for a save since this was last called.
    fn wants_save(&mut self) -> bool {
        false
    }
}

/// What follows a session.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    /// The drive is over; whether as planned, and why.
    Done(bool, String),
    /// Another session.
    Again(Session),
}

struct Pilot<'a, T: Trainer> {
    trainer: &'a mut T,
    tower: &'a mut dyn Tower,
    stop: &'a AtomicBool,
    plan: Plan,
    deadline_s: f64,
    /// Updates in the published LoRA.
    delivered: u64,
    known: Known,
    session: Session,
    /// Sessions that were begun again to correct their number of steps.
    corrections: u32,
    /// Restarts since the published LoRA last grew.
    fruitless: u32,
    /// Entries of `on_out_of_memory` in use.
    shrink: usize,
    no_samples: bool,
    /// Cleared when the trainer did not go on where its file says: then nothing is restarted for a better
    /// schedule.
    resumes: bool,
    phase: Option<(Phase, f64)>,
    kept_s: f64,
    /// When the disk is looked at again.
    room_due_s: f64,
    /// Whether it is known to be too full.
    room_told: bool,
}

/// Flies the trainer until the budget is spent, the steps are done, or nothing more can be had.
///
/// # Errors
/// The budget makes no sense, or the trainer cannot be started at all. A trainer that fails later is no
/// error: the summary says what was delivered.
pub fn fly<T: Trainer>(
    trainer: &mut T,
    plan: Plan,
    tower: &mut dyn Tower,
    stop: &AtomicBool,
) -> Result<Summary> {
    let session = plan.first_session();
    let mut pilot = Pilot {
        deadline_s: plan.deadline_s,
        delivered: plan.delivered,
        known: plan.known,
        corrections: 0,
        fruitless: 0,
        shrink: 0,
        no_samples: false,
        resumes: true,
        phase: None,
        kept_s: 0.0,
        room_due_s: 0.0,
        room_told: false,
        trainer,
        tower,
        stop,
        session,
        plan,
    };
    loop {
        match pilot.one_session()? {
            Next::Again(session) => pilot.session = session,
            Next::Done(as_planned, ended) => {
                pilot.close_phase();
                pilot.mark();
                return Ok(Summary {
                    steps: pilot.delivered,
                    ended,
                    as_planned,
                    sessions: pilot.session.number,
                    known: pilot.known,
                });
            }
        }
    }
}

impl<T: Trainer> Pilot<'_, T> {
    /// Starts the trainer and sees it to its end.
    fn one_session(&mut self) -> Result<Next> {
        let now_s = self.trainer.now_s();
        let budget = Budget::new(self.plan.budget(self.deadline_s, &self.session, &self.known))?;
        self.trainer.start(&self.session)?;
        self.enter(Phase::Load);
        let mut flight = Flight::new(budget, now_s, self.session.from);
        loop {
            let look = self.trainer.look();
            let now_s = self.trainer.now_s();
            self.observe(&mut flight, &look, now_s);
            if let Some(exit) = look.exit.clone() {
                return Ok(self.after_exit(&mut flight, &exit, now_s));
            }
            if let Some(next) = self.decide(&mut flight, &look, now_s) {
                return Ok(next);
            }
            // Publishing takes time of its own.
            let now_s = self.trainer.now_s();
            self.trainer.wait(flight.poll_s(now_s, self.kill_s()));
        }
    }

    /// One round of decisions; `Some` ends the session without waiting for the process.
    fn decide(&mut self, flight: &mut Flight, look: &Look, now_s: f64) -> Option<Next> {
        self.follow_orders(flight, now_s);
        if now_s >= self.kill_s() {
            return Some(self.cut_off(flight, now_s));
        }
        if flight.is_landing() {
            return self.land(flight, look, now_s);
        }
        if self.stop.load(Ordering::Relaxed) {
            self.begin_landing(flight, look, now_s, Next::Done(true, "stopped by hand".into()));
        } else if flight.begun() {
            self.steer(flight, look, now_s);
        }
        if !flight.is_landing() {
            self.watch(flight, look, now_s);
        }
        if now_s - self.kept_s >= 2.0 {
            self.mark();
        }
        None
    }

    /// Moves the deadline if somebody asks for it.
    fn follow_orders(&mut self, flight: &mut Flight, now_s: f64) {
        let Some(by_s) = self.tower.moved_by_s(now_s, self.deadline_s) else { return };
        let Some(deadline_s) = flight.budget.extend(now_s, by_s) else { return };
        let by_s = deadline_s - self.deadline_s;
        self.deadline_s = deadline_s;
        self.tower.show(Event::DeadlineMoved { deadline_s, by_s });
        flight.forecast_due_s = 0.0;
    }

    /// The moment from which nothing is waited for any more.
    fn kill_s(&self) -> f64 {
        let closing_s = self.plan.margin_s.unwrap_or_else(|| (0.02 * self.plan.deadline_s).clamp(0.1, 0.75));
        // A kill and what follows it take their time on a busy machine.
        self.deadline_s - (0.5 * closing_s).max(CLOSING_LEAST_S.min(0.04 * self.plan.deadline_s))
    }

    /// Ends the process at once, whatever it does: the deadline is here.
    fn cut_off(&mut self, flight: &mut Flight, now_s: f64) -> Next {
        self.trainer.ask(Ask::Kill);
        let landed = flight.landing.take();
        match landed {
            Some(landing) if landing.is_saved() && self.delivered > 0 => match landing.next {
                Next::Done(as_planned, why) => Next::Done(as_planned, why),
                Next::Again(_) => Next::Done(true, "no time was left for a restart".into()),
            },
            _ if self.delivered > 0 && self.delivered >= flight.step => {
                Next::Done(true, format!("{} steps are done", self.delivered))
            }
            _ if self.delivered == 0 => {
                Next::Done(false, format!("the deadline came after {now_s:.0} s, before anything was saved"))
            }
            _ => Next::Done(
                false,
                format!(
                    "the deadline came before a save was done; the LoRA holds {} of {} steps",
                    self.delivered,
                    flight.step.max(self.delivered)
                ),
            ),
        }
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase.is_some_and(|(current, _)| current == phase) {
            return;
        }
        self.close_phase();
        self.phase = Some((phase, self.trainer.now_s()));
        self.tower.show(Event::PhaseStarted(phase));
    }

    fn close_phase(&mut self) {
        if let Some((phase, since_s)) = self.phase.take() {
            let seconds = self.trainer.now_s() - since_s;
            self.tower.show(Event::PhaseFinished { phase, seconds });
        }
    }

    fn mark(&mut self) {
        self.kept_s = self.trainer.now_s();
        self.tower.keep(Mark {
            spent_s: self.kept_s,
            delivered: self.delivered,
            deadline_s: self.deadline_s,
            known: self.known,
        });
    }

    /// The session after this one.
    fn next_session(&self, from: u64, steps: u64) -> Session {
        Session {
            number: self.session.number + 1,
            from,
            steps,
            no_samples: self.no_samples,
            shrink: self.shrink,
        }
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.tower.show(Event::Warning(text.into()));
    }

    fn note(&mut self, text: impl Into<String>) {
        self.tower.show(Event::Note(text.into()));
    }

    /// What came of a session whose process is gone.
    fn after_exit(&mut self, flight: &mut Flight, exit: &Exit, now_s: f64) -> Next {
        self.take_delivery(flight);
        if let Some(landing) = flight.landing.take() {
            self.known.stop_s = landing.stopped_s.map(|since_s| now_s - since_s).or(self.known.stop_s);
            return self.after_landing(flight, landing, now_s);
        }
        if exit.completed {
            return self.after_completion(flight, now_s);
        }
        self.after_failure(flight, exit, now_s)
    }
}
