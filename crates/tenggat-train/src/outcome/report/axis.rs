//! Round numbers for axes.

/// Numbers from `low` to `high` in steps of 1, 2 or 5 times a power of ten, about `count` of them.
pub(super) fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![low];
    }
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.999).unwrap_or(rough);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A number of a list of ticks, with as many digits as their distance needs: `0.25`, `1500`, `5e-5`.
pub(super) fn label(value: f64, ticks: &[f64]) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let step = match ticks {
        [first, second, ..] => (second - first).abs(),
        _ => value.abs(),
    };
    let largest = ticks.iter().fold(0.0f64, |m, t| m.max(t.abs()));
    if !(1e-2..1e6).contains(&largest) {
        let exponent = value.abs().log10().floor() as i32;
        let mantissa = value / 10f64.powi(exponent);
        let digits = (exponent - (step.log10() + 1e-9).floor() as i32).clamp(0, 3) as usize;
        let mantissa = format!("{mantissa:.digits$}");
        let mantissa = mantissa.strip_suffix(".0").unwrap_or(&mantissa);
        return format!("{mantissa}e{exponent}").replace('-', "−");
    }
    let digits = (-(step.log10() + 1e-9).floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}").replace('-', "−")
}

/// The range that holds a share of the values, `trim` of them cut off at either end.
pub(super) fn range(values: impl Iterator<Item = f64>, trim: f64) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let cut = (values.len() as f64 * trim) as usize;
    Some((values[cut], values[values.len() - 1 - cut]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, count: usize) -> Vec<String> {
        let ticks = ticks(low, high, count);
        ticks.iter().map(|&t| label(t, &ticks)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 250.0, 5), ["0", "50", "100", "150", "200", "250"]);
        assert_eq!(labels(0.13, 0.47, 5), ["0.2", "0.3", "0.4"]);
        assert_eq!(labels(0.13, 0.47, 8), ["0.15", "0.20", "0.25", "0.30", "0.35", "0.40", "0.45"]);
        assert_eq!(labels(0.0, 1e-4, 4), ["0", "5e−5", "1e−4"]);
        assert_eq!(labels(-1.0, 1.0, 2), ["−1", "0", "1"]);
        assert_eq!(labels(3.0, 3.0, 4), ["3"]);
        assert_eq!(labels(f64::NAN, 3.0, 4).len(), 1);
    }

    #[test]
    fn outliers_are_trimmed() {
        let values = (0..1000).map(f64::from).chain([f64::NAN, 1e9]);
        assert_eq!(range(values, 0.01), Some((10.0, 990.0)));
        assert_eq!(range([f64::NAN].into_iter(), 0.0), None);
        assert_eq!(range([2.0].into_iter(), 0.01), Some((2.0, 2.0)));
    }
}
