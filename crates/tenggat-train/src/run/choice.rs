//! `deliver: best`: among the LoRAs of a run, the one with the lowest held-out error is delivered. The error
//! is the velocity error of the timed contest at all its noise levels, on the same noise for every contender.

use std::path::PathBuf;

use tenggat_models::lora::Lora;
use tenggat_plan::{Clock, PartTime};

use super::Result;
use super::event::{Contender, Event};
use super::folder::RunFolder;
use super::names::LAST;
use super::saving::Saver;
use super::stop::unless_interrupted;
use crate::job::ErrorWeights;
use crate::measure::score::{HeldOut, HeldOutError, Judge, LEVELS, Prompt};

/// Share of the budget that one measurement may take; below it, more noises are used; above it, there is no
/// choice.
const SHARE: f64 = 0.005;
const MOST_SHARE: f64 = 0.04;
/// Most noises at each level.
const MAX_NOISES: u64 = 4;

/// Where a LoRA is written, and by what.
pub(super) struct Place<'a> {
    pub saver: &'a Saver<'a>,
    pub folder: &'a RunFolder,
}

/// Measures contenders and remembers the best.
pub(super) struct Choice<'a> {
    judge: Judge<'a>,
    held: &'a [HeldOut],
    clock: &'a dyn Clock,
    noises: u64,
    part: PartTime,
    /// Seconds of a whole measurement.
    seconds: f64,
    weights: ErrorWeights,
    first: Contender,
    best: Contender,
    /// Whether the last measured contender was the best.
    improving: bool,
}

impl<'a> Choice<'a> {
    /// Measures what the run begins with, which is the first contender. `None` if that takes too much of the
    /// budget.
    ///
    /// # Errors
    /// The device failed.
    pub fn new(
        judge: Judge<'a>,
        held: &'a [HeldOut],
        clock: &'a dyn Clock,
        lora: &Lora,
        steps: u64,
        deadline_s: Option<f64>,
        weights: ErrorWeights,
    ) -> Result<Option<Self>> {
        let began_s = clock.now_s();
        let none = HeldOutError { captioned: 0.0, empty: 0.0 }.weighed(weights);
        let first = Contender { steps, error: none, is_best: true };
        let (part, seconds) = (PartTime::default(), 0.0);
        let mut choice = Choice {
            judge,
            held,
            clock,
            noises: 1,
            part,
            seconds,
            weights,
            first,
            best: first,
            improving: true,
        };
        let left_s = deadline_s.map(|s| (s - began_s).max(0.0));
        let mut in_time = |_| left_s.is_none_or(|s| clock.now_s() - began_s < MOST_SHARE * s);
        let Some(mut error) = choice.error(lora, &mut in_time)? else { return Ok(None) };
        let fit = left_s.map_or(MAX_NOISES, |s| (SHARE * s / choice.seconds.max(1e-6)) as u64);
        if fit > 1 {
            choice.noises = fit.min(MAX_NOISES);
            match choice.error(lora, &mut in_time)? {
                Some(finer) => error = finer,
                None => choice.noises = 1,
            }
        }
        choice.first.error = error.weighed(weights);
        choice.best = choice.first;
        Ok(Some(choice))
    }

    /// Seconds of one measurement.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// What the run began with, and the best so far.
    pub fn first_and_best(&self) -> (Contender, Contender) {
        (self.first, self.best)
    }

    /// Measures a LoRA; `None` if there was no time to do it whole.
    ///
    /// # Errors
    /// The device failed.
    pub fn measure(
        &mut self,
        lora: &Lora,
        steps: u64,
        may_go_on: &mut dyn FnMut(PartTime) -> bool,
    ) -> Result<Option<Contender>> {
        let Some(error) = self.error(lora, may_go_on)? else { return Ok(None) };
        let error = error.weighed(self.weights);
        let is_best = error.total < self.best.error.total;
        let contender = Contender { steps, error, is_best };
        self.improving = is_best;
        if is_best {
            self.best = contender;
        }
        Ok(Some(contender))
    }

    /// Decides between the LoRA of the last step and the best before it, so that `last.safetensors` holds the
    /// winner. It is written before it is measured: the measurement may take what time is left. Without time
    /// for it the last step wins if the errors had been falling. Returns where the winner is, which is
    /// elsewhere if the folder has no room.
    ///
    /// # Errors
    /// The device failed, or a file cannot be written.
    pub fn settle(
        &mut self,
        lora: &Lora,
        steps: u64,
        Place { saver, folder }: Place<'_>,
        may_go_on: &mut dyn FnMut(PartTime) -> bool,
        show: &mut dyn FnMut(Event),
    ) -> Result<PathBuf> {
        let (last, numbered) = (folder.file(LAST), folder.numbered(steps));
        let was_there = numbered.exists();
        let is_kept = match saver.save(lora, &numbered, steps) {
            Err(e) if e.is_of_a_file() => false,
            done => done.map(|()| true)?,
        };
        let wins = match unless_interrupted(self.measure(lora, steps, may_go_on))?.flatten() {
            Some(contender) => {
                show(Event::Contender(contender));
                contender.is_best
            }
            None => self.improving,
        };
        if wins && !is_kept {
            return saver.save_final(lora, &last, steps);
        }
        if wins {
            saver.deliver(&numbered, &last, steps)?;
            if !was_there {
                // Should it stay, it is one numbered file more.
                let _ = std::fs::remove_file(&numbered);
            }
        }
        Ok(last)
    }

    fn error(
        &mut self,
        lora: &Lora,
        may_go_on: &mut dyn FnMut(PartTime) -> bool,
    ) -> Result<Option<HeldOutError>> {
        let began_s = self.clock.now_s();
        let mut sum = HeldOutError { captioned: 0.0, empty: 0.0 };
        let mut pictures = 0;
        for held in self.held {
            pictures += held.digests.len();
            for level in 0..LEVELS {
                for number in 0..self.noises {
                    for prompt in Prompt::ALL {
                        if !may_go_on(self.part) {
                            return Ok(None);
                        }
                        let part_s = self.clock.now_s();
                        let errors = self.judge.velocity(held, prompt, Some(lora), level, number)?;
                        *sum.of_mut(prompt) += errors.iter().sum::<f64>();
                        self.part.observe(self.clock.now_s() - part_s);
                    }
                }
            }
        }
        self.seconds = self.clock.now_s() - began_s;
        let cases = ((pictures * LEVELS) as f64 * self.noises as f64).max(1.0);
        Ok(Some(HeldOutError { captioned: sum.captioned / cases, empty: sum.empty / cases }))
    }
}
