//! Decisions while the training runs, and the way to the end of a session: save, check, stop.

use tenggat_plan::{Decision, SampleVerdict};

use super::flight::{Flight, Landing, Wish};
use super::{Next, Pilot};
use crate::trainer::{Ask, Delivery, Look, Stage, Trainer};

/// Steps measured before the number of steps may be corrected: at once if it is far off, else after more.
const MEASURED_LEAST: u64 = 20;
const MEASURED_WELL: u64 = 50;
/// Most corrections of one drive.
const CORRECTIONS: u32 = 4;
/// Share of the budget that is not left over if another start leaves time for so many steps.
const LEFT_OVER: f64 = 0.04;
const MORE_LEAST: u64 = 10;
/// Times that a save is asked for.
const TRIES: u32 = 3;

enum Progress {
    Waiting,
    Done,
    Failed,
}

impl<T: Trainer> Pilot<'_, T> {
    /// Decides what to do with a trainer that takes steps.
    pub(super) fn steer(&mut self, flight: &mut Flight, look: &Look, now_s: f64) {
        if !self.resumes && !self.catches_up(flight, now_s) {
            let why = format!(
                "the trainer did not resume from step {}, and the time left is too short for that many steps",
                self.delivered
            );
            return self.begin_landing(flight, look, now_s, Next::Done(false, why));
        }
        if self.is_last_step(flight, now_s) {
            let why = match self.plan.asked() {
                Some(asked) => format!("no more of the {asked} steps fit"),
                None => "the budget is spent".into(),
            };
            return self.begin_landing(flight, look, now_s, Next::Done(true, why));
        }
        if let Some(mut wish) = flight.wish.take() {
            match self.follow(flight, &mut wish, look, now_s) {
                Progress::Waiting => flight.wish = Some(wish),
                Progress::Done => {}
                Progress::Failed => self.warn("the trainer did not save when asked; training continues"),
            }
            return;
        }
        if look.stage != Stage::Training {
            return;
        }
        if self.samples_endanger(flight, now_s) {
            return self.avoid_samples(flight, look, now_s);
        }
        if let Some(steps) = self.correction(flight, now_s) {
            self.corrections += 1;
            let session = self.next_session(flight.step, steps);
            return self.begin_landing(flight, look, now_s, Next::Again(session));
        }
        let due = flight.measured > 0 && flight.budget.decide(now_s, 0) == Decision::SaveLast;
        // The order is taken only here, where it is followed.
        if due || flight.step > self.delivered && self.tower.wants_save() {
            self.trainer.ask(Ask::Save);
            flight.wish = Some(Wish::new(now_s, flight.step));
        }
    }

    /// Whether a run that began anew will have more steps than what is published.
    fn catches_up(&mut self, flight: &mut Flight, now_s: f64) -> bool {
        let total = flight.budget.forecast(now_s).steps_total;
        flight.measured < 3 || total.is_none_or(|n| n > self.delivered)
    }

    /// Whether a save should be written after the step that is under way, because there is no time for one
    /// more.
    fn is_last_step(&mut self, flight: &mut Flight, now_s: f64) -> bool {
        let ends_s = match flight.mean_s(now_s) {
            Some(mean_s) => now_s.max(now_s - flight.running_s(now_s) + mean_s),
            None => now_s,
        };
        // The trainer ends by itself with its last step, and saves.
        if flight.step + 1 >= self.session.steps {
            return false;
        }
        matches!(flight.budget.clone().decide(ends_s, 0), Decision::Finish(_))
    }

    /// Whether the round of samples that is due after the step under way would endanger the end.
    fn samples_endanger(&mut self, flight: &mut Flight, now_s: f64) -> bool {
        if self.session.no_samples {
            return false;
        }
        let Some(due) = self.plan.last_step_before_samples(flight.step.saturating_sub(1)) else {
            return false;
        };
        let Some(mean_s) = flight.mean_s(now_s) else { return false };
        // The step under way has index `step`; the round follows the one of index `due`.
        let ahead = 1 + (0.05 / mean_s.max(1e-3)).ceil() as u64;
        if due > flight.step + ahead || flight.step < flight.from + 1 {
            return false;
        }
        let begins_s = now_s + mean_s * (due + 1 - flight.step.min(due)) as f64;
        matches!(flight.budget.clone().allows_samples(begins_s), SampleVerdict::WouldEndangerTheEnd)
    }

    /// Before a round of samples that may not end in time: ends here, or goes on without samples if the
    /// restart leaves more time than it takes.
    fn avoid_samples(&mut self, flight: &mut Flight, look: &Look, now_s: f64) {
        let spare_s = flight.budget.spare_s(now_s);
        let restart_s = self.restart_s();
        if self.resumes && spare_s > 2.0 * restart_s + 10.0 * flight.mean_s(now_s).unwrap_or(0.0) {
            self.no_samples = true;
            self.note("samples are skipped from now on: the next round would leave no time to save");
            let fit = self.fit_after_restart(flight, now_s);
            let session = self.next_session(flight.step, self.plan.steps_for(fit));
            return self.begin_landing(flight, look, now_s, Next::Again(session));
        }
        let why = "the next round of samples would have left no time to save".into();
        self.begin_landing(flight, look, now_s, Next::Done(true, why));
    }

    /// Seconds that a restart costs.
    pub(super) fn restart_s(&self) -> f64 {
        let load_s = self.known.load_s.unwrap_or(0.05 * self.deadline_s);
        load_s + self.plan.delivery_s(&self.known) + self.plan.stop_room_s(&self.known)
    }

    /// Steps that the run would have in all if it were restarted now.
    fn fit_after_restart(&self, flight: &mut Flight, now_s: f64) -> Option<u64> {
        let step_s = flight.mean_s(now_s)?;
        let room_s = flight.budget.spare_s(now_s) - self.restart_s();
        Some(flight.step + (room_s / step_s).max(0.0) as u64)
    }

    /// The number of steps that the trainer should be restarted with, if that pays for itself.
    fn correction(&mut self, flight: &mut Flight, now_s: f64) -> Option<u64> {
        if flight.measured < MEASURED_LEAST || !self.resumes || self.corrections >= CORRECTIONS {
            return None;
        }
        let fit = flight.budget.forecast(now_s).steps_total?;
        let given = self.session.steps;
        let too_few = self.plan.asked().is_none_or(|asked| given < asked) && given < fit;
        if !self.plan.anneals && !too_few {
            return None;
        }
        let wanted = self.plan.asked().map_or(fit, |asked| asked.min(fit));
        let off = (given as f64 - wanted as f64).abs() / wanted.max(1) as f64;
        let (spare_s, restart_s) = (flight.budget.spare_s(now_s), self.restart_s());
        if too_few {
            // While the pace is changing, what fits is not known yet, and another start would get a wrong
            // number.
            if !flight.fit.is_settled(flight.measured, fit) && flight.step + MEASURED_LEAST < given {
                return None;
            }
            // Time would be left over: a restart pays if it wins clearly more than it costs.
            let after = self.fit_after_restart(flight, now_s)?;
            let wanted = self.plan.asked().map_or(after, |asked| asked.min(after));
            let won = wanted.saturating_sub(given);
            let won_s = won as f64 * self.known.step_s.unwrap_or(0.0);
            let clearly = won as f64 > 0.05 * given as f64 && won_s > 0.5 * restart_s;
            return clearly.then(|| self.corrected(flight, now_s, wanted))?;
        }
        let price = restart_s / spare_s.max(1e-3);
        let tolerated = match (flight.measured >= MEASURED_WELL, self.corrections) {
            (false, _) => 0.15 + 2.0 * price,
            (true, 0) => 0.04 + 1.5 * price,
            (true, _) => 0.08 + 2.0 * price,
        };
        if off <= tolerated || spare_s < 5.0 * restart_s {
            return None;
        }
        self.corrected(flight, now_s, wanted)
    }

    /// The new number of steps, told.
    fn corrected(&mut self, flight: &mut Flight, now_s: f64, wanted: u64) -> Option<u64> {
        let given = self.session.steps;
        let steps = self.plan.steps_for(self.fit_after_restart(flight, now_s));
        if steps <= flight.step + 1 {
            return None;
        }
        self.note(format!(
            "the trainer was given {given} steps and about {wanted} fit; it saves and restarts with {steps}"
        ));
        Some(steps)
    }

    /// Begins the end of the session: a save first, if there is anything new to save.
    pub(super) fn begin_landing(&mut self, flight: &mut Flight, look: &Look, now_s: f64, next: Next) {
        let nothing_new = flight.step <= flight.from || flight.step <= self.delivered;
        let wish = flight.wish.take();
        let mut landing = Landing { next, wish, stopped_s: None, saved: false, interrupted: false };
        let idle = flight.begun() && nothing_new && landing.wish.is_none() && look.stage == Stage::Training;
        if !flight.begun() || idle {
            (landing.wish, landing.saved) = (None, true);
            self.ask_stop(&mut landing, now_s);
        } else if landing.wish.is_none() {
            self.trainer.ask(Ask::Save);
            landing.wish = Some(Wish::new(now_s, flight.step));
        }
        flight.landing = Some(landing);
    }

    fn ask_stop(&mut self, landing: &mut Landing, now_s: f64) {
        self.trainer.ask(Ask::Stop);
        landing.stopped_s = Some(now_s);
    }

    /// One look at a session that is coming to its end.
    pub(super) fn land(&mut self, flight: &mut Flight, look: &Look, now_s: f64) -> Option<Next> {
        let mut landing = flight.landing.take()?;
        if let Some(mut wish) = landing.wish.take() {
            match self.follow(flight, &mut wish, look, now_s) {
                Progress::Waiting if self.waits_in_vain(flight, &landing, &wish, now_s) => {
                    self.warn("the trainer does not respond; it is restarted from its last whole LoRA");
                    self.ask_stop(&mut landing, now_s);
                }
                Progress::Waiting => landing.wish = Some(wish),
                Progress::Done => {
                    landing.saved = true;
                    self.ask_stop(&mut landing, now_s);
                }
                Progress::Failed => {
                    self.warn("the last save did not arrive; the newest whole LoRA is an earlier one");
                    self.ask_stop(&mut landing, now_s);
                }
            }
        } else if let Some(since_s) = landing.stopped_s {
            self.press(flight, &mut landing, look, now_s - since_s, now_s);
        }
        flight.landing = Some(landing);
        None
    }

    /// Whether a session that is to be followed by another hangs instead of saving.
    fn waits_in_vain(&self, flight: &Flight, landing: &Landing, wish: &Wish, now_s: f64) -> bool {
        let again = matches!(landing.next, Next::Again(_));
        again && flight.stage == Stage::Training && now_s - wish.asked_s > 2.0 * self.stall_s(flight, now_s)
    }

    /// Makes a trainer that was asked to stop and does not do so end by stronger means. Nothing is lost by
    /// that: what it trained is published. A save that it writes is let end.
    fn press(&mut self, flight: &mut Flight, landing: &mut Landing, look: &Look, waited_s: f64, now_s: f64) {
        if look.stage == Stage::Saving {
            return;
        }
        let usual_s = self.known.stop_s.unwrap_or(1.0).clamp(0.2, 20.0);
        let step_s = flight.mean_s(now_s).unwrap_or(0.0);
        let patience_s = 2.0 * usual_s + if flight.begun() { 1.5 * step_s } else { 0.0 };
        let left_s = self.kill_s() - now_s + waited_s;
        let patience_s = patience_s.min(0.5 * left_s);
        if !landing.interrupted && waited_s > patience_s {
            landing.interrupted = true;
            self.trainer.ask(Ask::Interrupt);
        } else if landing.interrupted && waited_s > patience_s + (2.0 * usual_s).min(0.3 * left_s) {
            self.trainer.ask(Ask::Kill);
        }
    }

    /// Follows a save that was asked for.
    fn follow(&mut self, flight: &mut Flight, wish: &mut Wish, look: &Look, now_s: f64) -> Progress {
        if look.stage == Stage::Saving {
            wish.seen = true;
            wish.taken_s.get_or_insert(now_s);
            return Progress::Waiting;
        }
        if look.save_pending {
            return Progress::Waiting;
        }
        let taken_s = *wish.taken_s.get_or_insert(now_s);
        match self.take_delivery(flight) {
            Delivery::Delivered { .. } if self.delivered >= wish.at_step => return Progress::Done,
            Delivery::Spoilt { .. } => return Progress::Failed,
            Delivery::Delivered { .. } | Delivery::Nothing => {}
        }
        let patience_s = 0.5 + 3.0 * self.plan.delivery_s(&self.known);
        if now_s - taken_s < patience_s {
            return Progress::Waiting;
        }
        if wish.tries >= TRIES {
            return Progress::Failed;
        }
        self.trainer.ask(Ask::Save);
        *wish = Wish { tries: wish.tries + 1, ..Wish::new(now_s, flight.step) };
        Progress::Waiting
    }

    /// What follows a session that came to its end.
    pub(super) fn after_landing(&mut self, flight: &mut Flight, landing: Landing, now_s: f64) -> Next {
        match landing.next {
            Next::Done(as_planned, why) => {
                if !landing.saved && flight.step > self.delivered && self.resumes {
                    let why =
                        format!("{why}; the last {} steps could not be saved", flight.step - self.delivered);
                    return Next::Done(false, why);
                }
                Next::Done(as_planned, why)
            }
            Next::Again(session) => {
                let left_s = self.kill_s() - now_s - self.restart_s();
                if left_s <= 3.0 * self.known.step_s.unwrap_or(0.0) {
                    return Next::Done(true, "no time was left for a restart".into());
                }
                Next::Again(crate::trainer::Session { from: self.delivered, ..session })
            }
        }
    }

    /// What follows a trainer that did all the steps it was given.
    pub(super) fn after_completion(&mut self, flight: &mut Flight, now_s: f64) -> Next {
        let given = self.session.steps;
        if self.delivered < given.min(flight.step) {
            return Next::Done(
                false,
                format!("the trainer finished its {given} steps, but left no whole file of the last ones"),
            );
        }
        if self.plan.asked().is_some_and(|asked| given >= asked) {
            return Next::Done(true, format!("all {given} steps are done"));
        }
        let spare_s = self.kill_s() - now_s - self.restart_s();
        let more = self.known.step_s.map_or(0, |step_s| (spare_s / step_s).max(0.0) as u64);
        let much = self.deadline_s - now_s > LEFT_OVER * self.deadline_s;
        if self.resumes && more >= MORE_LEAST && (much || spare_s > 0.5 * self.restart_s()) {
            self.note(format!(
                "the trainer finished its {given} steps early; it continues with about {more} more"
            ));
            let steps = self.plan.steps_for(Some(self.delivered + more));
            return Next::Again(self.next_session(self.delivered, steps));
        }
        Next::Done(true, format!("the trainer finished its {given} steps"))
    }
}
