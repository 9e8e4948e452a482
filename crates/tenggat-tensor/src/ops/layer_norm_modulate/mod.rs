//! Layer norm without weights, then the timestep's modulation: `y = (x − μ)·ρ · (1 + scale) + shift`,
//! `ρ = 1/√(var + eps)`, over the columns; scale and shift are one row per sample.
//!
//! With `n = (x − μ)·ρ` and `g = dy · (1 + scale)`:
//! `dx = ρ · (g − mean(g) − n · mean(g·n))`, `dshift = Σ_tokens dy`, `dscale = Σ_tokens dy·n`.
//! Saved: x, and per row μ and ρ.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Added to the variance; the value of every layer norm of Qwen-Image.
pub const EPS: f64 = 1e-6;

fn check_shapes(op: &'static str, x: [usize; 2], modulation: [usize; 2], tokens: usize) -> Result<()> {
    expect_shape(op, "rows of x", &[modulation[0] * tokens], &[x[0]])?;
    expect_shape(op, "modulation (shift | scale)", &[modulation[0], 2 * x[1]], &modulation)
}

/// Normalises and modulates. x, y: `[b·tokens, c]`; modulation: `[b, 2c]` = shift | scale; stats: `[b·tokens,
/// 2]` = μ, ρ.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(
    x: View<'_>,
    modulation: View<'_>,
    tokens: usize,
    y: ViewMut<'_>,
    stats: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "layer_norm_modulate forward";
    check_shapes(OP, x.shape(), modulation.shape(), tokens)?;
    expect_shape(OP, "y", &x.shape(), &y.shape())?;
    expect_shape(OP, "stats", &[x.rows(), 2], &stats.shape())?;
    if y.on_gpu() {
        return cuda::forward(OP, x, modulation, tokens, y, stats);
    }
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward::<T>(x.cpu(OP)?, modulation.cpu(OP)?, tokens, y.cpu(OP)?, stats.cpu(OP)?);
        Ok(())
    })
}

/// Adds the input gradient to `dx` (`[b·tokens, c]`) and, if asked, writes the gradient of shift | scale to
/// `dmodulation` (`[b, 2c]`).
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn backward(
    x: View<'_>,
    modulation: View<'_>,
    stats: View<'_>,
    tokens: usize,
    dy: View<'_>,
    dx: ViewMut<'_>,
    dmodulation: Option<ViewMut<'_>>,
) -> Result<()> {
    const OP: &str = "layer_norm_modulate backward";
    check_shapes(OP, x.shape(), modulation.shape(), tokens)?;
    expect_shape(OP, "dy", &x.shape(), &dy.shape())?;
    expect_shape(OP, "dx", &x.shape(), &dx.shape())?;
    if let Some(dm) = &dmodulation {
        expect_shape(OP, "dmodulation", &modulation.shape(), &dm.shape())?;
    }
    if dx.on_gpu() {
        return cuda::backward(OP, x, modulation, stats, tokens, dy, dx, dmodulation);
    }
    dispatch_real!(OP, dx.dtype(), T => {
        let (x, dy, stats, modulation) = (x.cpu::<T>(OP)?, dy.cpu(OP)?, stats.cpu(OP)?, modulation.cpu(OP)?);
        let (dmodulation, dx) = (dmodulation.map(|dm| dm.cpu(OP)).transpose()?, dx.cpu(OP)?);
        rayon::join(
            || cpu::backward_input(x, modulation, stats, tokens, dy, dx),
            || dmodulation.map(|dm| cpu::backward_modulation(x, stats, tokens, dy, dm)),
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const B: usize = 2;
    const TOKENS: usize = 19;
    const C: usize = 6;

    fn run(x: &Tensor, m: &Tensor) -> (Tensor, Tensor) {
        let (mut y, mut stats) = (x.empty_like(x.shape()).unwrap(), x.empty_like(&[B * TOKENS, 2]).unwrap());
        forward(x.view(), m.view(), TOKENS, y.view_mut(), stats.view_mut()).unwrap();
        (y, stats)
    }

    #[test]
    fn normalises_each_row() {
        let (x, m) = (randn(DType::F64, &[B * TOKENS, C], 1), randn(DType::F64, &[B, 2 * C], 2));
        let (y, _) = run(&x, &m);
        let (x, m, y) = (x.to_f64().unwrap(), m.to_f64().unwrap(), y.to_f64().unwrap());
        for row in 0..B * TOKENS {
            let r = &x[row * C..(row + 1) * C];
            let mean = r.iter().sum::<f64>() / C as f64;
            let var = r.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / C as f64;
            for j in 0..C {
                let (shift, scale) = (m[row / TOKENS * 2 * C + j], m[row / TOKENS * 2 * C + C + j]);
                let expected = (r[j] - mean) / (var + EPS).sqrt() * (1.0 + scale) + shift;
                assert!((y[row * C + j] - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        let (x, m) = (randn(DType::F64, &[B * TOKENS, C], 1), randn(DType::F64, &[B, 2 * C], 2));
        let dy = randn(DType::F64, &[B * TOKENS, C], 3);
        let (_, stats) = run(&x, &m);
        let mut dx = Tensor::zeros(&x.device(), DType::F64, x.shape()).unwrap();
        let mut dm = m.empty_like(m.shape()).unwrap();
        backward(x.view(), m.view(), stats.view(), TOKENS, dy.view(), dx.view_mut(), Some(dm.view_mut()))
            .unwrap();
        finite_differences("dx", &x, &dx, |x| dot(&run(x, &m).0, &dy));
        finite_differences("dmodulation", &m, &dm, |m| dot(&run(&x, m).0, &dy));
    }

    #[test]
    fn f32_agrees_with_f64_at_a_large_offset() {
        let wide = |seed| randn(DType::F64, &[B * TOKENS, 64], seed);
        let mut x = wide(1);
        x.host_mut::<f64>().unwrap().iter_mut().for_each(|v| *v = *v * 3.0 + 50.0);
        let (m, dy) = (randn(DType::F64, &[B, 128], 2), wide(3));
        let all = |dtype| {
            let to = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let (x, m, dy) = (to(&x), to(&m), to(&dy));
            let (y, stats) = run(&x, &m);
            let (mut dx, mut dm) = (dy.duplicate().unwrap(), m.empty_like(m.shape()).unwrap());
            backward(x.view(), m.view(), stats.view(), TOKENS, dy.view(), dx.view_mut(), Some(dm.view_mut()))
                .unwrap();
            [y, dx, dm]
        };
        for (single, double) in all(DType::F32).iter().zip(all(DType::F64)) {
            // x has 50/3 · 6e-8 = 1e-6 of rounding per unit of n; dmodulation sums 19 of them.
            assert_close("layer norm", single, &double, 1e-4);
        }
    }

    #[test]
    fn gpus_agree() {
        for (batch, tokens, c) in [(2, 300, 48), (1, 5, 7), (1, 2, 3072), (1, 2, 3073), (1, 2, 4096)] {
            against_cpu("layer norm", |on| {
                let (rows, modulation) = (batch * tokens, on.randn(&[batch, 6 * c], 2));
                let (x, dy, mut dx) =
                    (on.randn(&[rows, c], 1), on.randn(&[rows, c], 3), on.randn(&[rows, c], 4));
                let modulation = modulation.view().columns(3 * c..5 * c);
                let (mut y, mut stats) = (on.empty(&[rows, c]), on.empty_wide(&[rows, 2]));
                let mut dm = on.empty(&[batch, 6 * c]);
                dm.fill(0.0).unwrap();
                forward(x.view(), modulation, tokens, y.view_mut(), stats.view_mut()).unwrap();
                let to = Some(dm.view_mut().columns(c..3 * c));
                backward(x.view(), modulation, stats.view(), tokens, dy.view(), dx.view_mut(), to).unwrap();
                let mut alone = on.randn(&[rows, c], 4);
                let to = alone.view_mut();
                backward(x.view(), modulation, stats.view(), tokens, dy.view(), to, None).unwrap();
                vec![("y", y), ("stats", stats), ("dx", dx), ("dmodulation", dm), ("dx alone", alone)]
            });
        }
    }

    #[test]
    fn gpus_refuse_rows_that_their_threads_cannot_hold() {
        let Some(gpu) = gpu() else { return };
        let columns = 4097;
        let zeros = |columns| Tensor::zeros(&gpu, DType::F32, &[1, columns]).unwrap();
        let (x, m, mut y) = (zeros(columns), zeros(2 * columns), zeros(columns));
        let error = forward(x.view(), m.view(), 1, y.view_mut(), zeros(2).view_mut()).unwrap_err();
        assert!(error.to_string().contains("at most 4096"), "{error}");
    }
}
