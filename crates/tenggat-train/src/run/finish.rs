//! Training and the phases after it: final save, final samples, score and report.

use std::path::PathBuf;
use std::sync::Arc;

use tenggat_plan::{FinishReason, Phase};

use super::board::HeldOutMeasure;
use super::choice::{Choice, Place};
use super::event::Event;
use super::names::LAST;
use super::report;
use super::state_file::End;
use super::stop::unless_interrupted;
use super::summary::Summary;
use super::timeline::{Ledger, Timed, Timeline};
use super::training::Training;
use super::{Error, Result};
use crate::measure::before_and_after::Scoring;
use crate::measure::score::Scores;

impl Training<'_, '_> {
    /// Trains and does all that comes after.
    ///
    /// # Errors
    /// The device failed, the training diverged, or the LoRA could not be saved.
    pub fn finish(mut self) -> Result<Summary> {
        let end = self.train()?;
        if end.is_none() && !self.has_new_steps() {
            return Ok(Summary::interrupted(self.job, self.time.budget.steps_done(), self.time.left_s()));
        }
        let lora = self.final_save(end)?;
        let steps = self.time.budget.steps_done();
        self.time.tell(Event::Saved { path: lora.clone(), steps });
        self.final_sample()?;
        self.score_after()?;
        self.report()?;
        let scores = self.last_scores()?;
        if !self.time.stop.is_requested() {
            self.folder.lock().tell_closed();
        }
        Ok(self.summary(lora, end.is_none(), scores))
    }

    /// The loop; `None` if somebody asked for the end.
    fn train(&mut self) -> Result<Option<FinishReason>> {
        self.phase(Phase::Train, |run| {
            let mut end = run.run();
            let steps = run.time.budget.steps_done();
            if let (Ok(_), Some(diverged)) = (&end, run.trained.diverged(steps)) {
                end = Err(diverged);
            }
            let last = run.folder.file(LAST);
            if matches!(end, Err(Error::Diverged { .. })) && !last.exists() {
                // Finite, and better than nothing.
                let saved = run.saver.save(run.trained.best(), &last, steps);
                saved.map_err(|e| run.explained(e))?;
            }
            let end = end?;
            if end.is_some() || run.has_new_steps() {
                run.follow()?;
            }
            Ok(end)
        })
    }

    fn has_new_steps(&self) -> bool {
        self.time.budget.steps_done() != self.steps_before
    }

    /// Writes the checkpoint and the LoRA under its final name; returns where it is.
    fn final_save(&mut self, end: Option<FinishReason>) -> Result<PathBuf> {
        self.phase(Phase::FinalSave, |run| {
            run.save_final_state(end);
            let last = run.folder.file(LAST);
            let steps = run.time.budget.steps_done();
            let saved = run.save_last_or_best(&last)?;
            let mut lora = run.folder.finished();
            if saved != last {
                lora = saved;
            } else if lora != last
                && let Err(e) = run.saver.deliver(&last, &lora, steps)
            {
                run.time.warn(format!("{e}; the LoRA is {}", last.display()));
                lora = last;
            }
            run.saver.told().into_iter().for_each(|text| run.time.warn(text));
            if end.is_some() {
                run.folder.lock().tell_delivered(steps);
            }
            run.time.stop.set_unsaved(false);
            Ok(lora)
        })
    }

    /// Writes the checkpoint before the LoRA, so that a run that is killed between them still delivers it. A
    /// failure does not stop the delivery.
    fn save_final_state(&mut self, end: Option<FinishReason>) {
        let end = end.map(|reason| if reason == FinishReason::StepsDone { End::Steps } else { End::Time });
        if let Err(e) = self.metrics.sync() {
            self.time.warn(format!("metrics are not being written: {e}"));
        }
        let now_s = self.time.now_s();
        let kept = self.saver.save_state(&self.folder, &self.trained, &self.time.budget, now_s, end);
        if let Err(e) = kept {
            self.time.warn(format!("could not write the checkpoint: {e}; this run cannot be resumed"));
        }
    }

    /// Makes sure that `last.safetensors` holds what is delivered; returns where it is, which is elsewhere if
    /// the folder has no room.
    fn save_last_or_best(&mut self, last: &std::path::Path) -> Result<PathBuf> {
        let Timeline { clock, show, stop, budget } = &mut self.time;
        let steps = budget.steps_done();
        let is_saved = self.last_at == Some(steps) && self.choice.is_none() && steps > 0 && last.exists();
        let (saver, folder, lora) = (&self.saver, &self.folder, self.trained.best());
        let mut measured = None;
        let saved = match &mut self.choice {
            // The newest numbered one has it as a second name.
            None if is_saved => Ok(last.to_path_buf()),
            None => saver.save_final(lora, last, steps),
            Some(choice) => {
                let mut may_go_on = |part| !stop.is_requested() && budget.allows_part(clock.now_s(), part);
                let mut tell = |event: Event| {
                    if let Event::Contender(contender) = &event {
                        measured = Some(*contender);
                    }
                    show(event);
                };
                choice.settle(lora, steps, Place { saver, folder }, &mut may_go_on, &mut tell)
            }
        };
        if let Some(contender) = measured {
            self.board_error(contender.steps, HeldOutMeasure::Velocity, contender.error);
        }
        saved.map_err(|e| self.explained(e))
    }

    /// Samples of the finished LoRA, if the last round was not of it and there is time.
    fn final_sample(&mut self) -> Result<()> {
        let steps = self.time.budget.steps_done();
        if self.sampling.as_ref().is_none_or(|sampling| sampling.has_drawn(steps))
            || self.time.stop.is_requested()
            || !self.time.allows(Phase::FinalSample)
        {
            return Ok(());
        }
        self.phase(Phase::FinalSample, |run| {
            let Some(sampling) = &mut run.sampling else { return Ok(()) };
            let Timeline { clock, show, budget, .. } = &mut run.time;
            let mut may_go_on = |part_s| budget.allows_part(clock.now_s(), part_s);
            let drawn = sampling.round(run.trained.best(), steps, &run.folder, &mut may_go_on, show);
            run.time.unless_of_a_file(unless_interrupted(drawn))?;
            run.board_samples(steps);
            Ok(())
        })
    }

    /// Measures the LoRA on the held-out images as the bare model was measured.
    fn score_after(&mut self) -> Result<()> {
        if self.scoring.is_none() || self.time.stop.is_requested() || !self.time.allows(Phase::ScoreAfter) {
            return Ok(());
        }
        self.phase(Phase::ScoreAfter, |run| {
            let Some(scoring) = &mut run.scoring else { return Ok(()) };
            let scored = scoring.after(run.trained.best(), &mut run.time.budget);
            unless_interrupted(scored.map_err(Error::from))?;
            Ok(())
        })
    }

    /// Renders the loss curve and the sheet of held-out images.
    fn report(&mut self) -> Result<()> {
        if !self.options.report || !self.time.allows(Phase::Report) {
            return Ok(());
        }
        self.phase(Phase::Report, |run| {
            // The loss curve renders quickly, the sheet does not.
            let scored = run.scoring.as_ref().filter(|_| !run.time.stop.is_requested());
            let pictures = scored.map(Scoring::redrawn).unwrap_or_default();
            run.live_curve.finish();
            let curve = (&run.trained.curve[..], &run.resumes[..]);
            let written = report::write(run.job, &run.folder, curve, &pictures, run.time.show);
            run.time.unless_of_a_file(written)?;
            Ok(())
        })
    }

    /// Spends the time left on finer scores of the bare model and of the LoRA, and reports them.
    fn last_scores(&mut self) -> Result<Option<(Scores, Scores)>> {
        let Some(scoring) = &mut self.scoring else { return Ok(None) };
        let is_stopped = self.time.stop.is_requested();
        if !is_stopped {
            let filled = scoring.fill(self.trained.best(), &mut self.time.budget);
            unless_interrupted(filled.map_err(Error::from))?;
        }
        let compared = scoring.compared();
        if let Some((bare, trained)) = &compared {
            let (weights, steps) = (self.job.held_out_weights, self.time.budget.steps_done());
            for (step, scores) in [(0, bare), (steps, trained)] {
                let scored = scores.weighed(weights);
                self.board_error(step, HeldOutMeasure::Picture, scored.picture);
                if let Some(velocity) = scored.velocity {
                    self.board_error(step, HeldOutMeasure::Velocity, velocity);
                }
            }
        }
        match compared {
            Some((_, trained)) => self.time.tell(Event::Scored(trained.weighed(self.job.held_out_weights))),
            None if self.time.stop.is_requested() => {}
            None => self.time.warn("no time was left to score the LoRA; it is saved"),
        }
        Ok(compared)
    }

    /// What came out.
    fn summary(self, lora: PathBuf, interrupted: bool, scores: Option<(Scores, Scores)>) -> Summary {
        let steps = self.time.budget.steps_done();
        let trained_s = self.time.budget.records().iter().find(|record| record.phase == Phase::Train);
        let trained_s = trained_s.and_then(|record| Some(record.finished_s? - record.started_s));
        let taken = steps.saturating_sub(self.steps_before).max(1);
        let (before, after) = scores.unzip();
        Summary {
            lora,
            interrupted,
            steps,
            step_s: trained_s.unwrap_or(0.0) / taken as f64,
            left_s: self.time.left_s(),
            before,
            after,
            chosen: self.choice.as_ref().map(Choice::first_and_best),
            lock: Some(Arc::new(self.folder.into_lock())),
        }
    }
}
