//! Fewer points of a long curve that look like all of them.

use serde::Serialize;

use crate::metrics::Series;

/// Weight of the newest loss in the smoothed one unless told otherwise: an average over about 50 steps.
const SMOOTHING: f64 = 0.02;

/// Points of a run's curves, one column each. What is not known is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Curve {
    /// Steps done.
    pub step: Vec<u32>,
    /// Seconds on the run's clock.
    pub time_s: Vec<f32>,
    /// Loss of the step.
    pub loss: Vec<f32>,
    /// Loss averaged over the steps before.
    pub smoothed: Vec<f32>,
    /// Learning rate.
    pub lr: Vec<f32>,
    /// Norm of the gradient.
    pub grad_norm: Vec<f32>,
    /// Seconds of the step.
    pub step_s: Vec<f32>,
    /// Step and validation loss, where it was measured.
    pub validation: Vec<(u32, f32)>,
    /// Steps of the run that the points stand for.
    pub of: usize,
}

/// At most about `most` points between two steps. Of each stretch of steps the lowest and the highest loss
/// and the last step are kept: no outlier is lost. The smoothed loss is of all steps. `smoothing` is the
/// weight of the newest loss in it.
pub fn thin(series: &Series, from: u32, to: u32, most: usize, smoothing: Option<f64>) -> Curve {
    let columns = series.columns();
    let smoothed = smooth(&columns.loss, smoothing.unwrap_or(SMOOTHING));
    let start = columns.step.partition_point(|&step| step < from);
    let end = columns.step.partition_point(|&step| step <= to).max(start);
    let chosen = choose(&columns.loss[start..end], most.max(3));
    let pick = |column: &[f32]| chosen.iter().map(|&i| column[start + i]).collect();
    Curve {
        step: chosen.iter().map(|&i| columns.step[start + i]).collect(),
        time_s: pick(&columns.time_s),
        loss: pick(&columns.loss),
        smoothed: pick(&smoothed),
        lr: pick(&columns.lr),
        grad_norm: pick(&columns.grad_norm),
        step_s: pick(&columns.step_s),
        validation: columns.validation.iter().filter(|(s, _)| (from..=to).contains(s)).copied().collect(),
        of: end - start,
    }
}

/// The exponential average of the values so far; values that are no numbers change nothing.
fn smooth(values: &[f32], weight: f64) -> Vec<f32> {
    let (mut average, mut count) = (f64::NAN, 0u32);
    let weight = if weight.is_finite() { weight.clamp(1e-4, 1.0) } else { SMOOTHING };
    let mut next = |value: f32| {
        if value.is_finite() {
            count = count.saturating_add(1);
            let before = if average.is_nan() { f64::from(value) } else { average };
            average = before + weight.max(1.0 / f64::from(count)) * (f64::from(value) - before);
        }
        average as f32
    };
    values.iter().map(|&value| next(value)).collect()
}

/// Places of the values to keep, in order.
fn choose(values: &[f32], most: usize) -> Vec<usize> {
    if values.len() <= most {
        return (0..values.len()).collect();
    }
    let stretches = (most / 3).max(1);
    let mut chosen = Vec::with_capacity(most + 3);
    for n in 0..stretches {
        let (start, end) = (n * values.len() / stretches, (n + 1) * values.len() / stretches);
        let finite = || (start..end).filter(|&i| values[i].is_finite());
        let by = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]);
        let mut of_stretch: Vec<usize> =
            [finite().min_by(by), finite().max_by(by), end.checked_sub(1)].into_iter().flatten().collect();
        of_stretch.sort_unstable();
        of_stretch.dedup();
        chosen.extend(of_stretch);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::METRICS;

    fn series(steps: u32, loss: impl Fn(u32) -> f64) -> Series {
        let folder = tempfile::tempdir().unwrap();
        let line = |step| format!("{{\"step\":{step},\"loss\":{}}}\n", loss(step));
        let text: String = (1..=steps).map(line).collect();
        std::fs::write(folder.path().join(METRICS), text).unwrap();
        let mut series = Series::new(folder.path());
        series.follow();
        series
    }

    #[test]
    fn no_outlier_is_lost() {
        let series = series(50_000, |step| if step == 31_234 { 9.0 } else { 0.5 });
        let curve = thin(&series, 0, u32::MAX, 900, None);
        assert!(curve.step.len() <= 900 && curve.of == 50_000, "{}", curve.step.len());
        assert!(curve.loss.contains(&9.0) && curve.step.is_sorted());
        assert_eq!(*curve.step.last().unwrap(), 50_000);
        // The smoothed loss is of all steps, whatever is shown.
        let whole = thin(&series, 31_234, 31_236, 900, None);
        assert_eq!(whole.step, [31_234, 31_235, 31_236]);
        assert!((whole.smoothed[0] - 0.67).abs() < 1e-3, "{}", whole.smoothed[0]);
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        let empty = series(0, |_| 0.0);
        assert_eq!(thin(&empty, 0, 10, 0, Some(f64::NAN)), Curve::default());
        let short = series(5, f64::from);
        assert_eq!(thin(&short, 4, 2, 100, None).step, [0; 0]);
        assert_eq!(thin(&short, 2, 4, 100, Some(1.0)).smoothed, [2.0, 3.0, 4.0]);
    }
}
