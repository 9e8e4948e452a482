//! A running estimate of a duration that keeps changing.

/// Observations after which the median of the first ones gives way to the weighted mean.
const OPENING: usize = 5;
/// Weight of the newest observation in the mean: the memory is about eight observations, so that a card that
/// throttles is noticed within a few steps.
const NEWEST: f64 = 1.0 / 8.0;
/// Weight of the newest observation in the spread, which needs a longer memory to be steady.
const NEWEST_SPREAD: f64 = 1.0 / 24.0;
/// Observations further from the mean than this many mean deviations are pulled in ...
const CLIP: f64 = 5.0;
/// … until this many in a row lie on the same side: then the speed has changed, and they are taken as they
/// are.
const BELIEVED_IN_A_ROW: u32 = 3;
/// Smallest mean deviation assumed, as a share of the mean: clocks and schedulers are never better.
const LEAST_DEVIATION: f64 = 0.01;
/// Factor from mean deviation to standard deviation under a normal distribution, √(π/2).
const TO_STANDARD: f64 = 1.2533;
/// The largest excess over the mean that is remembered as a lesson, as a share of the mean. What lies beyond
/// is a stall, and stalls do not foretell the next step.
const LARGEST_LESSON: f64 = 2.0;
/// How the lesson of a slow step fades with each later step.
const FORGET_EXCESS: f64 = 0.98;

/// Mean and spread of positive durations with noise, heavy tails, drift and stalls.
///
/// The first five observations are summed up by their median, later ones by an exponentially weighted mean
/// that pulls outliers in. One stall of a minute therefore moves a mean of half a second by a few
/// milliseconds, while a lasting change of speed is believed after three observations.
#[derive(Debug, Clone, Default)]
pub(super) struct Estimate {
    count: u64,
    opening: [f64; OPENING],
    mean: f64,
    deviation: f64,
    excess: f64,
    above_in_a_row: u32,
    below_in_a_row: u32,
}

impl Estimate {
    /// Takes in one duration; anything but a finite positive number is ignored.
    pub(super) fn observe(&mut self, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        if (self.count as usize) < OPENING {
            self.open(seconds);
        } else {
            self.follow(seconds);
        }
        self.count += 1;
    }

    fn open(&mut self, seconds: f64) {
        let seen = self.count as usize;
        self.opening[seen] = seconds;
        let mut sorted = self.opening;
        let sorted = &mut sorted[..=seen];
        sorted.sort_by(f64::total_cmp);
        // The lower median: the first step of a run often pays for allocations that no later step pays for.
        self.mean = sorted[seen / 2];
        let spread =
            sorted.iter().map(|x| (x - self.mean).abs().min(self.mean)).sum::<f64>() / sorted.len() as f64;
        // With few observations the spread itself is uncertain; 10 % of the mean stands in for those missing.
        let missing = (OPENING - sorted.len()) as f64 / OPENING as f64;
        self.deviation = (spread + missing * 0.1 * self.mean).max(LEAST_DEVIATION * self.mean);
        self.remember_excess(seconds);
    }

    fn follow(&mut self, seconds: f64) {
        let reach = CLIP * self.deviation;
        let (low, high) = (self.mean - reach, self.mean + reach);
        self.above_in_a_row = if seconds > high { self.above_in_a_row + 1 } else { 0 };
        self.below_in_a_row = if seconds < low { self.below_in_a_row + 1 } else { 0 };
        let believed = self.above_in_a_row.max(self.below_in_a_row) >= BELIEVED_IN_A_ROW;
        let taken =
            if believed { seconds.clamp(self.mean / 4.0, self.mean * 4.0) } else { seconds.clamp(low, high) };
        self.remember_excess(seconds);
        let off = (taken - self.mean).abs();
        self.mean += NEWEST * (taken - self.mean);
        self.deviation += NEWEST_SPREAD * (off - self.deviation);
        self.deviation = self.deviation.max(LEAST_DEVIATION * self.mean);
    }

    fn remember_excess(&mut self, seconds: f64) {
        let excess = ((seconds - self.mean) / self.mean).clamp(0.0, LARGEST_LESSON);
        self.excess = (self.excess * FORGET_EXCESS).max(excess);
    }

    /// Number of observations taken in.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Mean in seconds; `None` before the first observation.
    pub(super) fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    /// Standard deviation, in the unit of the mean.
    pub(super) fn deviation(&self) -> f64 {
        TO_STANDARD * self.deviation
    }

    /// The largest recent excess over the mean, as a share of the mean.
    pub(super) fn recent_excess(&self) -> f64 {
        self.excess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(values: impl IntoIterator<Item = f64>) -> Estimate {
        let mut estimate = Estimate::default();
        values.into_iter().for_each(|x| estimate.observe(x));
        estimate
    }

    #[test]
    fn a_stall_is_not_mistaken_for_the_speed() {
        let mut values = vec![0.5; 40];
        values[0] = 60.0;
        values[20] = 60.0;
        let mean = after(values).mean().unwrap();
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }

    #[test]
    fn a_lasting_change_is_believed_within_a_few_steps() {
        let slower = after(std::iter::repeat_n(1.0, 50).chain(std::iter::repeat_n(3.0, 16)));
        assert!(slower.mean().unwrap() > 2.4, "{:?}", slower.mean());
        let faster = after(std::iter::repeat_n(1.0, 50).chain(std::iter::repeat_n(0.5, 16)));
        assert!(faster.mean().unwrap() < 0.62, "{:?}", faster.mean());
    }

    #[test]
    fn nonsense_is_ignored() {
        let estimate = after([f64::NAN, f64::INFINITY, -1.0, 0.0]);
        assert_eq!((estimate.count(), estimate.mean()), (0, None));
    }

    #[test]
    fn the_spread_of_even_noise_is_found() {
        // Alternating 0.9 and 1.1: standard deviation 0.1.
        let estimate = after((0..200).map(|k| if k % 2 == 0 { 0.9 } else { 1.1 }));
        assert!((0.08..0.15).contains(&estimate.deviation()), "{}", estimate.deviation());
        assert!(estimate.recent_excess() > 0.09);
    }

    /// The lower median; what is missing of five observations counts as a spread of 10 %.
    #[test]
    fn the_opening_is_summed_up_by_its_median() {
        let seen = [4.0, 1.0, 3.0, 2.0, 5.0];
        for (n, median) in [(1, 4.0), (2, 1.0), (3, 3.0), (4, 2.0), (5, 3.0)] {
            assert_eq!(after(seen[..n].iter().copied()).mean(), Some(median), "{n}");
        }
        let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        close(after([4.0]).deviation(), TO_STANDARD * 0.8 * 0.1 * 4.0);
        close(after(seen).deviation(), TO_STANDARD * (2.0 + 1.0 + 0.0 + 1.0 + 2.0) / 5.0);
        close(after([1.0; 5]).deviation(), TO_STANDARD * LEAST_DEVIATION);
        // An opening stall is no further from the mean than the mean itself.
        close(after([1.0, 1.0, 1.0, 1.0, 60.0]).deviation(), TO_STANDARD * 1.0 / 5.0);
    }

    /// Two far observations are pulled in to five deviations, the third in a row is believed, up to four
    /// times the mean.
    #[test]
    fn a_far_observation_is_pulled_in_until_the_third_in_a_row() {
        for (far, most) in [(100.0, 4.0), (0.001, 0.25)] {
            let mut estimate = after([1.0; 5]);
            for seen in 1..=3 {
                let (mean, reach) = (estimate.mean, CLIP * estimate.deviation);
                let taken = match (seen, far > 1.0) {
                    (3, _) => mean * most,
                    (_, true) => mean + reach,
                    (_, false) => mean - reach,
                };
                estimate.observe(far);
                assert!((estimate.mean - mean - NEWEST * (taken - mean)).abs() < 1e-12, "{far} {seen}");
            }
            // One at the mean ends the row.
            estimate.observe(estimate.mean);
            let (mean, reach) = (estimate.mean, CLIP * estimate.deviation);
            estimate.observe(far);
            assert!((estimate.mean - mean).abs() <= NEWEST * reach * (1.0 + 1e-9), "{far}");
        }
    }

    #[test]
    fn the_spread_moves_by_a_part_of_its_error() {
        let mut estimate = after([1.0; 5]);
        estimate.observe(1.03);
        let expected = LEAST_DEVIATION + NEWEST_SPREAD * (0.03 - LEAST_DEVIATION);
        assert!((estimate.deviation() - TO_STANDARD * expected).abs() < 1e-12, "{}", estimate.deviation());
        assert!((estimate.mean().unwrap() - 1.0 - NEWEST * 0.03).abs() < 1e-12);
        assert_eq!(estimate.count(), 6);
    }

    /// The excess over the mean before it; a stall counts as twice the mean; it fades by 2 % with each
    /// observation.
    #[test]
    fn a_slow_observation_is_remembered_and_fades() {
        let mut estimate = after([1.0; 5]);
        estimate.observe(1.5);
        assert!((estimate.recent_excess() - 0.5).abs() < 1e-12);
        estimate.observe(60.0);
        assert_eq!(estimate.recent_excess(), LARGEST_LESSON);
        estimate.observe(1.0);
        assert!((estimate.recent_excess() - LARGEST_LESSON * FORGET_EXCESS).abs() < 1e-12);
    }
}
