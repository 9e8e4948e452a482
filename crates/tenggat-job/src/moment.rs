//! Moments in time, as people write them.

use jiff::civil::{DateTime, Time};
use jiff::{Timestamp, Zoned, tz::TimeZone};

/// Reads a moment in the form of RFC 3339.
///
/// # Errors
/// The text is no moment, or lacks a time zone, without which it could be any of two dozen.
pub fn parse_moment(text: &str) -> Result<Timestamp, String> {
    text.trim().parse().map_err(|_| {
        let zoneless = text.trim().parse::<DateTime>().is_ok();
        let missing = if zoneless { " without a time zone" } else { "" };
        format!("{text:?} is not a point in time{missing}; expected one such as 2026-05-01T18:00:00+02:00")
    })
}

/// Reads a moment that is to come, as somebody types it: without a zone it is meant in this machine's, and
/// without a date it is the next time that the clock shows it.
///
/// # Errors
/// The text is no moment.
pub fn parse_local_moment(text: &str) -> Result<Timestamp, String> {
    local(text, &Zoned::now(), 1)
}

/// The same of a moment that has passed: without a date, the last time that the clock showed it.
///
/// # Errors
/// The text is no moment.
pub fn parse_past_moment(text: &str) -> Result<Timestamp, String> {
    local(text, &Zoned::now(), -1)
}

/// `days` is 1 for the next such time of day and -1 for the last.
fn local(text: &str, now: &Zoned, days: i64) -> Result<Timestamp, String> {
    let trimmed = text.trim();
    let zone: &TimeZone = now.time_zone();
    let at = |moment: DateTime| moment.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp());
    let with_zone = || trimmed.parse::<Timestamp>().ok();
    let with_date = || at(trimmed.parse::<DateTime>().ok()?);
    let of_day = || {
        let time = time_of_day(trimmed)?;
        let today = at(now.date().to_datetime(time))?;
        let is_due = if days > 0 { today > now.timestamp() } else { today <= now.timestamp() };
        if is_due {
            Some(today)
        } else {
            at(now.date().checked_add(jiff::Span::new().days(days)).ok()?.to_datetime(time))
        }
    };
    with_zone().or_else(with_date).or_else(of_day).ok_or_else(|| {
        format!("{text:?} is no moment; write 18:00, '2026-05-01 18:00' or 2026-05-01T18:00:00+02:00")
    })
}

/// `18:00` or `18:00:30`.
fn time_of_day(text: &str) -> Option<Time> {
    let numbers: Option<Vec<i8>> = text
        .split(':')
        .map(|part| part.parse().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit())))
        .collect();
    match numbers?[..] {
        [hour, minute] => Time::new(hour, minute, 0, 0).ok(),
        [hour, minute, second] => Time::new(hour, minute, second, 0).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_needs_its_zone() {
        assert_eq!(
            parse_moment("2026-05-01T18:00:00+02:00").unwrap(),
            parse_moment("2026-05-01T16:00:00Z").unwrap()
        );
        assert!(parse_moment("2026-05-01T18:00:00").unwrap_err().contains("without a time zone"));
        assert!(parse_moment("soon").unwrap_err().starts_with("\"soon\" is not a point in time; expected"));
    }

    #[test]
    fn what_is_typed_is_of_this_machines_zone() {
        let now: Zoned = "2026-05-01T12:00:00+02:00[+02:00]".parse().unwrap();
        let moment = |text: &str| local(text, &now, 1).unwrap();
        for (text, meant) in [
            ("18:00", "2026-05-01T16:00:00Z"),
            ("07:00", "2026-05-02T05:00:00Z"),
            ("7:00:30", "2026-05-02T05:00:30Z"),
            ("12:00", "2026-05-02T10:00:00Z"),
            ("2026-05-03 18:00", "2026-05-03T16:00:00Z"),
            ("2026-05-03T18:00:05", "2026-05-03T16:00:05Z"),
            (" 2026-05-03T18:00:00-07:00 ", "2026-05-04T01:00:00Z"),
        ] {
            assert_eq!(moment(text), meant.parse().unwrap(), "{text}");
        }
        assert_eq!(local("07:00", &now, -1).unwrap(), "2026-05-01T05:00:00Z".parse().unwrap());
        assert_eq!(local("18:00", &now, -1).unwrap(), "2026-04-30T16:00:00Z".parse().unwrap());
        for wrong in ["soon", "", "25:00", "18", "18:00:00:00", "-1:00", "+5:00"] {
            assert!(local(wrong, &now, 1).is_err_and(|e| e.contains("18:00")), "{wrong}");
        }
    }
}
