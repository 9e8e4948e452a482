//! Moments in time, as people write them.

/// Reads a moment in the form of RFC 3339.
///
/// # Errors
/// The text is no moment, or lacks a time zone, without which it could be any of two dozen.
pub fn parse_moment(text: &str) -> Result<jiff::Timestamp, String> {
    text.trim().parse().map_err(|_| {
        let zoneless = text.trim().parse::<jiff::civil::DateTime>().is_ok();
        let missing = if zoneless { " without a time zone" } else { "" };
        format!("{text:?} is not a point in time{missing}; expected one such as 2026-05-01T18:00:00+02:00")
    })
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
}
