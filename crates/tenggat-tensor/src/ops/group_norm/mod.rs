//! Group norm of pictures, channels last, and SiLU after it where asked for.
//!
//! The channels are cut into groups; over all pixels of one picture and the channels of one group:
//! `n = (x − μ)·ρ · w + b` with `ρ = 1/√(var + eps)`, w and b per channel; `y = n` or `y = n·σ(n)`.
//! Mean and variance are taken one after the other: their difference cancels where the mean is large.
//!
//! Forward only: it belongs to frozen image autoencoders.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, Tensor, View, ViewMut};

/// What is the same for every picture.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[c]`.
    pub weight: &'a Tensor,
    /// `[c]`.
    pub bias: &'a Tensor,
    /// Groups; divides c.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Norms pictures of so many pixels each. x, y: `[b·pixels, c]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, pixels: usize, norm: Norm<'_>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "group_norm";
    let c = x.cols();
    expect_shape(OP, "weight", &[c], norm.weight.shape())?;
    expect_shape(OP, "bias", &[c], norm.bias.shape())?;
    expect_shape(OP, "channels, by groups", &[c / norm.groups.max(1) * norm.groups], &[c])?;
    expect_shape(OP, "rows, by pixels", &[x.rows() / pixels.max(1) * pixels], &[x.rows()])?;
    expect_shape(OP, "y", &x.shape(), &y.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, x, pixels, norm, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        let (weight, bias) = (norm.weight.host()?, norm.bias.host()?);
        cpu::forward::<T>(x.cpu(OP)?, pixels, norm, (weight, bias), y.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const PICTURES: usize = 2;

    fn run(dtype: DType, pixels: usize, [groups, c]: [usize; 2], offset: f64, silu: bool) -> [Tensor; 4] {
        let make = |shape: &[usize], seed| randn(DType::F64, shape, seed);
        let mut x = make(&[PICTURES * pixels, c], 1);
        x.host_mut::<f64>().unwrap().iter_mut().for_each(|v| *v += offset);
        let [x, weight, bias] = [x, make(&[c], 2), make(&[c], 3)].map(|t| t.to_dtype(dtype).unwrap());
        let mut y = x.empty_like(x.shape()).unwrap();
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6, silu };
        forward(x.view(), pixels, norm, y.view_mut()).unwrap();
        [x, weight, bias, y]
    }

    /// Pictures of one chunk of pixels and of several.
    #[test]
    fn matches_the_definition() {
        let (groups, per) = (3, 2);
        let c = groups * per;
        for (pixels, silu) in [(1, false), (35, true), (3000, false)] {
            let [x, w, b, y] = run(DType::F64, pixels, [groups, c], 0.5, silu).map(|t| t.to_f64().unwrap());
            for (picture, group) in (0..PICTURES).flat_map(|p| (0..groups).map(move |g| (p, g))) {
                let places: Vec<usize> = (0..pixels * per)
                    .map(|i| (picture * pixels + i / per) * c + group * per + i % per)
                    .collect();
                let n = places.len() as f64;
                let mean = places.iter().map(|&i| x[i]).sum::<f64>() / n;
                let variance = places.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / n;
                for i in places {
                    let n = (x[i] - mean) / (variance + 1e-6).sqrt() * w[i % c] + b[i % c];
                    let expected = if silu { n / (1.0 + (-n).exp()) } else { n };
                    assert!((y[i] - expected).abs() < 1e-11, "{pixels} pixels, element {i}");
                }
            }
        }
    }

    #[test]
    fn f32_agrees_with_f64_at_a_large_offset() {
        let [single, double] = [DType::F32, DType::F64].map(|dtype| {
            let [.., y] = run(dtype, 2500, [2, 8], 30.0, true);
            y
        });
        // x has 30 · 6e-8 = 2e-6 of rounding per unit of n, times a weight of up to 3.
        assert_close("group norm", &single, &double, 1e-4);
    }

    #[test]
    fn any_thread_count_gives_the_same_bits() {
        let run_with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let [.., y] = pool.install(|| run(DType::F32, 5000, [2, 4], 0.0, true));
            y.to_f32().unwrap()
        };
        let one = run_with(1);
        assert!((2..5).all(|threads| run_with(threads) == one));
    }

    #[test]
    fn gpus_agree() {
        for (pixels, groups, c) in [(300, 4, 48), (5, 1, 7), (1, 3, 6)] {
            for silu in [false, true] {
                against_cpu("group norm", |on| {
                    let (x, mut y) = (on.randn(&[2 * pixels, c], 1), on.empty(&[2 * pixels, c]));
                    let (weight, bias) = (on.randn(&[c], 2), on.randn(&[c], 3));
                    let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-3, silu };
                    forward(x.view(), pixels, norm, y.view_mut()).unwrap();
                    vec![("y", y)]
                });
            }
        }
    }
}
