//! How long the next step of each shape bucket will take.

use super::config::BucketConfig;
use super::estimate::Estimate;

/// Weight of one observation on what is known of its bucket once the bucket is well known.
const BUCKET_MEMORY: f64 = 1.0 / 16.0;
/// Largest change of a well-known bucket believed from one observation, as a logarithm.
const BUCKET_CLIP: f64 = 0.25;
/// Largest weight of one step in the average speed over a longer time.
const STEADY_MOST: f64 = 1.0 / 8.0;
/// Steps after which the speed at the opening of the training is taken as known.
const OPENING_STEPS: u64 = 5;
/// Buckets told apart; no data set has as many, and an index gone wrong must not take all memory.
const MOST_BUCKETS: usize = 1024;
/// Relative standard deviation of a forecast that nothing has been measured for yet.
const UNMEASURED_DEVIATION: f64 = 0.3;

/// Step times by shape bucket.
///
/// A step's time is taken as *bucket* × *speed*: each bucket has its own base time, and one speed factor,
/// followed by every step of whatever bucket, carries throttling and neighbours. A bucket that comes up once
/// in fifty steps is thereby forecast with today's speed. A forecast that is wrong by the same factor for all
/// buckets is corrected for all of them by the first steps of any.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    buckets: Vec<Bucket>,
    speed: Estimate,
    /// The bucket most often seen in the first steps, and its seconds per step then.
    opening: Option<(usize, f64)>,
    /// The speed factor averaged over about `steady_over_s`.
    steady_speed: f64,
    steady_over_s: f64,
    observed: u64,
}

#[derive(Debug, Clone)]
struct Bucket {
    /// Seconds at speed factor 1, from the plan or the first observation.
    base_s: Option<f64>,
    /// Share of the steps, as planned.
    planned_share: Option<f64>,
    observed: u64,
}

/// Whether a number can be the duration of a step in seconds (or a share): between a nanosecond and
/// centuries.
fn plausible(value: f64) -> bool {
    (1e-9..=1e10).contains(&value)
}

/// What is expected of one step of a random bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StepTime {
    pub(super) mean_s: f64,
    pub(super) deviation_s: f64,
}

impl Pace {
    /// `steady_over_s`: how far back [`Pace::slowdown`] looks.
    pub(super) fn new(buckets: &[BucketConfig], steady_over_s: f64) -> Self {
        let buckets = buckets
            .iter()
            .map(|bucket| Bucket {
                base_s: bucket.step_s.filter(|s| plausible(*s)),
                planned_share: bucket.share.filter(|s| plausible(*s)),
                observed: 0,
            })
            .collect();
        Self {
            buckets,
            speed: Estimate::default(),
            opening: None,
            steady_speed: 1.0,
            steady_over_s,
            observed: 0,
        }
    }

    /// Takes in the duration of one step; anything but a finite positive number is ignored.
    pub(super) fn observe(&mut self, bucket: usize, seconds: f64) {
        if !plausible(seconds) {
            return;
        }
        let bucket = bucket.min(MOST_BUCKETS - 1);
        self.make_room_for(bucket);
        let base_s = self.buckets[bucket].base_s.unwrap_or(seconds / self.speed_factor());
        self.buckets[bucket].base_s = Some(base_s);
        self.speed.observe(seconds / base_s);
        let known = self.buckets[bucket].observed;
        let surprise = (seconds / (base_s * self.speed_factor())).ln();
        // A bucket whose speed differs from the forecast is corrected quickly at first, then slowly; with one
        // bucket the speed says it all.
        if self.buckets.len() > 1 {
            let weight = (1.0 / (known as f64 + 2.0)).max(BUCKET_MEMORY);
            let clip = if known < 3 { f64::MAX } else { BUCKET_CLIP };
            let moved = base_s * (weight * surprise.clamp(-clip, clip)).exp();
            if plausible(moved) {
                self.buckets[bucket].base_s = Some(moved);
            }
        }
        self.buckets[bucket].observed += 1;
        self.observed += 1;
        self.follow_speed(seconds);
    }

    fn follow_speed(&mut self, seconds: f64) {
        let speed = self.speed_factor();
        if self.opening.is_some() {
            let weight = (seconds / self.steady_over_s).min(STEADY_MOST);
            self.steady_speed += weight * (speed - self.steady_speed);
            return;
        }
        self.steady_speed = speed;
        if self.observed >= OPENING_STEPS {
            let buckets = 0..self.buckets.len();
            let most_seen = buckets.max_by_key(|b| self.buckets[*b].observed);
            self.opening = most_seen.and_then(|b| Some((b, self.bucket_mean_s(b)?)));
        }
    }

    fn make_room_for(&mut self, bucket: usize) {
        // A bucket the plan did not know of: it must not be an error in the middle of a run.
        while self.buckets.len() <= bucket {
            self.buckets.push(Bucket { base_s: None, planned_share: None, observed: 0 });
        }
    }

    fn speed_factor(&self) -> f64 {
        self.speed.mean().unwrap_or(1.0)
    }

    /// Step times now, as a multiple of those at the beginning of the training, within `[0.25, 8]`.
    ///
    /// Averaged over longer than a few steps: the cost of the phases after the training is multiplied by it,
    /// and with minutes of scoring to come a trembling factor would move the end of the training by many
    /// steps each step.
    pub(super) fn slowdown(&self) -> f64 {
        let Some((bucket, opening_s)) = self.opening else {
            return 1.0;
        };
        let base_s = self.buckets[bucket].base_s.unwrap_or(opening_s);
        (base_s * self.steady_speed / opening_s).clamp(0.25, 8.0)
    }

    /// Relative standard deviation of a step about its bucket's mean. A spread seen in `n` steps may itself
    /// be wrong, for which it is raised by `√(1 + 8/n)`.
    pub(super) fn relative_deviation(&self) -> f64 {
        match self.speed.mean() {
            Some(mean) => {
                let doubt = (1.0 + 8.0 / self.speed.count() as f64).sqrt();
                doubt * self.speed.deviation() / mean
            }
            None => UNMEASURED_DEVIATION,
        }
    }

    /// The largest recent excess of a step over its mean, as a share of the mean.
    pub(super) fn recent_excess(&self) -> f64 {
        self.speed.recent_excess()
    }

    /// Expected seconds of a step of `bucket`; `None` if nothing at all is known.
    pub(super) fn bucket_mean_s(&self, bucket: usize) -> Option<f64> {
        let known = self.buckets.get(bucket).and_then(|b| b.base_s);
        match known {
            Some(base_s) => Some(base_s * self.speed_factor()),
            // Unknown bucket: as slow as the slowest known one.
            None => self.slowest_bucket_s(),
        }
    }

    /// Expected seconds of a step of the slowest bucket; `None` if nothing is known.
    pub(super) fn slowest_bucket_s(&self) -> Option<f64> {
        let bases = self.buckets.iter().filter_map(|b| b.base_s);
        let slowest = bases.max_by(f64::total_cmp)?;
        Some(slowest * self.speed_factor())
    }

    /// Mean and spread over the mixture of buckets, the spread including the differences between buckets.
    pub(super) fn mixture(&self) -> Option<StepTime> {
        let speed = self.speed_factor();
        let (mut weights, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for bucket in &self.buckets {
            let Some(base_s) = bucket.base_s else {
                continue;
            };
            let weight = self.weight(bucket);
            let seconds = base_s * speed;
            weights += weight;
            sum += weight * seconds;
            squares += weight * seconds * seconds;
        }
        if weights <= 0.0 {
            return None;
        }
        let mean_s = sum / weights;
        let within = self.relative_deviation();
        let square = squares / weights;
        let between = (square - mean_s * mean_s).max(0.0);
        let deviation_s = (square * within * within + between).sqrt();
        Some(StepTime { mean_s, deviation_s })
    }

    fn weight(&self, bucket: &Bucket) -> f64 {
        match bucket.planned_share {
            Some(share) => share,
            None if self.observed == 0 => 1.0,
            None => bucket.observed as f64 / self.observed as f64,
        }
    }

    /// Steps observed so far.
    pub(super) fn observed(&self) -> u64 {
        self.observed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(step_s: Option<f64>, share: Option<f64>) -> BucketConfig {
        BucketConfig { step_s, share }
    }

    #[test]
    fn a_forecast_wrong_for_all_buckets_is_corrected_by_one() {
        let mut pace = Pace::new(&[bucket(Some(1.0), Some(0.5)), bucket(Some(4.0), Some(0.5))], 60.0);
        for _ in 0..20 {
            pace.observe(0, 2.0);
        }
        let other = pace.bucket_mean_s(1).unwrap();
        assert!((5.5..8.5).contains(&other), "{other}");
    }

    #[test]
    fn one_slow_bucket_is_told_from_a_slow_machine() {
        let mut pace = Pace::new(&[bucket(None, None), bucket(None, None)], 60.0);
        for _ in 0..30 {
            for _ in 0..4 {
                pace.observe(0, 1.0);
            }
            pace.observe(1, 6.0);
        }
        let (fast, slow) = (pace.bucket_mean_s(0).unwrap(), pace.bucket_mean_s(1).unwrap());
        assert!((0.85..1.15).contains(&fast), "{fast}");
        assert!((5.0..7.0).contains(&slow), "{slow}");
        let mean_s = pace.mixture().unwrap().mean_s;
        assert!((1.8..2.2).contains(&mean_s), "{mean_s}");
    }

    #[test]
    fn throttling_seen_in_one_bucket_slows_the_forecast_of_the_other() {
        let mut pace = Pace::new(&[bucket(None, None), bucket(None, None)], 60.0);
        for _ in 0..20 {
            pace.observe(0, 1.0);
            pace.observe(1, 3.0);
        }
        for _ in 0..12 {
            pace.observe(0, 2.0);
        }
        let other = pace.bucket_mean_s(1).unwrap();
        assert!(other > 4.5, "{other}");
        assert!(pace.slowdown() < 1.5, "a few slow steps are no slow machine");
        for _ in 0..60 {
            pace.observe(0, 2.0);
        }
        assert!(pace.slowdown() > 1.7, "{}", pace.slowdown());
    }

    /// A spread seen in n steps may itself be wrong: it counts √(1 + 8/n) times, √5 times after two.
    #[test]
    fn a_spread_seen_in_few_steps_is_doubted() {
        assert_eq!(Pace::new(&[], 60.0).relative_deviation(), UNMEASURED_DEVIATION);
        for (n, doubt) in [(2_u32, 5.0_f64.sqrt()), (8, 2.0_f64.sqrt()), (800, 1.01_f64.sqrt())] {
            let mut pace = Pace::new(&[bucket(Some(1.0), None)], 60.0);
            (0..n).for_each(|k| pace.observe(0, if k % 2 == 0 { 0.9 } else { 1.1 }));
            let seen = pace.speed.deviation() / pace.speed.mean().unwrap();
            assert!((pace.relative_deviation() - doubt * seen).abs() < 1e-12, "{n} steps");
        }
    }

    /// The variance of the mixture is that within the buckets, `r²·E[t²]`, and that between them, `E[t²] −
    /// E[t]²`.
    #[test]
    fn the_spread_of_a_mixture_holds_the_differences_between_its_buckets() {
        for [fast, slow] in [[0.5, 0.5], [3.0, 1.0]] {
            let pace = Pace::new(&[bucket(Some(1.0), Some(fast)), bucket(Some(4.0), Some(slow))], 60.0);
            let mean_s = (fast + 4.0 * slow) / (fast + slow);
            let square = (fast + 16.0 * slow) / (fast + slow);
            let between = square - mean_s * mean_s;
            let within = square * UNMEASURED_DEVIATION * UNMEASURED_DEVIATION;
            let step = pace.mixture().unwrap();
            assert!((step.mean_s - mean_s).abs() < 1e-12, "{step:?}");
            assert!((step.deviation_s - (between + within).sqrt()).abs() < 1e-12, "{step:?}");
        }
        let same = Pace::new(&[bucket(Some(2.0), None), bucket(Some(2.0), None)], 60.0).mixture().unwrap();
        assert!((same.deviation_s - 2.0 * UNMEASURED_DEVIATION).abs() < 1e-6, "{same:?}");
    }

    /// A step counts in the average speed by its part of the time averaged over, and never more than an
    /// eighth.
    #[test]
    fn one_long_step_moves_the_average_speed_by_an_eighth_at_most() {
        for (steady_over_s, weight) in [(0.5, 1.0 / 8.0), (120.0, 1.2 / 120.0)] {
            let mut pace = Pace::new(&[bucket(Some(1.0), None)], steady_over_s);
            (0..5).for_each(|_| pace.observe(0, 1.0));
            assert!((pace.slowdown() - 1.0).abs() < 1e-12);
            pace.observe(0, 1.2);
            let far = pace.speed_factor() - 1.0;
            assert!(far > 0.0 && (pace.slowdown() - 1.0 - weight * far).abs() < 1e-12, "{}", pace.slowdown());
        }
    }

    #[test]
    fn an_unknown_bucket_is_as_slow_as_the_slowest_and_shares_are_learnt() {
        let mut pace = Pace::new(&[bucket(Some(1.0), None), bucket(Some(3.0), None)], 60.0);
        assert_eq!(pace.bucket_mean_s(7), Some(3.0));
        assert_eq!(pace.mixture().unwrap().mean_s, 2.0);
        assert_eq!(Pace::new(&[bucket(None, None)], 60.0).mixture(), None);
        for _ in 0..30 {
            (0..3).for_each(|_| pace.observe(0, 1.0));
            pace.observe(1, 3.0);
        }
        let mean_s = pace.mixture().unwrap().mean_s;
        assert!((mean_s - 1.5).abs() < 0.05, "{mean_s}");
        assert_eq!(pace.observed(), 120);
    }
}
