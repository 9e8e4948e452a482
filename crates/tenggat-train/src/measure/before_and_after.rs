//! Held-out errors of the bare model and of the LoRA, measured in pairs, in parts small enough for any
//! budget.
//!
//! The bare model is measured before training, which also tells how long it takes. Afterwards the LoRA is
//! measured on the same pictures and noise, part by part while time allows; what is left at the very end goes
//! into more pairs of velocity errors. Only what was measured both ways counts.

use std::collections::{BTreeMap, BTreeSet};

use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_plan::{Budget, Clock, PartTime};
use tenggat_tensor::Tensor;

use super::score::{self, Extent, HeldOut, HeldOutError, Judge, LEVELS, Prompt, Scores};

/// Share of the budget that the picture errors may take each time; decides how many seeds there are.
const SHARE: f64 = 0.06;
/// Share of the time left that measuring the bare model may take on a machine that turns out to be slow or
/// busy. What it leaves out is not measured with the LoRA either, so that training keeps most of the budget.
const MOST_SHARE: f64 = 0.15;
/// Most seeds of the picture error.
const MAX_SEEDS: u64 = 4;
/// Most noises of the velocity error at each level.
const MAX_NOISES: u64 = 256;
/// Steps of the schedule that pictures are redrawn with, and the share of it that is run.
const STEPS: usize = 20;
const STRENGTH: f64 = 0.75;

/// Measurements of the bare model and, as far as they go, of the LoRA.
pub(crate) struct Scoring<'a> {
    judge: Judge<'a>,
    held: &'a [HeldOut],
    clock: &'a dyn Clock,
    seeds: u64,
    pictures: Vec<Pair>,
    velocities: Vec<Pair>,
    redraw_time: PartTime,
    velocity_time: PartTime,
}

/// One group of pictures with one noise, measured both ways.
struct Pair {
    group: usize,
    /// Seed of the picture's noise, or noise level of a velocity.
    seed: u64,
    bare: HeldOutError,
    trained: Option<HeldOutError>,
    /// Redrawn from the captions by the bare model and with the LoRA; kept for the first seed alone.
    redrawn: (Option<Tensor>, Option<Tensor>),
}

/// A group of held-out pictures, redrawn by the bare model and with the LoRA.
pub(crate) struct Redrawn<'a> {
    pub labels: &'a [String],
    pub truth: &'a Tensor,
    pub bare: &'a Tensor,
    pub trained: &'a Tensor,
}

impl<'a> Scoring<'a> {
    pub fn new(judge: Judge<'a>, held: &'a [HeldOut], clock: &'a dyn Clock) -> Self {
        let (redraw_time, velocity_time) = (PartTime::default(), PartTime::default());
        let (pictures, velocities) = (Vec::new(), Vec::new());
        Scoring { judge, held, clock, seeds: 0, pictures, velocities, redraw_time, velocity_time }
    }

    /// Measures the bare model: as many seeds as their share of the budget allows, one at least unless the
    /// machine is too slow for it.
    pub fn before(&mut self, deadline_s: Option<f64>) -> Result<Scores> {
        let began_s = self.clock.now_s();
        let until_s = deadline_s.map(|s| began_s + MOST_SHARE * (s - began_s));
        let late = |s: &Self| until_s.is_some_and(|until_s| s.clock.now_s() > until_s);
        let mut seeds = 1;
        'pictures: while self.seeds < seeds {
            for group in 0..self.held.len() {
                if late(self) && !self.pictures.is_empty() {
                    break 'pictures;
                }
                let (bare, redrawn) = self.redraw(group, None, self.seeds)?;
                let redrawn = ((self.seeds == 0).then_some(redrawn), None);
                self.pictures.push(Pair { group, seed: self.seeds, bare, trained: None, redrawn });
            }
            self.seeds += 1;
            if self.seeds == 1 {
                let one_s = (self.clock.now_s() - began_s).max(1e-3);
                let fit = deadline_s.map_or(MAX_SEEDS, |s| (s * SHARE / one_s) as u64);
                seeds = fit.clamp(1, MAX_SEEDS);
            }
        }
        'velocities: for level in spread() {
            for group in 0..self.held.len() {
                if late(self) {
                    break 'velocities;
                }
                let bare = self.velocity(group, None, level, 0)?;
                let pair = Pair { group, seed: level as u64, bare, trained: None, redrawn: (None, None) };
                self.velocities.push(pair);
            }
        }
        let picture = self.mean(&self.pictures, bare);
        let velocity = (!self.velocities.is_empty()).then(|| self.mean(&self.velocities, bare));
        let extent = self.extent(bare);
        Ok(Scores { trained: false, picture, velocity, seeds: self.seeds.max(1), extent })
    }

    /// Measures the LoRA on the same noise while the budget allows a further part.
    pub fn after(&mut self, lora: &Lora, budget: &mut Budget) -> Result<()> {
        for i in 0..self.pictures.len() {
            // The velocities come after the first seed, the other seeds after the velocities.
            if self.pictures[i].seed == 1 && self.velocities.iter().all(|v| v.trained.is_none()) {
                self.velocities_after(lora, budget)?;
            }
            if !budget.allows_part(self.clock.now_s(), self.redraw_time) {
                break;
            }
            let Pair { group, seed, .. } = self.pictures[i];
            let (error, redrawn) = self.redraw(group, Some(lora), seed)?;
            self.pictures[i].trained = Some(error);
            self.pictures[i].redrawn.1 = (seed == 0).then_some(redrawn);
        }
        if self.velocities.iter().all(|v| v.trained.is_none()) {
            self.velocities_after(lora, budget)?;
        }
        Ok(())
    }

    /// Scores of the bare model and of the LoRA on what was measured both ways; `None` if no picture was.
    pub fn compared(&self) -> Option<(Scores, Scores)> {
        let measured = |pairs: &[Pair]| pairs.iter().any(|p| p.trained.is_some());
        if !measured(&self.pictures) {
            return None;
        }
        let scores = |trained: bool| {
            let of = if trained { with_lora } else { both };
            let picture = self.mean(&self.pictures, of);
            let velocity = measured(&self.velocities).then(|| self.mean(&self.velocities, of));
            let whole = self.pictures.iter().filter(|p| p.trained.is_some()).map(|p| p.seed + 1).max();
            Scores { trained, picture, velocity, seeds: whole.unwrap_or(0), extent: self.extent(of) }
        };
        Some((scores(false), scores(true)))
    }

    /// Pictures redrawn both ways with the first seed.
    pub fn redrawn(&self) -> Vec<Redrawn<'_>> {
        let both =
            self.pictures.iter().filter_map(|p| Some((p, p.redrawn.0.as_ref()?, p.redrawn.1.as_ref()?)));
        both.map(|(pair, bare, trained)| {
            let held = &self.held[pair.group];
            Redrawn { labels: &held.labels, truth: &held.pictures, bare, trained }
        })
        .collect()
    }

    fn velocities_after(&mut self, lora: &Lora, budget: &mut Budget) -> Result<()> {
        for i in 0..self.velocities.len() {
            if self.velocities[i].trained.is_some() {
                continue;
            }
            if !budget.allows_part(self.clock.now_s(), self.velocity_time.times(2.0)) {
                break;
            }
            let Pair { group, seed, .. } = self.velocities[i];
            self.velocities[i].trained = Some(self.velocity(group, Some(lora), seed as usize, 0)?);
        }
        Ok(())
    }

    /// Spends what time is left on more noises for the velocity errors.
    pub fn fill(&mut self, lora: &Lora, budget: &mut Budget) -> Result<()> {
        if budget.deadline_s().is_none() {
            return Ok(());
        }
        // What was left out for the sake of the report, which may have been quicker.
        self.velocities_after(lora, budget)?;
        if self.velocities.iter().any(|v| v.trained.is_none()) {
            return Ok(());
        }
        for noise in 1..MAX_NOISES {
            for level in spread() {
                for group in 0..self.held.len() {
                    // Four parts: on a busy machine each may take long, and what a part may take stays
                    // unused.
                    let mut errors = [ZERO; 2];
                    for (error, lora) in errors.iter_mut().zip([None, Some(lora)]) {
                        for prompt in Prompt::ALL {
                            if !budget.allows_part(self.clock.now_s(), self.velocity_time) {
                                return Ok(());
                            }
                            *error.of_mut(prompt) = self.velocity_of(group, prompt, lora, level, noise)?;
                        }
                    }
                    let [bare, trained] = errors;
                    let (seed, trained, redrawn) = (level as u64, Some(trained), (None, None));
                    self.velocities.push(Pair { group, seed, bare, trained, redrawn });
                }
            }
        }
        Ok(())
    }

    /// Errors of one group with the captions and with the empty prompt, and the pictures from the captions.
    fn redraw(&mut self, group: usize, lora: Option<&Lora>, seed: u64) -> Result<(HeldOutError, Tensor)> {
        let began_s = self.clock.now_s();
        let held = &self.held[group];
        let redraw = self.judge.part_of_schedule(held, STEPS, STRENGTH);
        let pictures = self.judge.redraw(held, Prompt::Caption, lora, &redraw, seed)?;
        let captioned = mean(&score::squared_differences(&pictures, held)?);
        let without = self.judge.redraw(held, Prompt::Empty, lora, &redraw, seed)?;
        let empty = mean(&score::squared_differences(&without, held)?);
        self.redraw_time.observe(self.clock.now_s() - began_s);
        Ok((HeldOutError { captioned, empty }, pictures))
    }

    fn velocity(
        &mut self,
        group: usize,
        lora: Option<&Lora>,
        level: usize,
        noise: u64,
    ) -> Result<HeldOutError> {
        let captioned = self.velocity_of(group, Prompt::Caption, lora, level, noise)?;
        let empty = self.velocity_of(group, Prompt::Empty, lora, level, noise)?;
        Ok(HeldOutError { captioned, empty })
    }

    fn velocity_of(
        &mut self,
        group: usize,
        prompt: Prompt,
        lora: Option<&Lora>,
        level: usize,
        noise: u64,
    ) -> Result<f64> {
        let began_s = self.clock.now_s();
        let errors = self.judge.velocity(&self.held[group], prompt, lora, level, noise)?;
        self.velocity_time.observe(self.clock.now_s() - began_s);
        Ok(mean(&errors))
    }

    /// On how much that was measured which `of` picks.
    fn extent(&self, of: fn(&Pair) -> Option<HeldOutError>) -> Extent {
        let images = |group: usize| self.held[group].captions.lens.len();
        let measured = |pairs: &[Pair], key: fn(&Pair) -> u64| -> BTreeSet<u64> {
            pairs.iter().filter(|pair| of(pair).is_some()).map(key).collect()
        };
        let groups = measured(&self.pictures, |pair| pair.group as u64);
        Extent {
            images: groups.iter().map(|&group| images(group as usize)).sum(),
            all_images: (0..self.held.len()).map(images).sum(),
            levels: measured(&self.velocities, |pair| pair.seed).len(),
        }
    }

    /// Mean over pictures of what `of` picks from each pair: over the pairs of one group and level first, so
    /// that a level with more noises weighs no more than the others.
    fn mean(&self, pairs: &[Pair], of: fn(&Pair) -> Option<HeldOutError>) -> HeldOutError {
        let mut cells = BTreeMap::new();
        for (pair, error) in pairs.iter().filter_map(|p| Some((p, of(p)?))) {
            let cell: &mut (HeldOutError, f64) = cells.entry((pair.seed, pair.group)).or_insert((ZERO, 0.0));
            *cell = (plus(cell.0, error, 1.0), cell.1 + 1.0);
        }
        let weight = |group: usize| self.held[group].captions.lens.len() as f64;
        let total: f64 = cells.keys().map(|&(_, group)| weight(group)).sum();
        cells
            .iter()
            .fold(ZERO, |sum, (&(_, group), &(error, n))| plus(sum, error, weight(group) / (n * total)))
    }
}

/// The noise levels in an order in which any first few of them lie evenly over the range: errors differ much
/// from level to level, and time may run out in between.
fn spread() -> impl Iterator<Item = usize> {
    let bits = LEVELS.next_power_of_two().trailing_zeros();
    (0..1usize << bits).map(move |i| i.reverse_bits() >> (usize::BITS - bits)).filter(|level| *level < LEVELS)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

const ZERO: HeldOutError = HeldOutError { captioned: 0.0, empty: 0.0 };

fn bare(pair: &Pair) -> Option<HeldOutError> {
    Some(pair.bare)
}

/// The bare model's error where there is the LoRA's too.
fn both(pair: &Pair) -> Option<HeldOutError> {
    pair.trained.map(|_| pair.bare)
}

fn with_lora(pair: &Pair) -> Option<HeldOutError> {
    pair.trained
}

/// `a + weight · b`.
fn plus(a: HeldOutError, b: HeldOutError, weight: f64) -> HeldOutError {
    HeldOutError { captioned: a.captioned + weight * b.captioned, empty: a.empty + weight * b.empty }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_noise_levels_are_spread_over_all() {
        let order: Vec<usize> = spread().collect();
        assert_eq!(order[..4], [0, 8, 4, 12]);
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), LEVELS);
        // The mean of the first few levels is near that of all, which is 7.5.
        for n in [4, 8, 16] {
            let mean = order[..n].iter().sum::<usize>() as f64 / n as f64;
            assert!((mean - 7.5).abs() <= 1.5, "{n}: {mean}");
        }
    }
}
