//! What the loop writes: the checkpoint and the LoRA files, when they are due, and where the folder is.

use std::path::Path;

use super::board::HeldOutMeasure;
use super::event::Event;
use super::names::LAST;
use super::timeline::Timeline;
use super::training::Training;
use super::{Error, Result};

impl Training<'_, '_> {
    /// Writes the newest LoRA; where the best is to be delivered, only if it is the best so far.
    pub(super) fn save_last(&mut self) -> Result<()> {
        let began_s = self.time.now_s();
        if self.trained.is_skipping() {
            // No file is better than one that may be worthless; the next is due as if this had been written.
            self.time.budget.observe_save(began_s, 0.0);
            return Ok(());
        }
        if self.choice.is_some() {
            // Measuring may take long.
            self.keep_state();
        }
        if let Some(choice) = &mut self.choice {
            let Timeline { clock, budget, .. } = &mut self.time;
            let steps = budget.steps_done();
            let mut may_go_on = |part| budget.allows_part(clock.now_s(), part);
            let contender = choice.measure(self.trained.best(), steps, &mut may_go_on)?;
            if let Some(contender) = contender {
                self.time.tell(Event::Contender(contender));
                self.board_error(steps, HeldOutMeasure::Velocity, contender.error);
            }
            if !contender.is_some_and(|contender| contender.is_best) {
                let now_s = self.time.now_s();
                self.time.budget.observe_save(now_s, now_s - began_s);
                return Ok(());
            }
        }
        self.save(&self.folder.file(LAST), began_s)?;
        Ok(())
    }

    /// Writes the LoRA with the lowest validation loss, if the job wants it.
    pub(super) fn save_best(&mut self) -> Result<()> {
        let began_s = self.time.now_s();
        if self.job.save.best && self.time.budget.allows_save(began_s) {
            self.save(&self.folder.best(), self.time.now_s())?;
        }
        Ok(())
    }

    /// Writes the LoRA files that an interrupted run was about to write: it writes its checkpoint before
    /// them.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        if std::mem::take(&mut self.best_is_due) {
            self.save_best()?;
        }
        self.folder.rotate(self.job.save.keep);
        if self.time.budget.steps_done() > 0 && !self.folder.numbered(self.named()).exists() {
            self.save_numbered()?;
        }
        Ok(())
    }

    /// Follows the folder of the run if somebody renamed or removed it.
    pub(super) fn follow(&mut self) -> Result<()> {
        let time = &mut self.time;
        let followed = self.folder.follow(&self.job.text, &mut |text| time.warn(text));
        let Some(followed) = followed else { return Ok(()) };
        time.warn(followed.told);
        self.requests.moved_to(self.folder.path());
        if followed.is_empty {
            let moved = self.metrics.move_to(&self.folder.file("metrics.jsonl")).and_then(|()| {
                crate::files::atomic::write(&self.folder.file("config.yaml"), self.job.text.as_bytes())
            });
            if let Err(e) = moved {
                time.warn(format!("the files of the run could not be written to its new folder: {e}"));
            }
            self.save_last()?;
        }
        Ok(())
    }

    /// The numbered file that the job wants at certain steps, if there is time for it. None while updates are
    /// being skipped: it would displace a better one. None after the last step: the finished LoRA is the
    /// same.
    pub(super) fn save_numbered(&mut self) -> Result<()> {
        let (every, named) = (self.job.save.every, self.named());
        let due = every > 0 && named > 0 && named.is_multiple_of(every);
        let budget = &mut self.time.budget;
        let is_last = budget.has_all_steps();
        if !due || is_last || self.trained.is_skipping() || !budget.allows_save(self.time.clock.now_s()) {
            return Ok(());
        }
        let path = self.folder.numbered(named);
        if self.save(&path, self.time.now_s())? {
            self.folder.wrote_numbered(path, self.job.save.keep);
        }
        Ok(())
    }

    /// The step that a numbered file is named after. ai-toolkit counts from 0 and saves after the update, so
    /// that its files hold one update more than they say.
    fn named(&self) -> u64 {
        let done = self.time.budget.steps_done();
        if self.job.compat.step_names { done.saturating_sub(1) } else { done }
    }

    /// Saves unsaved steps before something that may take long: as the newest LoRA, or, where the best is to
    /// be delivered, in the checkpoint alone.
    pub(super) fn save_before(&mut self) -> Result<()> {
        if self.saved == self.time.budget.steps_done() || self.trained.is_skipping() {
            return Ok(());
        }
        if self.choice.is_some() {
            self.keep_state();
            return Ok(());
        }
        self.save_last()
    }

    /// Writes the checkpoint, if the job keeps one. The LoRA is safe without it, so a failure is only a
    /// warning.
    fn keep_state(&mut self) {
        // The checkpoint relies on the metrics of its steps; without them the LoRA is the same.
        if let Err(e) = self.metrics.sync() {
            self.time.warn(format!("metrics are not being written: {e}"));
        }
        let now_s = self.time.now_s();
        match self.saver.save_state(&self.folder, &self.trained, &self.time.budget, now_s, None) {
            Ok(()) if self.job.resume => self.has_saved(),
            Ok(()) => {}
            Err(e) => self.time.warn(format!(
                "could not write the checkpoint: {e}; the next save tries again, and until then an \
                 interrupted run resumes from an older one"
            )),
        }
    }

    fn has_saved(&mut self) {
        self.saved = self.time.budget.steps_done();
        self.time.stop.set_unsaved(false);
    }

    /// Writes the checkpoint and a LoRA; the time since `began_s` counts for it. The checkpoint comes first:
    /// a run that is killed between the two has all that it needs to write the LoRA. `last.safetensors` is
    /// the same afterwards, except where it is to be the best. A file that cannot be written is only a
    /// warning. Returns whether the LoRA is on disk.
    fn save(&mut self, path: &Path, began_s: f64) -> Result<bool> {
        let steps = self.time.budget.steps_done();
        // Where the best is delivered, the checkpoint was written before this was measured.
        if self.choice.is_none() || self.saved != steps {
            self.keep_state();
        }
        let saved = self.write(path, steps);
        self.saver.told().into_iter().for_each(|text| self.time.warn(text));
        let now_s = self.time.now_s();
        self.time.budget.observe_save(now_s, now_s - began_s);
        match saved.map_err(|e| self.explained(e)) {
            Ok(()) => {
                if self.choice.is_none() {
                    self.last_at = Some(steps);
                    self.has_saved();
                }
                self.time.tell(Event::Saved { path: path.to_path_buf(), steps });
                Ok(true)
            }
            Err(e) if e.is_of_a_file() => {
                self.time.warn(format!("{e}; training continues, and the next save tries again"));
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Writes a LoRA, and `last.safetensors` with it, except where that is to be the best. A numbered one may
    /// take the place of the oldest on a full disk.
    fn write(&mut self, path: &Path, steps: u64) -> Result<()> {
        let mut saved = self.saver.save(self.trained.best(), path, steps);
        let is_full = saved.as_ref().is_err_and(Error::is_disk_full);
        if is_full
            && path == self.folder.numbered(self.named())
            && self.folder.make_room_for_numbered(self.job.save.keep)
        {
            saved = self.saver.save(self.trained.best(), path, steps);
        }
        let last = self.folder.file(LAST);
        if self.choice.is_none() && path != last {
            saved = saved.and_then(|()| self.saver.deliver(path, &last, steps));
        }
        saved
    }
}
