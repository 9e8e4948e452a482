//! The score of a LoRA, and of the bare model, on test pictures.

use serde::Serialize;
use tenggat_models::Result;
use tenggat_models::lora::Lora;
use tenggat_tensor::Tensor;

use super::rules::{self, Redrawing};
use crate::job::ErrorWeights;
use crate::measure::score::{HeldOut, Judge, LEVELS, Prompt, Redraw};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measures {
    /// Error of redrawn pictures, and how they are redrawn.
    pub picture: Option<Redrawing>,
    /// Error of predicted velocities, with this many noises at each level.
    pub velocity: Option<u64>,
    /// What errors with captions and with the empty prompt count.
    pub weights: ErrorWeights,
}

impl Measures {
    /// Forward passes that [`evaluate`] makes for one adapter or none, counted in pictures.
    pub fn passes(&self, pictures: usize) -> u64 {
        // With the caption a step is two passes, with the empty prompt one.
        let drawn = self.picture.map_or(0, |r| 3 * (r.steps * r.seeds) as u64);
        let predicted = self.velocity.map_or(0, |noises| 2 * LEVELS as u64 * noises);
        pictures as u64 * (drawn + predicted)
    }
}

/// One kind of error on test pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Both by their weights: what the contest ranks by; lower is better.
    pub total: f64,
    /// Mean with the captions.
    pub captioned: f64,
    /// Mean with the empty prompt.
    pub empty: f64,
    /// Standard deviation of the total from picture to picture.
    pub deviation: f64,
    /// Captioned and empty error of each picture, in the order of the test pictures.
    pub pictures: Vec<[f64; 2]>,
    /// What they count.
    #[serde(skip)]
    weights: ErrorWeights,
}

impl Measured {
    fn new(pictures: Vec<[f64; 2]>, weights: ErrorWeights) -> Self {
        let n = pictures.len().max(1) as f64;
        let mean = |f: &dyn Fn(&[f64; 2]) -> f64| pictures.iter().map(f).sum::<f64>() / n;
        let total = |p: &[f64; 2]| weights.sum(p[0], p[1]);
        let centre = mean(&total);
        let deviation = mean(&|p| (total(p) - centre).powi(2)).sqrt();
        Measured {
            total: centre,
            captioned: mean(&|p| p[0]),
            empty: mean(&|p| p[1]),
            deviation,
            pictures,
            weights,
        }
    }

    /// Mean difference of the totals, picture by picture, from another adapter's on the same pictures and
    /// noise, and its standard error.
    pub fn difference(&self, other: &Self) -> (f64, f64) {
        let total = |p: &[f64; 2]| self.weights.sum(p[0], p[1]);
        let each: Vec<f64> =
            self.pictures.iter().zip(&other.pictures).map(|(a, b)| total(a) - total(b)).collect();
        let n = each.len().max(1) as f64;
        let mean = each.iter().sum::<f64>() / n;
        let variance = each.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        (mean, (variance / n).sqrt())
    }
}

/// Both kinds of error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Of redrawn pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<Measured>,
    /// Of predicted velocities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub velocity: Option<Measured>,
}

/// Measures; `tick` is called with the number of forward passes done since the last call, counted in
/// pictures.
///
/// # Errors
/// Shapes do not fit, or the device failed.
pub fn evaluate(
    judge: Judge<'_>,
    held: &[HeldOut],
    lora: Option<&Lora>,
    measures: Measures,
    tick: &mut dyn FnMut(u64),
) -> Result<Evaluation> {
    let mut evaluation = Evaluation { picture: None, velocity: None };
    if let Some(redrawing) = measures.picture {
        let redraw = Redraw {
            sigmas: rules::sigmas(redrawing.steps, redrawing.denoise),
            guidance: (redrawing.guidance != 1.0).then_some(redrawing.guidance),
        };
        let mut errors = Vec::new();
        for group in held {
            let mut sums = vec![[0.0; 2]; group.digests.len()];
            for seed in rules::seeds(redrawing.seeds) {
                for (mode, prompt) in Prompt::ALL.into_iter().enumerate() {
                    let drawn = judge.redraw(group, prompt, lora, &redraw, seed)?;
                    let differences = in_bytes(&drawn, &group.pictures, sums.len())?;
                    sums.iter_mut().zip(differences).for_each(|(sum, d)| sum[mode] += d);
                    let passes = if prompt == Prompt::Caption { 2 } else { 1 };
                    tick(passes * (redrawing.steps * sums.len()) as u64);
                }
            }
            errors.extend(sums.into_iter().map(|sum| sum.map(|s| s / redrawing.seeds.max(1) as f64)));
        }
        evaluation.picture = Some(Measured::new(errors, measures.weights));
    }
    if let Some(noises) = measures.velocity {
        let mut errors = Vec::new();
        for group in held {
            let mut sums = vec![[0.0; 2]; group.digests.len()];
            for level in 0..LEVELS {
                for number in 0..noises {
                    for (mode, prompt) in Prompt::ALL.into_iter().enumerate() {
                        let each = judge.velocity(group, prompt, lora, level, number)?;
                        sums.iter_mut().zip(each).for_each(|(sum, e)| sum[mode] += e);
                        tick(sums.len() as u64);
                    }
                }
            }
            let cases = (LEVELS as u64 * noises).max(1) as f64;
            errors.extend(sums.into_iter().map(|sum| sum.map(|s| s / cases)));
        }
        evaluation.velocity = Some(Measured::new(errors, measures.weights));
    }
    Ok(evaluation)
}

/// Mean squared difference of `n` pictures in [0, 1]. Drawn pictures were stored with 8 bits, cut off, as
/// ComfyUI's `SaveImage` does.
fn in_bytes(drawn: &Tensor, truth: &Tensor, n: usize) -> Result<Vec<f64>> {
    let (drawn, truth) = (drawn.to_f32()?, truth.to_f32()?);
    let size = (drawn.len() / n.max(1)).max(1);
    let unit = |v: f32| f64::from((v + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0);
    let square = |(d, t): (&f32, &f32)| ((unit(*d).floor() - unit(*t).round()) / 255.0).powi(2);
    let pictures = drawn.chunks(size).zip(truth.chunks(size));
    Ok(pictures.map(|(d, t)| d.iter().zip(t).map(square).sum::<f64>() / size as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_captioned_and_three_quarters_empty() {
        let measured = Measured::new(vec![[1.0, 2.0], [3.0, 6.0]], ErrorWeights::default());
        assert_eq!((measured.captioned, measured.empty), (2.0, 4.0));
        assert_eq!(measured.total, 0.25 * 2.0 + 0.75 * 4.0);
        // Totals 1.75 and 5.25.
        assert!((measured.deviation - 1.75).abs() < 1e-12);
        let better = Measured::new(vec![[1.0, 1.0], [3.0, 5.0]], ErrorWeights::default());
        let (mean, error) = better.difference(&measured);
        assert!((mean + 0.75).abs() < 1e-12 && error.abs() < 1e-12);
        let even = Measured::new(vec![[1.0, 2.0], [3.0, 6.0]], "1:1".parse().unwrap());
        assert_eq!(even.total, 3.0);
    }

    #[test]
    fn passes_are_counted() {
        let redrawing = Redrawing { steps: 20, guidance: 8.0, denoise: 0.93, seeds: 10 };
        let measures =
            Measures { picture: Some(redrawing), velocity: Some(16), weights: ErrorWeights::default() };
        assert_eq!(measures.passes(2), 2 * (600 + 512));
    }
}
