//! What people report of training speeds and memory, beside what is forecast for the same jobs.

mod report;
mod statistics;

pub use report::{MemoryOutcome, Report, ReportError, Row, Trust};
pub use statistics::{Agreement, MemoryAgreement};

use std::sync::OnceLock;

/// The reports that forecasts are held against.
const TABLE: &str = include_str!("../../data/reports.csv");

/// The reports that forecasts are held against, read once. The table is a part of the program, and a test
/// reads it.
pub fn reports() -> &'static [Report] {
    static REPORTS: OnceLock<Vec<Report>> = OnceLock::new();
    REPORTS.get_or_init(|| Report::read_all(TABLE).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole() {
        let reports = Report::read_all(TABLE).unwrap();
        assert_eq!(reports.len(), TABLE.lines().count() - 1);
        let mut ids: Vec<&str> = reports.iter().map(|report| report.row.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), reports.len(), "an id comes twice");
        for report in &reports {
            assert!(report.row.source.starts_with("https://"), "{}", report.row.id);
            let compared = report.row.trust > Trust::Context;
            assert!(!compared || report.ratio().is_some(), "{} is not compared", report.row.id);
            assert!(compared || !report.row.note.is_empty(), "{} does not say why", report.row.id);
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        let head = TABLE.lines().next().unwrap();
        let line = |cells: &str| format!("{head}\n{cells}\n");
        let good = "a,https://x,2026,musubi,,qwen-image,RTX 4090,,1024x1024,,1,,16,bf16,,,,,,2,2,,,,high,";
        assert_eq!(Report::read_all(&line(good)).unwrap()[0].middle_step_s(), Some(2.0));
        let said =
            |old: &str, new: &str| Report::read_all(&line(&good.replace(old, new))).unwrap_err().to_string();
        assert!(said("1024x1024", "1024").contains("`1024` is not a size"));
        assert!(said("musubi", "kohya").contains("line 2"));
        assert!(said("bf16", "bf17").contains("bf17"));
        assert!(said("high", "sure").contains("sure"));
    }
}
