//! Steps that become much slower than those at the beginning.

use std::fmt;

/// A pace this many times slower than at the start is reported.
const SLOW: f64 = 1.6;

/// Compares the expected time of a step with that of the opening.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Steps until the opening is over.
    opening: u64,
    seen: u64,
    opening_s: Option<f64>,
    /// The factor over the opening that was last told.
    told: f64,
}

/// Steps have become slow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowdown {
    /// Seconds that a step takes now.
    pub step_s: f64,
    /// How many times those of the opening that is.
    pub factor: f64,
}

impl Pace {
    /// Takes the expectation after so many steps for the usual one.
    pub fn new(opening: u64) -> Self {
        Pace { opening, seen: 0, opening_s: None, told: 1.0 }
    }

    /// Notes `new` steps, after which a step is expected to take `step_s`. Tells of a slowdown when it is
    /// first seen, and again when it has become as much worse.
    pub fn observe(&mut self, new: u64, step_s: f64) -> Option<Slowdown> {
        self.seen = self.seen.saturating_add(new);
        if self.seen < self.opening {
            return None;
        }
        let factor = step_s / *self.opening_s.get_or_insert(step_s);
        if !factor.is_finite() || factor < SLOW * self.told {
            return None;
        }
        self.told = factor;
        Some(Slowdown { step_s, factor })
    }
}

impl fmt::Display for Slowdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slowdown { step_s, factor } = self;
        write!(f, "a step takes {step_s:.2} s now, {factor:.1} times as long as at the beginning")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slowdown_is_told_once_and_again_when_it_grows() {
        let mut pace = Pace::new(12);
        assert_eq!(pace.observe(11, 9.0), None, "the opening is slow in its own way");
        assert_eq!((pace.observe(1, 1.0), pace.observe(1, 1.5)), (None, None));
        let slow = pace.observe(1, 1.7).unwrap();
        assert_eq!((slow.step_s, slow.factor), (1.7, 1.7));
        assert!(slow.to_string().starts_with("a step takes 1.70 s now, 1.7 times"));
        assert_eq!((pace.observe(1, 2.6), pace.observe(1, 1.0)), (None, None));
        assert_eq!(pace.observe(1, 2.8).map(|slow| slow.factor), Some(2.8));
    }
}
