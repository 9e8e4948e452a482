//! Moments and durations as people read them.

use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

/// A moment so many seconds after another.
pub fn after(start: Timestamp, seconds: f64) -> Timestamp {
    let seconds = if seconds.is_finite() { seconds.clamp(-1e9, 1e9) } else { 0.0 };
    start.checked_add(SignedDuration::from_secs_f64(seconds)).unwrap_or(Timestamp::MAX)
}

/// A moment given in seconds since 1970.
pub fn unix(seconds: f64) -> Timestamp {
    // What a file says may be any number.
    Timestamp::from_millisecond((seconds * 1e3) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The time of day in this machine's zone, with the date where that is not today: `16:47`, `Tue 16:47`,
/// `2026-12-24 16:47`. Seconds are shown of moments that are near.
pub fn moment(at: Timestamp) -> String {
    let zone = TimeZone::system();
    shown(&Zoned::new(at, zone.clone()), &Zoned::new(Timestamp::now(), zone))
}

fn shown(at: &Zoned, now: &Zoned) -> String {
    let apart_s = at.timestamp().duration_since(now.timestamp()).as_secs().abs();
    let time = if apart_s < 600 { "%H:%M:%S" } else { "%H:%M" };
    let format = if at.date() == now.date() {
        time.to_owned()
    } else if apart_s < 6 * 86400 && at.timestamp() > now.timestamp() {
        format!("%a {time}")
    } else {
        format!("%Y-%m-%d {time}")
    };
    at.strftime(&format).to_string()
}

/// A duration in two units at most: `45 s`, `12:30 min`, `1:12 h`, `3 d 4 h`.
pub fn span(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.clamp(0.0, 1e9).round() as u64 } else { 0 };
    match s {
        0..=99 => format!("{s} s"),
        100..=3599 => format!("{}:{:02} min", s / 60, s % 60),
        3600..=172_799 => format!("{}:{:02} h", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}

/// A count with the right form of its noun.
pub fn plural(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    #[test]
    fn moments_have_their_date_where_it_is_not_today() {
        let now = at("2026-12-01T23:50:00+00:00[UTC]");
        for (moment, text) in [
            ("2026-12-01T23:58:07+00:00[UTC]", "23:58:07"),
            ("2026-12-01T16:47:00+00:00[UTC]", "16:47"),
            ("2026-12-01T23:50:00+00:00[UTC]", "23:50:00"),
            ("2026-12-02T07:00:00+00:00[UTC]", "Wed 07:00"),
            ("2026-12-02T00:01:00+00:00[UTC]", "00:01"),
            ("2026-12-20T07:00:00+00:00[UTC]", "2026-12-20 07:00"),
            ("2026-11-30T07:00:00+00:00[UTC]", "2026-11-30 07:00"),
        ] {
            let expected = if text == "00:01" { "Wed 00:01" } else { text };
            assert_eq!(shown(&at(moment), &now), expected, "{moment}");
        }
    }

    #[test]
    fn moments_of_files_are_what_they_say() {
        assert_eq!(unix(1_800_000_000.5), "2027-01-15T08:00:00.5Z".parse().unwrap());
        assert_eq!(unix(f64::NAN), Timestamp::UNIX_EPOCH);
        assert_eq!(unix(1e300), Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn spans_have_two_units_at_most() {
        for (s, text) in [
            (0.4, "0 s"),
            (99.0, "99 s"),
            (100.0, "1:40 min"),
            (3599.6, "1:00 h"),
            (4320.0, "1:12 h"),
            (172_799.0, "47:59 h"),
            (273_600.0, "3 d 4 h"),
            (-5.0, "0 s"),
            (f64::NAN, "0 s"),
        ] {
            assert_eq!(span(s), text);
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!((plural(1, "step"), plural(0, "step")), ("1 step".into(), "0 steps".into()));
    }
}
