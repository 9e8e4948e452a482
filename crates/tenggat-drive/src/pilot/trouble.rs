//! Trainers that become slow, hang or die.

use super::flight::{Flight, Landing};
use super::{FRUITLESS, Next, Pilot};
use crate::event::Event;
use crate::trainer::{Ask, Exit, Look, Stage, Trainer, Trouble};

/// Seconds between two looks at the disk, at most.
const ROOM_EVERY_S: f64 = 10.0;
/// Usual steps that a step may last before it is called a stall.
const STALL_STEPS: f64 = 12.0;
/// Stall limits after which the trainer is given up.
const STALLS_TO_RESTART: f64 = 3.0;

impl<T: Trainer> Pilot<'_, T> {
    /// Seconds without a step that are called a stall.
    pub(super) fn stall_s(&self, flight: &Flight, _now_s: f64) -> f64 {
        let least_s = (0.02 * self.deadline_s).clamp(0.3, 30.0);
        let usual_s = self.known.step_s.unwrap_or(0.0);
        // The first step may compile kernels.
        let first_s = if flight.measured == 0 { 0.1 * self.deadline_s } else { 0.0 };
        least_s.max(STALL_STEPS * usual_s).max(first_s)
    }

    /// Looks for what is out of the ordinary.
    pub(super) fn watch(&mut self, flight: &mut Flight, look: &Look, now_s: f64) {
        if !flight.begun() || look.stage != Stage::Training || flight.step >= self.session.steps {
            return;
        }
        self.watch_room(now_s);
        let running_s = flight.running_s(now_s);
        let stall_s = self.stall_s(flight, now_s);
        if flight.stall_told == 0 && running_s > stall_s {
            flight.stall_told = 1;
            let text = match self.known.step_s {
                Some(step_s) => format!("no step for {running_s:.1} s, though one takes {step_s:.2} s"),
                None => format!("no step yet, {running_s:.1} s after the training began"),
            };
            self.slowed(&text);
        }
        if flight.stall_told == 1 && running_s > STALLS_TO_RESTART * stall_s && self.may_restart(now_s) {
            flight.stall_told = 2;
            self.note("the trainer hangs; it is ended and restarted from its last whole LoRA");
            let steps = self.steps_after_loss(now_s);
            self.fruitless += 1;
            // It will not save, for it hangs; and with the wish to stop set it does not begin to.
            let next = Next::Again(self.next_session(self.delivered, steps));
            flight.landing = Some(Landing::without_save(next, now_s));
            self.trainer.ask(Ask::Stop);
            self.trainer.ask(Ask::Interrupt);
        }
    }

    /// Sees a disk fill up before a save fails, and makes room by the job's own rules.
    fn watch_room(&mut self, now_s: f64) {
        if now_s < self.room_due_s {
            return;
        }
        self.room_due_s = now_s + (0.005 * self.deadline_s).clamp(0.5, ROOM_EVERY_S);
        let Some(room) = self.trainer.room() else { return };
        if room.is_enough() {
            self.room_told = false;
            return;
        }
        let freed = self.trainer.make_room();
        if freed > 0 {
            self.note(format!("{}; old saves of {:.2} GB were removed", room.in_words(), freed as f64 / 1e9));
        }
        if room.free.saturating_add(freed) < room.needed && !self.room_told {
            self.room_told = true;
            self.warn(format!(
                "the disk is filling up: {}; remove files there, or it will fail",
                room.in_words()
            ));
        }
    }

    pub(super) fn slowed(&mut self, text: &str) {
        // Asking the driver may take seconds.
        let time = self.kill_s() - self.trainer.now_s() > 10.0;
        let clues = if time { self.trainer.clues() } else { Vec::new() };
        let clues: String = clues.iter().map(|clue| format!("; {clue}")).collect();
        self.tower.show(Event::Slowed(format!("{text}{clues}")));
    }

    /// Whether there is time and sense in starting again from the last whole LoRA.
    fn may_restart(&self, now_s: f64) -> bool {
        let steps_s = 5.0 * self.known.step_s.unwrap_or(0.0);
        let time = self.kill_s() - now_s > self.restart_s() + steps_s;
        time && (self.resumes || self.delivered == 0) && self.fruitless <= FRUITLESS
    }

    /// The steps to give a session that goes on from the published LoRA.
    fn steps_after_loss(&self, now_s: f64) -> u64 {
        let room_s = self.kill_s() - now_s - self.restart_s();
        let more = self.known.step_s.map(|step_s| (room_s / step_s).max(1.0) as u64);
        match more {
            Some(more) => self.plan.steps_for(Some(self.delivered + more)),
            None => self.session.steps,
        }
    }

    /// What follows a process that ended on its own and not as it should.
    pub(super) fn after_failure(&mut self, flight: &mut Flight, exit: &Exit, now_s: f64) -> Next {
        let said = exit.trouble.in_words();
        let said = if exit.words.is_empty() { said.to_string() } else { format!("{said}: {}", exit.words) };
        self.fruitless += 1;
        let lost = flight.step.saturating_sub(self.delivered);
        // A mistake in the job or the installation comes again with every start.
        let hopeless = !flight.begun() && self.session.number == 1 && exit.trouble == Trouble::Error;
        let shrinkable = exit.trouble == Trouble::OutOfMemory && self.shrink < self.plan.shrinks;
        let out_of_memory_again = exit.trouble == Trouble::OutOfMemory && !shrinkable && self.fruitless > 1;
        let full = exit.trouble == Trouble::DiskFull && self.trainer.make_room() == 0;
        if hopeless || out_of_memory_again || full || !self.may_restart(now_s) {
            return Next::Done(false, said);
        }
        if shrinkable {
            self.shrink += 1;
        }
        let shrunk = if shrinkable {
            format!(" with entry {} of `on_out_of_memory`", self.shrink)
        } else {
            String::new()
        };
        self.warn(format!(
            "{said}; {lost} steps are lost, and it is restarted from step {}{shrunk}",
            self.delivered
        ));
        let steps = self.steps_after_loss(now_s).max(self.delivered + 1);
        Next::Again(self.next_session(self.delivered, steps))
    }
}
