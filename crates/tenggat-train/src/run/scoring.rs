//! Held-out errors of the bare model and of the LoRA, measured in pairs, in parts small enough for any budget.
//!
//! The bare model is measured before training, which also tells how long it takes. Afterwards the LoRA is measured
//! on the same noise, part by part while time allows; what is left then goes into more pairs of velocity errors. Only
//! what was measured both ways counts.

use tenggat_models::lora::Lora;
use tenggat_plan::{Budget, Clock};
use tenggat_tensor::Tensor;

use super::Result;
use super::event::Scores;
use crate::score::{Error, HeldOut, Judge, LEVELS, Prompt, Redraw};

/// Share of the budget that the picture errors may take each time; decides how many seeds there are.
const SHARE: f64 = 0.06;
/// Most seeds of the picture error.
const MAX_SEEDS: usize = 4;
/// Most noises of the velocity error at each level.
const MAX_NOISES: u64 = 256;

/// Measurements of the bare model and, as far as they go, of the LoRA.
pub(super) struct Scoring<'a> {
    judge: Judge<'a>,
    held: &'a HeldOut,
    clock: &'a dyn Clock,
    pictures: Vec<Pair>,
    /// Sums by level.
    velocities: [Sum; LEVELS],
    /// Redrawn from their captions with the first seed: by the bare model, and with the LoRA.
    pub redrawn: (Option<Tensor>, Option<Tensor>),
    slowest_redraw_s: f64,
    slowest_velocity_s: f64,
}

/// Errors on the same noise.
#[derive(Clone, Copy)]
struct Pair {
    bare: Error,
    trained: Option<Error>,
}

/// Velocity errors of one level: sums, and how many.
#[derive(Clone, Copy)]
struct Sum {
    bare: Error,
    trained: Error,
    n: f64,
}

const ZERO: Error = Error { captioned: 0.0, empty: 0.0 };

impl<'a> Scoring<'a> {
    pub fn new(judge: Judge<'a>, held: &'a HeldOut, clock: &'a dyn Clock) -> Self {
        let velocities = [Sum { bare: ZERO, trained: ZERO, n: 0.0 }; LEVELS];
        let (slowest_redraw_s, slowest_velocity_s) = (0.0, 0.0);
        let (pictures, redrawn) = (Vec::new(), (None, None));
        Scoring { judge, held, clock, pictures, velocities, redrawn, slowest_redraw_s, slowest_velocity_s }
    }

    /// Measures the bare model: as many seeds as their share of the budget allows, one at least.
    pub fn before(&mut self, deadline_s: Option<f64>) -> Result<Scores> {
        let began_s = self.clock.now_s();
        let mut seeds = 1;
        while self.pictures.len() < seeds {
            let seed = self.pictures.len() as u64;
            let bare = self.redraw_both(None, seed, &mut || true)?.unwrap_or(ZERO);
            self.pictures.push(Pair { bare, trained: None });
            if seed == 0 {
                let one_s = (self.clock.now_s() - began_s).max(1e-3);
                let fit = deadline_s.map_or(MAX_SEEDS, |s| (s * SHARE / one_s) as usize);
                seeds = fit.clamp(1, MAX_SEEDS);
            }
        }
        for level in 0..LEVELS {
            self.velocities[level].bare = self.velocity_both(None, level, 0)?;
        }
        Ok(self.bare_scores())
    }

    /// Measures the LoRA on the same noise, then both on more noise, while the budget allows a further part.
    /// `None` if there was no time for one whole comparison.
    pub fn after(&mut self, lora: &Lora, budget: &mut Budget) -> Result<Option<(Scores, Scores)>> {
        for level in 0..LEVELS {
            if !budget.allows_part(self.clock.now_s(), self.slowest_velocity_s) {
                break;
            }
            self.velocities[level].trained = self.velocity_both(Some(lora), level, 0)?;
            self.velocities[level].n = 1.0;
        }
        for seed in 0..self.pictures.len() {
            let (clock, slowest_s) = (self.clock, self.slowest_redraw_s);
            let mut may = || budget.allows_part(clock.now_s(), slowest_s);
            match self.redraw_both(Some(lora), seed as u64, &mut may)? {
                Some(error) => self.pictures[seed].trained = Some(error),
                None => break,
            }
        }
        if budget.deadline_s().is_some() && self.velocities.iter().all(|v| v.n > 0.0) {
            self.fill(lora, budget)?;
        }
        Ok(self.compared())
    }

    /// Spends what time is left on more noises for the velocity errors.
    fn fill(&mut self, lora: &Lora, budget: &mut Budget) -> Result<()> {
        for draw in LEVELS as u64..LEVELS as u64 * MAX_NOISES {
            let (level, noise) = ((draw % LEVELS as u64) as usize, draw / LEVELS as u64);
            if !budget.allows_part(self.clock.now_s(), 2.0 * self.slowest_velocity_s) {
                break;
            }
            let bare = self.velocity_both(None, level, noise)?;
            let trained = self.velocity_both(Some(lora), level, noise)?;
            let sum = &mut self.velocities[level];
            (sum.bare, sum.trained) = (plus(sum.bare, bare, 1.0), plus(sum.trained, trained, 1.0));
            sum.n += 1.0;
        }
        Ok(())
    }

    /// Errors with the captions and with the empty prompt; `None` if `may` forbids one of them.
    fn redraw_both(
        &mut self,
        lora: Option<&Lora>,
        seed: u64,
        may: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Error>> {
        let mut errors = [0.0; 2];
        for (prompt, error) in Prompt::ALL.into_iter().zip(&mut errors) {
            if !may() {
                return Ok(None);
            }
            let began_s = self.clock.now_s();
            let (value, pictures) = self.judge.redraw(self.held, prompt, lora, Redraw::default(), seed)?;
            *error = value;
            self.slowest_redraw_s = self.slowest_redraw_s.max(self.clock.now_s() - began_s);
            let kept = if lora.is_some() { &mut self.redrawn.1 } else { &mut self.redrawn.0 };
            if prompt == Prompt::Caption && kept.is_none() {
                *kept = Some(pictures);
            }
        }
        Ok(Some(Error { captioned: errors[0], empty: errors[1] }))
    }

    fn velocity_both(&mut self, lora: Option<&Lora>, level: usize, noise: u64) -> Result<Error> {
        let began_s = self.clock.now_s();
        let captioned = self.judge.velocity(self.held, Prompt::Caption, lora, level, noise)?;
        let empty = self.judge.velocity(self.held, Prompt::Empty, lora, level, noise)?;
        self.slowest_velocity_s = self.slowest_velocity_s.max(self.clock.now_s() - began_s);
        Ok(Error { captioned, empty })
    }

    fn bare_scores(&self) -> Scores {
        let picture = mean(self.pictures.iter().map(|p| p.bare));
        let velocity = mean(self.velocities.iter().map(|v| v.bare));
        Scores { trained: false, picture, velocity, seeds: self.pictures.len() as u64 }
    }

    fn compared(&self) -> Option<(Scores, Scores)> {
        let pairs: Vec<(Error, Error)> =
            self.pictures.iter().filter_map(|p| p.trained.map(|trained| (p.bare, trained))).collect();
        let levels: Vec<&Sum> = self.velocities.iter().filter(|v| v.n > 0.0).collect();
        if pairs.is_empty() || levels.len() < LEVELS {
            return None;
        }
        let seeds = pairs.len() as u64;
        let velocity = |of: fn(&Sum) -> Error| mean(levels.iter().map(|v| plus(ZERO, of(v), 1.0 / v.n)));
        let bare = Scores {
            trained: false,
            picture: mean(pairs.iter().map(|p| p.0)),
            velocity: velocity(|v| v.bare),
            seeds,
        };
        let trained = Scores {
            trained: true,
            picture: mean(pairs.iter().map(|p| p.1)),
            velocity: velocity(|v| v.trained),
            seeds,
        };
        Some((bare, trained))
    }
}

/// `a + weight · b`.
fn plus(a: Error, b: Error, weight: f64) -> Error {
    Error { captioned: a.captioned + weight * b.captioned, empty: a.empty + weight * b.empty }
}

fn mean(errors: impl ExactSizeIterator<Item = Error>) -> Error {
    let share = 1.0 / errors.len().max(1) as f64;
    errors.fold(ZERO, |sum, e| plus(sum, e, share))
}
