//! What the loop writes: the state and the LoRA files, when they are due, and where the folder is.

use std::path::Path;

use tenggat_plan::{Budget, Clock};

use super::event::Event;
use super::folder::LAST;
use super::training::{State, Training};
use super::{Error, Result};

impl Training<'_, '_> {
    /// Writes the newest LoRA; where the best is to be delivered, only if it is the best so far.
    pub(super) fn save_last(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let began_s = clock.now_s();
        if state.is_skipping() {
            // Better none than one that may be worth nothing; the next is due as if this had been written.
            budget.observe_save(began_s, 0.0);
            return Ok(());
        }
        if self.choice.is_some() {
            // Measuring may take long.
            self.keep_state(state, budget, clock, show);
        }
        if let Some(choice) = &mut self.choice {
            let steps = budget.steps_done();
            let mut may_go_on = |part| budget.allows_part(clock.now_s(), part);
            let contender = choice.measure(state.best(), steps, &mut may_go_on)?;
            contender.iter().for_each(|contender| show(Event::Contender(*contender)));
            if !contender.is_some_and(|contender| contender.is_best) {
                let now_s = clock.now_s();
                budget.observe_save(now_s, now_s - began_s);
                return Ok(());
            }
        }
        let path = self.folder.file(LAST);
        self.save(&path, state, (budget, began_s), clock, show)?;
        Ok(())
    }

    /// Writes the LoRA with the lowest validation loss, if the job wants it.
    pub(super) fn save_best(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if self.job.save.best && budget.allows_save(clock.now_s()) {
            let (path, began_s) = (self.folder.best(), clock.now_s());
            self.save(&path, state, (budget, began_s), clock, show)?;
        }
        Ok(())
    }

    /// Writes what a run was about to write when it was cut off: its state comes before its LoRA files.
    pub(super) fn catch_up(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if std::mem::take(&mut self.best_is_due) {
            self.save_best(state, budget, clock, show)?;
        }
        self.folder.rotate(self.job.save.keep);
        if budget.steps_done() > 0 && !self.folder.numbered(self.named(budget)).exists() {
            self.save_numbered(state, budget, clock, show)?;
        }
        Ok(())
    }

    /// Follows the folder of the run if somebody renamed or removed it.
    pub(super) fn follow(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let followed = self.folder.follow(&self.job.text, &mut |text| show(Event::Warning(text)));
        let Some(followed) = followed else { return Ok(()) };
        show(Event::Warning(followed.told));
        self.requests.moved_to(self.folder.path());
        if followed.is_empty {
            let moved = self.metrics.move_to(&self.folder.file("metrics.jsonl")).and_then(|()| {
                crate::atomic::write(&self.folder.file("config.yaml"), self.job.text.as_bytes())
            });
            if let Err(e) = moved {
                show(Event::Warning(format!("the files of the run cannot be written again: {e}")));
            }
            self.save_last(state, budget, clock, show)?;
        }
        Ok(())
    }

    /// The file that the job asks for every so many steps, if there is time for it. None while updates are
    /// being skipped: it would push out one that is worth more. None after the last step: the finished LoRA
    /// is the same.
    pub(super) fn save_numbered(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (every, named) = (self.job.save.every, self.named(budget));
        let due = every > 0 && named > 0 && named.is_multiple_of(every);
        let is_last = budget.has_all_steps();
        if !due || is_last || state.is_skipping() || !budget.allows_save(clock.now_s()) {
            return Ok(());
        }
        let path = self.folder.numbered(named);
        let began_s = clock.now_s();
        if self.save(&path, state, (budget, began_s), clock, show)? {
            self.folder.wrote_numbered(path, self.job.save.keep);
        }
        Ok(())
    }

    /// The step that a numbered file is named after. ai-toolkit counts from 0 and saves after the update, so
    /// that its files hold one update more than they say.
    fn named(&self, budget: &Budget) -> u64 {
        let done = budget.steps_done();
        if self.job.compat.step_names { done.saturating_sub(1) } else { done }
    }

    /// Saves what no file holds yet before something that may take long: the newest LoRA, or where the best
    /// is to be delivered, the state alone.
    pub(super) fn save_before(
        &mut self,
        state: &State<'_>,
        budget: &mut Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if self.saved == budget.steps_done() || state.is_skipping() {
            return Ok(());
        }
        if self.choice.is_some() {
            self.keep_state(state, budget, clock, show);
            return Ok(());
        }
        self.save_last(state, budget, clock, show)
    }

    /// Writes the state of the run, if it is kept. The LoRA is safe without it, so that a failure is no more
    /// than told.
    fn keep_state(
        &mut self,
        state: &State<'_>,
        budget: &Budget,
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) {
        // The state counts on the lines of its steps; without them the LoRA comes out the same.
        if let Err(e) = self.metrics.sync() {
            show(Event::Warning(format!("metrics are not being written: {e}")));
        }
        match self.saver.save_state(&self.folder, state, budget, clock.now_s(), None) {
            Ok(()) if self.job.resume => self.has_saved(budget),
            Ok(()) => {}
            Err(e) => show(Event::Warning(format!(
                "the state of the run is not kept: {e}; the next save tries again, and an interrupted run \
                 would begin with an older one"
            ))),
        }
    }

    fn has_saved(&mut self, budget: &Budget) {
        self.saved = budget.steps_done();
        self.stop.set_unsaved(false);
    }

    /// Writes the state of the run and a LoRA; the time since `began_s` counts for it. The state comes first:
    /// a run that is killed between the two has all that it needs to write the LoRA. `last.safetensors` is
    /// the same afterwards, except where it is to be the best. A file that cannot be written is no more than
    /// told. Returns whether the LoRA is on disk.
    fn save(
        &mut self,
        path: &Path,
        state: &State<'_>,
        (budget, began_s): (&mut Budget, f64),
        clock: &dyn Clock,
        show: &mut dyn FnMut(Event),
    ) -> Result<bool> {
        let (lora, steps) = (state.best(), budget.steps_done());
        // Where the best is delivered, the state was kept before this was measured.
        if self.choice.is_none() || self.saved != steps {
            self.keep_state(state, budget, clock, show);
        }
        let mut saved = self.saver.save(lora, path, steps);
        let is_full = saved.as_ref().is_err_and(Error::is_disk_full);
        if is_full && path == self.folder.numbered(self.named(budget)) {
            let keep = self.job.save.keep;
            if self.folder.make_room_for_numbered(keep) {
                saved = self.saver.save(lora, path, steps);
            }
        }
        let last = self.folder.file(LAST);
        if self.choice.is_none() && path != last {
            saved = saved.and_then(|()| self.saver.deliver(path, &last, steps));
        }
        self.saver.told().into_iter().for_each(|text| show(Event::Warning(text)));
        let now_s = clock.now_s();
        budget.observe_save(now_s, now_s - began_s);
        match saved.map_err(|e| self.explained(state, e)) {
            Ok(()) => {
                if self.choice.is_none() {
                    self.last_at = Some(steps);
                    self.has_saved(budget);
                }
                show(Event::Saved { path: path.to_path_buf(), steps });
            }
            Err(e) if e.is_of_a_file() => {
                show(Event::Warning(format!("{e}; the training goes on, and the next save tries again")));
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
        Ok(true)
    }
}
