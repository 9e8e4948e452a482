//! Learning from what the trainer shows.

use tenggat_plan::{Budget, Phase};

use super::Pilot;
use super::flight::Flight;
use crate::event::{Event, Step};
use crate::trainer::{Delivery, Look, Stage, Trainer};

/// Seconds between two forecasts that are shown.
const FORECAST_EVERY: f64 = 60.0;

/// Moves a known duration towards a new one.
fn blend(known: &mut Option<f64>, seconds: f64) {
    *known = Some(known.map_or(seconds, |old| old + 0.3 * (seconds - old)));
}

impl<T: Trainer> Pilot<'_, T> {
    /// Takes in one look.
    pub(super) fn observe(&mut self, flight: &mut Flight, look: &Look, now_s: f64) {
        if look.stage != flight.stage {
            self.stage_changed(flight, look.stage, now_s);
        }
        let Some(step) = look.step else { return };
        if flight.begun() && !flight.checked {
            flight.checked = true;
            self.check_resume(flight, step, now_s);
        }
        if flight.begun() && step > flight.step {
            self.steps_done(flight, look, step, now_s);
        }
    }

    fn stage_changed(&mut self, flight: &mut Flight, stage: Stage, now_s: f64) {
        let spent_s = now_s - flight.stage_since_s;
        match flight.stage {
            Stage::Saving => {
                flight.paused_s += spent_s;
                blend(&mut self.known.save_s, spent_s);
            }
            Stage::Sampling if flight.begun() => {
                flight.paused_s += spent_s;
                flight.budget.observe_samples(now_s, spent_s);
                blend(&mut self.known.round_s, spent_s);
            }
            Stage::Sampling => {
                flight.first_round_s = spent_s;
                blend(&mut self.known.round_s, spent_s);
            }
            _ => {}
        }
        let ended = std::mem::replace(&mut flight.stage, stage);
        flight.stage_since_s = now_s;
        match stage {
            Stage::Training if !flight.begun() => self.training_began(flight, now_s),
            _ if flight.begun() => {}
            Stage::Starting | Stage::Loading => self.enter(Phase::Load),
            Stage::Quantising => self.enter(Phase::Quantise),
            Stage::Caching => self.enter(Phase::Cache),
            Stage::Sampling => self.enter(Phase::FirstSample),
            Stage::Saving | Stage::Training => {}
        }
        // A save of the trainer's own accord: what it wrote is published like any other.
        let own = flight.wish.is_none() && !flight.is_landing();
        if ended == Stage::Saving && own {
            self.take_delivery(flight);
        }
    }

    fn training_began(&mut self, flight: &mut Flight, now_s: f64) {
        flight.trains_since_s = Some(now_s);
        flight.step_at_s = now_s;
        flight.paused_s = 0.0;
        flight.budget.phase_started(Phase::Train, now_s);
        self.enter(Phase::Train);
        // What the next start will take: caches are there by then, and first samples are drawn once.
        let load_s = now_s - flight.started_s - flight.first_round_s;
        if self.session.number > 1 || self.known.load_s.is_none() {
            self.known.load_s = Some(load_s);
        }
    }

    /// Whether the trainer goes on where its file says; it has been seen to begin at 0.
    fn check_resume(&mut self, flight: &mut Flight, step: u64, now_s: f64) {
        let from = self.session.from;
        if step >= from {
            flight.step = step;
            return;
        }
        self.resumes = false;
        self.warn(format!(
            "the trainer began at step {step} although it was given a LoRA of {from} steps; the published \
             LoRA stays until this run has more steps"
        ));
        flight.step = step;
        let mut session = self.session.clone();
        session.from = step;
        if let Ok(mut budget) = Budget::new(self.plan.budget(self.deadline_s, &session, &self.known)) {
            budget.phase_started(Phase::Train, now_s);
            flight.budget = budget;
        }
        flight.from = step;
        self.session = session;
    }

    fn steps_done(&mut self, flight: &mut Flight, look: &Look, step: u64, now_s: f64) {
        let new = step - flight.step;
        let step_s = flight.running_s(now_s) / new as f64;
        for _ in 0..new.min(10_000) {
            // The answer counts when a decision is due; asking lets the budget follow the schedule.
            flight.budget.decide(now_s, 0);
            flight.budget.observe_step(now_s, 0, step_s);
        }
        flight.step = step;
        flight.step_at_s = now_s;
        // A save or a round that is under way began before this step was seen.
        flight.paused_s = 0.0;
        if matches!(flight.stage, Stage::Saving | Stage::Sampling) {
            flight.stage_since_s = now_s;
        }
        flight.measured += new;
        flight.stall_told = 0;
        let forecast = flight.budget.forecast(now_s);
        self.known.step_s = forecast.step_s;
        if let Some(slow) = forecast.step_s.and_then(|step_s| flight.pace.observe(new, step_s)) {
            flight.forecast_due_s = 0.0;
            self.slowed(&slow.to_string());
        }
        let total = match self.plan.asked() {
            Some(asked) => forecast.steps_total.map(|n| n.min(asked)),
            None => forecast.steps_total,
        };
        self.tower.show(Event::Step(Step {
            done: step,
            total,
            loss: look.loss,
            lr: look.lr,
            step_s,
            time_s: now_s,
            left_s: (self.deadline_s - now_s).max(0.0),
        }));
        if flight.measured >= 3 && now_s >= flight.forecast_due_s {
            flight.forecast_due_s = now_s + FORECAST_EVERY;
            self.tower.show(Event::Forecast(forecast));
        }
    }

    /// Publishes the trainer's newest file if it is whole and newer; returns what became of it.
    pub(super) fn take_delivery(&mut self, flight: &mut Flight) -> Delivery {
        // Publishing is not begun where it would not end in time: what is published stays whole.
        if self.trainer.now_s() + self.known.publish_s.unwrap_or(0.0) > self.kill_s() {
            return Delivery::Nothing;
        }
        let delivery = self.trainer.deliver(self.delivered, self.kill_s());
        match &delivery {
            Delivery::Nothing => {}
            Delivery::Delivered { path, steps, seconds } => {
                self.delivered = *steps;
                self.fruitless = 0;
                blend(&mut self.known.publish_s, *seconds);
                let now_s = self.trainer.now_s();
                flight.budget.observe_save(now_s, self.known.save_s.unwrap_or(0.0) + seconds);
                self.tower.show(Event::Saved { path: path.clone(), steps: *steps, seconds: *seconds });
                self.mark();
            }
            Delivery::Spoilt { path, why } => {
                let text = format!("{} is not published: {why}", path.display());
                self.warn(text);
            }
        }
        delivery
    }
}
