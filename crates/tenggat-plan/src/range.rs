//! Likely ranges: what a forecast says of a quantity that nobody has measured yet.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quantity::format_duration;

/// A forecast with a likely range around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Lower end.
    pub low: f64,
    /// The forecast.
    pub likely: f64,
    /// Upper end.
    pub high: f64,
}

impl Range {
    /// A forecast with ends that are factors of it.
    pub fn around(likely: f64, [below, above]: [f64; 2]) -> Self {
        Self { low: likely * below, likely, high: likely * above }
    }

    /// A value that is known exactly.
    pub fn exactly(value: f64) -> Self {
        Self { low: value, likely: value, high: value }
    }

    /// Whether a value lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Every part multiplied.
    pub fn times(self, factor: f64) -> Self {
        self.map(|value| value * factor)
    }

    /// Every part moved.
    pub fn plus(self, more: f64) -> Self {
        self.map(|value| value + more)
    }

    /// Every part put through a function that keeps their order.
    pub fn map(self, through: impl Fn(f64) -> f64) -> Self {
        Self { low: through(self.low), likely: through(self.likely), high: through(self.high) }
    }

    /// The range as durations, both ends in the unit of the upper one: `7 to 11 min`.
    pub fn as_duration(&self) -> String {
        if !(self.low.is_finite() && self.high.is_finite()) {
            return "unknown".to_owned();
        }
        let (unit_s, unit) = match self.high {
            high if high < 90.0 => (1.0, "s"),
            high if high < 5400.0 => (60.0, "min"),
            high if high < 172_800.0 => (3600.0, "h"),
            _ => (86_400.0, "days"),
        };
        format!("{} {unit}", self.times(1.0 / unit_s))
    }

    /// The range as memory in GB of 10⁹ bytes.
    pub fn as_gigabytes(&self) -> String {
        format!("{} GB", self.times(1e-9))
    }
}

impl fmt::Display for Range {
    /// Both ends with two significant digits: `0.4 to 0.64`; one number if they round to the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (two_digits(self.low), two_digits(self.high));
        if low == high { f.pad(&low) } else { f.pad(&format!("{low} to {high}")) }
    }
}

/// Two significant digits: more than that nobody knows beforehand.
pub fn two_digits(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return if value == 0.0 { "0".to_owned() } else { "unknown".to_owned() };
    }
    let digits = value.abs().log10().floor() as i32;
    // 9.96 has two digits as 10, so the place is found from the rounded value.
    let scale = 10f64.powi(digits - 1);
    let rounded = (value / scale).round() * scale;
    let decimals = (1 - rounded.abs().log10().floor() as i32).max(0) as usize;
    format!("{rounded:.decimals$}")
}

/// A duration with two significant digits: `43 s`, `7.2 min`, `1.6 h`.
pub fn rough_duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => format_duration(s),
        s if s < 90.0 => format!("{} s", two_digits(s)),
        s if s < 5400.0 => format!("{} min", two_digits(s / 60.0)),
        s if s < 172_800.0 => format!("{} h", two_digits(s / 3600.0)),
        s => format!("{} days", two_digits(s / 86_400.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_digits_and_no_more() {
        for (value, text) in [
            (0.3534, "0.35"),
            (0.0996, "0.10"),
            (1.25, "1.3"),
            (9.96, "10"),
            (36.8, "37"),
            (128.0, "130"),
            (0.0, "0"),
            (f64::NAN, "unknown"),
        ] {
            assert_eq!(two_digits(value), text, "{value}");
        }
    }

    #[test]
    fn ranges_to_read() {
        let range = Range::around(0.4, [1.0, 1.6]);
        assert_eq!(range.to_string(), "0.40 to 0.64");
        assert_eq!(range.times(1000.0).as_duration(), "6.7 to 11 min");
        assert_eq!(Range::exactly(45.0).as_duration(), "45 s");
        assert_eq!(Range::around(20e9, [0.9, 1.2]).as_gigabytes(), "18 to 24 GB");
        assert_eq!(Range::exactly(f64::INFINITY).as_duration(), "unknown");
        assert!(range.contains(0.64) && !range.contains(0.39));
        assert_eq!(rough_duration(433.0), "7.2 min");
        assert_eq!(rough_duration(5900.0), "1.6 h");
    }
}
