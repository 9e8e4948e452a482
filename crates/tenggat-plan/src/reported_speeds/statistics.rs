//! How well forecasts agree with reports.

use serde::Serialize;

/// Agreement of forecasts with reported speeds: forecast over report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// Reports.
    pub reports: usize,
    /// Median of forecast over report.
    pub median: f64,
    /// Typical factor of error: `exp` of the root mean square of the logarithms of forecast over report.
    pub typical_error: f64,
    /// Spread around their own geometric mean: `exp` of the standard deviation of the logarithms; 1 for a
    /// single report.
    pub spread: f64,
}

impl Agreement {
    /// Of ratios of forecast over report; `None` if there are none.
    pub fn of(ratios: &[f64]) -> Option<Self> {
        let logs: Vec<f64> = ratios
            .iter()
            .filter(|ratio| **ratio > 0.0 && ratio.is_finite())
            .map(|ratio| ratio.ln())
            .collect();
        if logs.is_empty() {
            return None;
        }
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        let around = |centre: f64| logs.iter().map(|log| (log - centre).powi(2)).sum::<f64>();
        let variance = if logs.len() > 1 { around(mean) / (n - 1.0) } else { 0.0 };
        Some(Self {
            reports: logs.len(),
            median: median(&logs).exp(),
            typical_error: (around(0.0) / n).sqrt().exp(),
            spread: variance.sqrt().exp(),
        })
    }
}

/// Agreement of forecasts with reported peaks of memory.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct MemoryAgreement {
    /// Reported peaks.
    pub peaks: usize,
    /// Of these, at or below the upper end of the forecast.
    pub covered: usize,
    /// Reports of jobs that ran out of memory, or spilled into the host's.
    pub failures: usize,
    /// Of these, called fitting.
    pub called_fitting: usize,
    /// Reports of jobs that ran.
    pub successes: usize,
    /// Of these, called too large.
    pub called_too_large: usize,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_counted_in_factors() {
        let agreement = Agreement::of(&[0.5, 1.0, 2.0]).unwrap();
        assert_eq!(agreement.reports, 3);
        assert!((agreement.median - 1.0).abs() < 1e-12);
        assert!((agreement.spread - 2.0).abs() < 1e-9);
        assert!((agreement.typical_error - 2f64.powf((2.0f64 / 3.0).sqrt())).abs() < 1e-9);
        assert_eq!(Agreement::of(&[1.5]).unwrap().spread, 1.0);
        assert_eq!(Agreement::of(&[f64::NAN, 0.0]), None);
    }
}
