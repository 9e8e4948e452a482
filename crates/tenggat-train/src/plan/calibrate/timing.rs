//! Timing of several things side by side on a machine that has other things to do.

use tenggat_models::Result;
use tenggat_plan::Clock;

/// Rounds at least, whatever they take.
const FEWEST_ROUNDS: usize = 3;
/// Rounds that the time is shared out over.
const ROUNDS: f64 = 8.0;

/// Something to be timed, and its times so far.
pub struct Trial<'a> {
    run: Box<dyn FnMut() -> Result<()> + 'a>,
    /// Mean seconds of a run in each round.
    means: Vec<f64>,
}

impl<'a> Trial<'a> {
    /// A trial of `run`.
    pub fn new(run: impl FnMut() -> Result<()> + 'a) -> Self {
        Trial { run: Box::new(run), means: Vec::new() }
    }

    /// Seconds of a run: the median over the rounds.
    pub fn seconds(&self) -> f64 {
        median(&self.means)
    }

    /// As many runs as fit into the slot, one at least.
    fn round(&mut self, clock: &dyn Clock, slot_s: f64) -> Result<()> {
        let (began_s, mut runs) = (clock.now_s(), 0.0);
        loop {
            (self.run)()?;
            runs += 1.0;
            let elapsed_s = clock.now_s() - began_s;
            if elapsed_s >= slot_s {
                self.means.push(elapsed_s / runs);
                return Ok(());
            }
        }
    }
}

impl std::fmt::Debug for Trial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("means", &self.means).finish_non_exhaustive()
    }
}

/// Runs trials in turn, round after round, for about `limit_s` seconds in all.
///
/// In turn, so that a neighbour who comes or goes meets all of them alike; and means within a round, so that
/// short runs pay for interruptions in the same measure as long ones.
///
/// # Errors
/// What a trial returns.
pub fn in_turn(trials: &mut [Trial<'_>], clock: &dyn Clock, limit_s: f64) -> Result<()> {
    let began_s = clock.now_s();
    for trial in &mut *trials {
        (trial.run)()?; // warms caches and buffers
    }
    let slot_s = limit_s / ROUNDS / trials.len().max(1) as f64;
    let mut rounds = 0;
    while rounds < FEWEST_ROUNDS || clock.now_s() - began_s < limit_s * (1.0 - 0.5 / ROUNDS) {
        trials.iter_mut().try_for_each(|trial| trial.round(clock, slot_s))?;
        rounds += 1;
    }
    Ok(())
}

/// The middle one of some values; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => 0.0,
        _ => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use tenggat_plan::SimulatedClock;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_neighbour_who_stays_for_one_round_does_not_count() {
        let clock = SimulatedClock::default();
        let (limit_s, slowed) = (8.0, Cell::new(0));
        let busy = |now_s: f64| (2.0..2.0 + limit_s / ROUNDS).contains(&now_s);
        let work = |seconds: f64| {
            let (clock, slowed) = (&clock, &slowed);
            move || {
                let busy = busy(clock.now_s());
                slowed.set(slowed.get() + u32::from(busy));
                clock.advance(if busy { 3.0 * seconds } else { seconds });
                Ok(())
            }
        };
        let mut trials = [Trial::new(work(0.01)), Trial::new(work(0.2))];
        in_turn(&mut trials, &clock, limit_s).unwrap();
        assert!(slowed.get() > 0);
        assert!((trials[0].seconds() / 0.01 - 1.0).abs() < 0.05, "{trials:?}");
        assert!((trials[1].seconds() / 0.2 - 1.0).abs() < 0.05, "{trials:?}");
        assert!((7.0..10.0).contains(&clock.now_s()), "{}", clock.now_s());
    }
}
