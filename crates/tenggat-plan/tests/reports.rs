//! Forecasts held against the public reports in `data/reports.csv`.

use tenggat_plan::{ReportComparison, reports};

/// Typical factor between forecast and report when these limits were set. It may become smaller, not larger.
const TYPICAL_ERROR: f64 = 1.28;
/// Spread of forecast over report around its own mean.
const SPREAD: f64 = 1.29;

#[test]
fn forecasts_agree_with_public_reports() {
    let comparison = ReportComparison::new(reports());
    println!("{comparison}");
    for speed in &comparison.speeds {
        println!(
            "{:24} {:18} {:>12} s, forecast {} s: {:.2}",
            speed.id, speed.card, speed.reported_s, speed.forecast_s, speed.ratio
        );
    }
    let all = comparison.all.unwrap();
    assert!(all.agreement.reports >= 25, "{}", all.agreement.reports);
    assert!((0.9..1.1).contains(&all.agreement.median), "{}", all.agreement.median);
    assert!(all.agreement.typical_error <= TYPICAL_ERROR, "{}", all.agreement.typical_error);
    assert!(all.agreement.spread <= SPREAD, "{}", all.agreement.spread);
    assert!(all.inside as f64 >= 0.85 * all.agreement.reports as f64, "{} inside", all.inside);
    // Correcting factors would be fitted to a few rows each: they must not be what makes the forecast good.
    let left = comparison.left_out.unwrap();
    assert!(left.inside as f64 >= 0.85 * all.agreement.reports as f64, "{} inside", left.inside);
}

#[test]
fn upper_ends_of_memory_hold() {
    let memory = ReportComparison::new(reports()).memory;
    assert!(memory.peaks >= 20, "{memory:?}");
    assert!(memory.covered as f64 >= 0.9 * memory.peaks as f64, "{memory:?}");
    assert!(memory.failures >= 5, "{memory:?}");
    assert_eq!(memory.called_fitting, 0, "a job that ran out of memory is called fitting");
    assert_eq!(memory.called_too_large, 0, "a job that ran is called too large");
}
