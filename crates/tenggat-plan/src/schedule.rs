//! Learning-rate schedules as pure functions of how much of the training is done.
//!
//! Under a budget the number of steps is not known beforehand, so a schedule does not count towards a total:
//! it reads *progress*, a number that [`Budget`](crate::Budget) leads from 0 at the first step to exactly 1
//! at the last.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a step stands in the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Steps finished before this one.
    pub step: u64,
    /// Share of the training that is done, 0 at the first step, 1 at the last.
    pub progress: f64,
}

/// The course of the rate between the warm-up and the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// `1`: the peak rate throughout; the floor does not apply.
    Constant,
    /// `1 − p`.
    Linear,
    /// `1/3 + 2p/3`: what `linear` means in ai-toolkit, PyTorch's `LinearLR` with its defaults. It ends at
    /// the peak rate; the floor does not apply.
    LinearRamp,
    /// `(1 + cos πp) / 2`.
    Cosine,
    /// Several cosines one after the other; the last one ends where the training does.
    CosineWithRestarts {
        /// Number of cosines, at least 1.
        cycles: u32,
    },
    /// `1`, then a straight line to 0 over the last `decay_share` of the progress.
    WarmupStableDecay {
        /// Share of the progress given to the decay, in (0, 1].
        decay_share: f64,
    },
}

/// How the rate rises at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// Full rate from the first step.
    #[default]
    None,
    /// Step `k` (from 0) of the first `n` runs at `(k + 1) / (n + 1)` of the rate.
    Steps(u64),
    /// The rate grows from 0 over this share of the progress.
    Share(f64),
}

/// A learning-rate schedule: a factor on the peak rate.
///
/// Formula: `warmup · (floor + (1 − floor) · shape(progress))`, and exactly `floor` at progress 1 (`1` for
/// [`Shape::Constant`]), even if the training was too short for the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Course after the warm-up.
    pub shape: Shape,
    /// Rate at the end, as a share of the peak rate.
    pub floor: f64,
    /// Rise at the beginning.
    pub warmup: Warmup,
}

impl Default for Schedule {
    /// What a budgeted run uses unless told otherwise: constant, then a straight line to zero over the last
    /// 40 %.
    fn default() -> Self {
        Self {
            shape: Shape::WarmupStableDecay { decay_share: DECAY_SHARE },
            floor: 0.0,
            warmup: Warmup::None,
        }
    }
}

/// Default share of a run that warmup-stable-decay spends on the decay.
const DECAY_SHARE: f64 = 0.4;

/// Warm-up of `constant_with_warmup` and of warmup-stable-decay where the job gives none, as a share of the
/// progress.
const DEFAULT_WARMUP_SHARE: f64 = 0.05;

impl Schedule {
    /// The factor on the peak learning rate at a position, within `[0, 1]`.
    ///
    /// Progress outside `[0, 1]` is clamped; undefined progress counts as 1, the cautious end.
    pub fn factor(&self, at: Position) -> f64 {
        let progress = if at.progress.is_nan() { 1.0 } else { at.progress.clamp(0.0, 1.0) };
        if matches!(self.shape, Shape::Constant | Shape::LinearRamp) {
            return self.shape.at(progress) * self.warmup.factor(at.step, progress);
        }
        let floor = share(self.floor);
        if progress >= 1.0 {
            return floor;
        }
        let course = floor + (1.0 - floor) * self.shape.at(progress);
        course * self.warmup.factor(at.step, progress)
    }
}

impl Shape {
    /// Height in `[0, 1]` at a progress in `[0, 1)`.
    fn at(self, progress: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - progress,
            Self::LinearRamp => (1.0 + 2.0 * progress) / 3.0,
            Self::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            Self::CosineWithRestarts { cycles } => {
                let within = (progress * f64::from(cycles.max(1))).fract();
                0.5 * (1.0 + (PI * within).cos())
            }
            Self::WarmupStableDecay { decay_share } => {
                let decay = share(decay_share).max(f64::EPSILON);
                ((1.0 - progress) / decay).min(1.0)
            }
        }
    }
}

impl Warmup {
    fn factor(self, step: u64, progress: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Steps(n) if step < n => (step + 1) as f64 / (n as f64 + 1.0),
            Self::Steps(_) => 1.0,
            Self::Share(width) if share(width) > 0.0 => (progress / share(width)).min(1.0),
            Self::Share(_) => 1.0,
        }
    }
}

/// Reads a user's fraction; anything undefined or outside `[0, 1]` is brought inside.
fn share(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

/// A schedule name that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown learning-rate schedule `{0}`; use constant, constant_with_warmup, linear, cosine, cosine_with_restarts or warmup_stable_decay"
)]
pub struct UnknownSchedule(String);

impl FromStr for Schedule {
    type Err = UnknownSchedule;

    /// Reads a job file's schedule name; hyphens and underscores are the same.
    fn from_str(name: &str) -> Result<Self, UnknownSchedule> {
        let (shape, warmup) = match name.trim().to_lowercase().replace('-', "_").as_str() {
            "constant" => (Shape::Constant, Warmup::None),
            "constant_with_warmup" => (Shape::Constant, Warmup::Share(DEFAULT_WARMUP_SHARE)),
            "linear" => (Shape::Linear, Warmup::None),
            "cosine" => (Shape::Cosine, Warmup::None),
            "cosine_with_restarts" => (Shape::CosineWithRestarts { cycles: 2 }, Warmup::None),
            "warmup_stable_decay" | "wsd" => {
                (Shape::WarmupStableDecay { decay_share: DECAY_SHARE }, Warmup::Share(DEFAULT_WARMUP_SHARE))
            }
            _ => return Err(UnknownSchedule(name.trim().to_owned())),
        };
        Ok(Self { shape, floor: 0.0, warmup })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine-with-restarts",
        "warmup-stable-decay",
    ];

    fn at(progress: f64) -> Position {
        Position { step: (progress * 1000.0) as u64, progress }
    }

    #[test]
    fn known_heights() {
        let schedule = |name: &str| name.parse::<Schedule>().unwrap();
        assert_eq!(schedule("linear").factor(at(0.25)), 0.75);
        assert!((schedule("cosine").factor(at(0.5)) - 0.5).abs() < 1e-12);
        // Two cosines: the middle of the second one.
        assert!((schedule("cosine_with_restarts").factor(at(0.75)) - 0.5).abs() < 1e-12);
        assert_eq!(schedule("cosine_with_restarts").factor(at(0.5)), 1.0);
        // Decay over the last 40 %: half way down at 0.8.
        assert!((schedule("wsd").factor(at(0.8)) - 0.5).abs() < 1e-12);
        assert_eq!(schedule("wsd").factor(at(0.3)), 1.0);
        assert_eq!(schedule("constant").factor(at(1.0)), 1.0);
    }

    #[test]
    fn every_decaying_schedule_ends_exactly_at_its_floor() {
        for name in NAMES {
            let mut schedule: Schedule = name.parse().unwrap();
            schedule.floor = 0.1;
            let end = schedule.factor(at(1.0));
            let expected = if schedule.shape == Shape::Constant { 1.0 } else { 0.1 };
            assert_eq!(end, expected, "{name}");
        }
    }

    #[test]
    fn warm_up_rises_and_never_starts_at_nothing_when_counted_in_steps() {
        let schedule = Schedule { shape: Shape::Constant, floor: 0.0, warmup: Warmup::Steps(4) };
        let factors: Vec<f64> =
            (0..6).map(|step| schedule.factor(Position { step, progress: 0.0 })).collect();
        for (factor, expected) in factors.iter().zip([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]) {
            assert!((factor - expected).abs() < 1e-12, "{factors:?}");
        }
    }

    #[test]
    fn nonsense_stays_inside_zero_and_one() {
        for name in NAMES {
            for value in [f64::NAN, f64::INFINITY, -1.0, 7.0] {
                let mut schedule: Schedule = name.parse().unwrap();
                schedule.floor = value;
                schedule.warmup = Warmup::Share(value);
                if let Shape::WarmupStableDecay { decay_share } = &mut schedule.shape {
                    *decay_share = value;
                }
                let factor = schedule.factor(Position { step: 3, progress: value });
                assert!((0.0..=1.0).contains(&factor), "{name} {value}: {factor}");
            }
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "cosin".parse::<Schedule>().unwrap_err().to_string();
        assert!(error.contains("`cosin`") && error.contains("cosine_with_restarts"), "{error}");
    }

    const SHAPES: [Shape; 6] = [
        Shape::Constant,
        Shape::Linear,
        Shape::LinearRamp,
        Shape::Cosine,
        Shape::CosineWithRestarts { cycles: 3 },
        Shape::WarmupStableDecay { decay_share: 0.4 },
    ];

    /// `floor + (1 − floor) · shape`, between a floor above nothing and the peak.
    #[test]
    fn a_floor_raises_the_course_and_leaves_its_peak() {
        for (shape, progress, height) in [
            (Shape::Cosine, 0.5, 0.5),
            (Shape::Cosine, 1.0 / 3.0, 0.75),
            (Shape::Linear, 0.25, 0.75),
            (Shape::CosineWithRestarts { cycles: 3 }, 0.5, 0.5),
            (Shape::WarmupStableDecay { decay_share: 0.4 }, 0.9, 0.25),
            (Shape::WarmupStableDecay { decay_share: 0.4 }, 0.5, 1.0),
        ] {
            for floor in [0.0, 0.2, 0.7, 1.0] {
                let factor = Schedule { shape, floor, warmup: Warmup::None }.factor(at(progress));
                let expected = floor + (1.0 - floor) * height;
                assert!(
                    (factor - expected).abs() < 1e-12,
                    "{shape:?} {floor}: {factor}, expected {expected}"
                );
            }
        }
        // These two end at the peak, whatever the floor.
        let ramp = Schedule { shape: Shape::LinearRamp, floor: 0.5, warmup: Warmup::None };
        for (progress, expected) in [(0.0, 1.0 / 3.0), (0.25, 0.5), (1.0, 1.0)] {
            assert!((ramp.factor(at(progress)) - expected).abs() < 1e-12, "{progress}");
        }
    }

    #[test]
    fn no_floor_and_no_progress_leave_zero_and_one() {
        let numbers = [f64::NAN, f64::NEG_INFINITY, -1.0, 0.0, 0.1, 0.5, 0.9, 1.0, 7.0, f64::INFINITY];
        for shape in SHAPES {
            for (floor, progress) in numbers.iter().flat_map(|f| numbers.iter().map(move |p| (*f, *p))) {
                for warmup in [Warmup::None, Warmup::Steps(4), Warmup::Share(0.3), Warmup::Share(floor)] {
                    let factor = Schedule { shape, floor, warmup }.factor(Position { step: 3, progress });
                    assert!((0.0..=1.0).contains(&factor), "{shape:?} {floor} {progress}: {factor}");
                }
            }
            // What is undefined counts as the end, what lies outside as the nearer end.
            let factor = |progress| Schedule { shape, floor: 0.1, warmup: Warmup::None }.factor(at(progress));
            assert_eq!(factor(f64::NAN), factor(1.0), "{shape:?}");
            assert_eq!((factor(-1.0), factor(7.0)), (factor(0.0), factor(1.0)), "{shape:?}");
        }
    }

    /// A warm-up by progress is a straight line from 0, and multiplies what the course has come to.
    #[test]
    fn a_warm_up_by_share_multiplies_the_course() {
        let schedule = Schedule { shape: Shape::Linear, floor: 0.0, warmup: Warmup::Share(0.2) };
        for (progress, expected) in [(0.0, 0.0), (0.1, 0.5 * 0.9), (0.2, 0.8), (0.6, 0.4)] {
            assert!((schedule.factor(at(progress)) - expected).abs() < 1e-12, "{progress}");
        }
        let none = Schedule { warmup: Warmup::Share(0.0), ..schedule };
        assert_eq!(none.factor(at(0.0)), 1.0);
        let steps = Schedule { warmup: Warmup::Steps(4), ..schedule };
        let early = steps.factor(Position { step: 1, progress: 0.5 });
        assert!((early - 0.4 * 0.5).abs() < 1e-12, "{early}");
    }

    #[test]
    fn names_stand_for_these_schedules() {
        let of = |name: &str| name.parse::<Schedule>().map(|s| (s.shape, s.warmup)).unwrap();
        assert_eq!(of(" Constant "), (Shape::Constant, Warmup::None));
        assert_eq!(of("constant-with-warmup"), (Shape::Constant, Warmup::Share(DEFAULT_WARMUP_SHARE)));
        assert_eq!(of("cosine_with_restarts"), (Shape::CosineWithRestarts { cycles: 2 }, Warmup::None));
        let wsd = Shape::WarmupStableDecay { decay_share: DECAY_SHARE };
        assert_eq!(of("wsd"), (wsd, Warmup::Share(DEFAULT_WARMUP_SHARE)));
        let default = Schedule::default();
        assert_eq!((default.shape, default.warmup, default.floor), (wsd, Warmup::None, 0.0));
    }
}
