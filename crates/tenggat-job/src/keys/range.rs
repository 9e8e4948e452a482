//! What a number may be.

use std::fmt;

/// From here on a limit only keeps absurd numbers out, and messages speak of the other end.
const ABSURD: f64 = 1e9;

/// The values that a numeric key may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    least: f64,
    most: f64,
    above: bool,
    below: bool,
}

impl Range {
    /// From `least` to `most`, both included.
    pub(crate) const fn new(least: f64, most: f64) -> Self {
        Range { least, most, above: false, below: false }
    }

    /// Without the least value.
    pub(crate) const fn above(self) -> Self {
        Range { above: true, ..self }
    }

    /// Without the largest value.
    pub(crate) const fn below(self) -> Self {
        Range { below: true, ..self }
    }

    /// Whether a number lies inside; one that is not a number never does.
    pub fn contains(&self, value: f64) -> bool {
        let high_enough = value > self.least || !self.above && value == self.least;
        high_enough && (value < self.most || !self.below && value == self.most)
    }

    /// The number itself if it lies inside.
    ///
    /// # Errors
    /// It does not; the message says what is expected.
    pub fn check(&self, value: f64) -> Result<f64, String> {
        self.check_shown(value, &value)
    }

    /// [`Range::check`] of a number that messages show as `shown`, which may have more digits.
    pub(crate) fn check_shown(&self, value: f64, shown: &dyn fmt::Display) -> Result<f64, String> {
        if self.contains(value) {
            return Ok(value);
        }
        let expected = match self.most {
            most if value > most && most >= ABSURD => format!("at most {most}"),
            _ => self.to_string(),
        };
        Err(format!("{shown} is out of range; expected {expected}"))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { least, most, above, below } = *self;
        match (above, below) {
            (true, _) if most >= ABSURD => write!(f, "more than {least}"),
            (false, _) if most >= ABSURD => write!(f, "{least} or more"),
            (true, _) => write!(f, "more than {least} and at most {most}"),
            (false, true) => write!(f, "{least} to below {most}"),
            (false, false) => write!(f, "{least} to {most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_belong_to_a_range_or_not() {
        let closed = Range::new(0.0, 1.0);
        assert!([0.0, 0.5, 1.0].into_iter().all(|x| closed.contains(x)));
        let open = closed.above().below();
        assert_eq!([0.0, 0.5, 1.0].map(|x| open.contains(x)), [false, true, false]);
        for strange in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 1.1] {
            assert!(!closed.contains(strange) && !open.contains(strange), "{strange}");
        }
    }

    #[test]
    fn messages_name_the_end_that_matters() {
        let told = |range: Range, value: f64| range.check(value).unwrap_err();
        assert_eq!(told(Range::new(1.0, 1e9), 0.0), "0 is out of range; expected 1 or more");
        assert_eq!(
            told(Range::new(1.0, 1e9), 2e9),
            "2000000000 is out of range; expected at most 1000000000"
        );
        assert_eq!(told(Range::new(0.0, 1.0), 5.0), "5 is out of range; expected 0 to 1");
        assert_eq!(told(Range::new(0.0, 1.0).below(), 1.0), "1 is out of range; expected 0 to below 1");
        assert_eq!(
            told(Range::new(0.0, 10.0).above(), 0.0),
            "0 is out of range; expected more than 0 and at most 10"
        );
    }
}
