//! Durations and ranges as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no duration or no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    /// Nothing there.
    #[error("empty duration; write one such as 90s, 45m, 2h or 1h30m")]
    Empty,
    /// A number without a unit.
    #[error("`{0}` has no unit; write {0}s, {0}m or {0}h")]
    NoUnit(String),
    /// Neither a number nor a unit where one should be.
    #[error(
        "`{text}` is not a duration: `{part}` is not understood; write one such as 90s, 45m, 2h, 1.5h or \
         1h30m"
    )]
    Duration {
        /// The whole text.
        text: String,
        /// What was not understood.
        part: String,
    },
    /// Units not from large to small, or one of them twice.
    #[error("`{0}` is not a duration: units go from large to small, each once, such as 1h30m or 2m15s")]
    Order(String),
    /// Not a number and not `low..high`.
    #[error("`{0}` is neither a number nor a range; write one such as 4.5 or 4..6")]
    Range(String),
    /// Zero, negative or absurdly large.
    #[error("`{0}` is out of range; expected more than 0 and less than a century")]
    Value(String),
    /// The ends the wrong way round.
    #[error("`{text}`: the range runs backwards; write {low}..{high}")]
    Backwards {
        /// The whole text.
        text: String,
        /// Its smaller end.
        low: String,
        /// Its larger end.
        high: String,
    },
}

/// Units with their seconds, large to small.
const UNITS: [(&str, f64); 10] = [
    ("d", 86_400.0),
    ("hours", 3600.0),
    ("hour", 3600.0),
    ("hr", 3600.0),
    ("h", 3600.0),
    ("min", 60.0),
    ("m", 60.0),
    ("sec", 1.0),
    ("s", 1.0),
    ("ms", 0.001),
];
/// Longest duration accepted: a century.
const LONGEST_S: f64 = 100.0 * 365.25 * 86_400.0;

/// Seconds of a duration such as `90s`, `45m`, `2h`, `1.5h`, `1h30m` or `1h 30min`.
///
/// # Errors
/// [`ParseQuantityError`] for anything else, with what to write instead.
pub fn parse_duration_s(text: &str) -> Result<f64, ParseQuantityError> {
    let text = text.trim();
    let mut rest = text;
    let (mut seconds, mut smallest) = (0.0, f64::INFINITY);
    if rest.is_empty() {
        return Err(ParseQuantityError::Empty);
    }
    while !rest.is_empty() {
        let (number, unit, tail) = split(rest);
        let wrong =
            |part: &str| ParseQuantityError::Duration { text: text.to_owned(), part: part.to_owned() };
        let value: f64 = number.parse().map_err(|_| wrong(rest))?;
        if unit.is_empty() {
            return Err(if number == text {
                ParseQuantityError::NoUnit(text.to_owned())
            } else {
                wrong(rest)
            });
        }
        let unit_s = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| wrong(unit))?.1;
        if unit_s >= smallest {
            return Err(ParseQuantityError::Order(text.to_owned()));
        }
        smallest = unit_s;
        seconds += value * unit_s;
        rest = tail.trim_start();
    }
    if seconds > 0.0 && seconds < LONGEST_S {
        Ok(seconds)
    } else {
        Err(ParseQuantityError::Value(text.to_owned()))
    }
}

/// A text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount of memory; write one such as 24GB, 22.5GiB or 800MB")]
pub struct ParseBytesError(String);

/// Units of memory with their bytes, in lower case.
const MEMORY_UNITS: [(&str, f64); 6] = [
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
];

/// Bytes of an amount of memory such as `24GB` (10⁹), `22.5 GiB` (2³⁰) or `800MB`.
///
/// # Errors
/// [`ParseBytesError`] for anything else, with what to write instead.
pub fn parse_bytes(text: &str) -> Result<f64, ParseBytesError> {
    let wrong = || ParseBytesError(text.trim().to_owned());
    let (number, unit, tail) = split(text.trim());
    let unit = unit.to_lowercase();
    let factor = MEMORY_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if tail.trim().is_empty() && (1e6..1e18).contains(&bytes) { Ok(bytes) } else { Err(wrong()) }
}

/// Splits off a leading number and the letters behind it.
fn split(text: &str) -> (&str, &str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(letters);
    (number, unit, tail)
}

/// A positive quantity that is known within limits, such as seconds per step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Smallest value.
    pub low: f64,
    /// Largest value.
    pub high: f64,
}

impl Span {
    /// A value that is known exactly.
    pub const fn exactly(value: f64) -> Self {
        Self { low: value, high: value }
    }

    /// Whether both ends are the same.
    pub fn is_exact(&self) -> bool {
        self.low == self.high
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_exact() {
            f.pad(&trimmed(self.low))
        } else {
            f.pad(&format!("{} to {}", trimmed(self.low), trimmed(self.high)))
        }
    }
}

/// Three significant digits without needless zeros.
fn trimmed(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

impl FromStr for Span {
    type Err = ParseQuantityError;

    /// Reads `4.5`, `4..6` or `4-6`; a unit `s` behind a number is allowed.
    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let text = text.trim();
        let number = |part: &str| -> Result<f64, ParseQuantityError> {
            let bare = part.trim().trim_end_matches('s').trim_end();
            let value: f64 = bare.parse().map_err(|_| ParseQuantityError::Range(text.to_owned()))?;
            if value > 0.0 && value < LONGEST_S {
                Ok(value)
            } else {
                Err(ParseQuantityError::Value(text.to_owned()))
            }
        };
        let ends = text.split_once("..").or_else(|| text.split_once('-')).or_else(|| text.split_once('–'));
        let Some((low, high)) = ends else {
            return Ok(Self::exactly(number(text)?));
        };
        let (low, high) = (number(low)?, number(high.trim_start_matches('='))?);
        if low > high {
            let (low, high) = (trimmed(high), trimmed(low));
            return Err(ParseQuantityError::Backwards { text: text.to_owned(), low, high });
        }
        Ok(Self { low, high })
    }
}

/// A duration to read: `0.8 s`, `45 s`, `2 min 5 s`, `1 h 30 min`.
pub fn format_duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".to_owned();
    }
    if seconds < 0.0 {
        return format!("−{}", format_duration(-seconds));
    }
    let small = |value: f64, unit: &str, part: u64, part_unit: &str| match part {
        0 => format!("{value:.0} {unit}"),
        _ => format!("{value:.0} {unit} {part} {part_unit}"),
    };
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s.round() < 60.0 => format!("{s:.0} s"),
        s if s.round() < 3600.0 => {
            let whole = s.round() as u64;
            small((whole / 60) as f64, "min", whole % 60, "s")
        }
        s => {
            let minutes = (s / 60.0).round();
            small((minutes / 60.0).floor(), "h", (minutes % 60.0) as u64, "min")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        for (text, seconds) in [
            ("90s", 90.0),
            ("2h", 7200.0),
            ("1h30m", 5400.0),
            ("45m", 2700.0),
            ("1.5h", 5400.0),
            (" 1h 30min ", 5400.0),
            ("2 m 15 s", 135.0),
            ("1d2h", 93_600.0),
            ("500ms", 0.5),
            (".5h", 1800.0),
        ] {
            assert_eq!(parse_duration_s(text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_told_what_to_write() {
        let said = |text: &str| parse_duration_s(text).unwrap_err().to_string();
        assert!(said("").contains("90s"));
        assert!(said("90").contains("90s, 90m or 90h"));
        assert!(said("2 weeks").contains("`weeks`"));
        assert!(said("h").contains("`h`"));
        assert!(said("-5m").contains("`-5m`"));
        assert!(said("1h30").contains("`30`"));
        assert!(said("30m1h").contains("large to small"));
        assert!(said("1h1h").contains("each once"));
        assert!(said("0s").contains("more than 0"));
        assert!(said("9999999d").contains("century"));
        assert!(said("1.2.3h").contains("1.2.3h"));
        assert!(said("٣h").contains("not understood"));
        assert!(said("1h∞").contains("not understood"));
    }

    #[test]
    fn amounts_of_memory() {
        for (text, bytes) in
            [("24GB", 24e9), ("22.5 GiB", 22.5 * 1_073_741_824.0), ("800mb", 8e8), (" 1 TB ", 1e12)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "24", "GB", "24 kB", "-1GB", "0GB", "24GB 3", "1e3GB", "9999999TB"] {
            assert!(parse_bytes(wrong).unwrap_err().to_string().contains("24GB"), "{wrong}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!("4..6".parse(), Ok(Span { low: 4.0, high: 6.0 }));
        assert_eq!("4.5".parse(), Ok(Span::exactly(4.5)));
        assert_eq!(" 4s..6s ".parse(), Ok(Span { low: 4.0, high: 6.0 }));
        assert_eq!("5-7".parse(), Ok(Span { low: 5.0, high: 7.0 }));
        let said = |text: &str| text.parse::<Span>().unwrap_err().to_string();
        assert!(said("6..4").contains("4..6"));
        for wrong in ["", "..", "4..", "a..b", "nan", "4..6..8"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert!(said("0..4").contains("more than 0"));
        assert!(said("inf").contains("out of range"));
    }

    #[test]
    fn durations_to_read() {
        for (seconds, text) in [
            (0.84, "0.8 s"),
            (9.96, "10 s"),
            (45.2, "45 s"),
            (59.7, "1 min"),
            (125.0, "2 min 5 s"),
            (5400.0, "1 h 30 min"),
            (7199.0, "2 h"),
            (-30.0, "−30 s"),
            (f64::NAN, "unknown"),
        ] {
            assert_eq!(format_duration(seconds), text);
        }
    }

    #[test]
    fn every_unit_has_its_length() {
        for (units, seconds) in [
            (&["d"][..], 86_400.0),
            (&["hours", "hour", "hr", "h"], 3600.0),
            (&["min", "m"], 60.0),
            (&["sec", "s"], 1.0),
            (&["ms"], 0.001),
        ] {
            for unit in units {
                assert_eq!(parse_duration_s(&format!("3{unit}")), Ok(3.0 * seconds), "{unit}");
            }
        }
        for (units, bytes) in
            [(["MB", "MiB"], [1e6, 1024.0 * 1024.0]), (["TB", "TiB"], [1e12, 1024.0_f64.powi(4)])]
        {
            for (unit, bytes) in units.into_iter().zip(bytes) {
                assert_eq!(parse_bytes(&format!("2{unit}")), Ok(2.0 * bytes), "{unit}");
            }
        }
        let century_d = 36_525;
        assert!(parse_duration_s(&format!("{century_d}d")).is_err());
        assert!(parse_duration_s(&format!("{}d", century_d - 1)).is_ok());
        assert!(parse_bytes("1MB").is_ok() && parse_bytes("0.99MB").is_err());
    }

    #[test]
    fn ranges_to_read() {
        for (span, text) in [
            (Span::exactly(4.5), "4.5"),
            (Span::exactly(1.0), "1"),
            (Span::exactly(0.999_4), "0.999"),
            (Span { low: 1.234, high: 12.34 }, "1.23 to 12.3"),
            (Span { low: 10.0, high: 100.4 }, "10 to 100"),
            (Span { low: 123.4, high: 1000.0 }, "123 to 1000"),
        ] {
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("4–6".parse(), Ok(Span { low: 4.0, high: 6.0 }));
        assert_eq!("4..4".parse(), Ok(Span::exactly(4.0)));
        assert!("4..=6".parse::<Span>() == Ok(Span { low: 4.0, high: 6.0 }));
    }

    #[test]
    fn durations_to_read_change_units_where_they_round_up() {
        for (seconds, text) in [
            (9.94, "9.9 s"),
            (9.951, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min"),
            (61.0, "1 min 1 s"),
            (3599.4, "59 min 59 s"),
            (3599.6, "1 h"),
            (3660.0, "1 h 1 min"),
            (90_000.0, "25 h"),
            (0.0, "0.0 s"),
            (f64::INFINITY, "unknown"),
        ] {
            assert_eq!(format_duration(seconds), text);
        }
    }
}
