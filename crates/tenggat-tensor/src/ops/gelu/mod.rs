//! GELU, tanh form: `y = x/2 · (1 + tanh(u))` with `u = √(2/π) · (x + 0.044715 x³)`.
//!
//! Since `(1 + tanh u)/2 = σ(2u)`: `y = x·σ(2u)` and
//! `dy/dx = σ + 2x·σ·(1 − σ)·√(2/π)·(1 + 3·0.044715 x²)`.
//! Saved: the input.

mod cpu;
pub(crate) mod cuda;

use super::activation;
use crate::{Result, View, ViewMut};

/// `y = gelu(x)`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn forward(x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    activation::forward::<cpu::Gelu>(x, y)
}

/// `d *= gelu'(x)`: turns the output gradient into the input gradient in place; both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn backward(x: View<'_>, d: ViewMut<'_>) -> Result<()> {
    activation::backward::<cpu::Gelu>(x, d)
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Device, Tensor};

    #[test]
    fn matches_the_definition() {
        let x: Vec<f64> = (-80..=80).map(|i| f64::from(i) / 10.0).collect();
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            let t = Tensor::from_f64(&Device::cpu(), dtype, &x, &[7, 23]).unwrap();
            let mut y = t.empty_like(&[7, 23]).unwrap();
            forward(t.view(), y.view_mut()).unwrap();
            for (x, y) in x.iter().zip(y.to_f64().unwrap()) {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                assert!((y - 0.5 * x * (1.0 + u.tanh())).abs() < tolerance, "gelu({x}) = {y}");
            }
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        let (x, dy) = (randn(DType::F64, &[5, 7], 1), randn(DType::F64, &[5, 7], 2));
        let loss = |x: &Tensor| {
            let mut y = x.empty_like(&[5, 7]).unwrap();
            forward(x.view(), y.view_mut()).unwrap();
            dot(&y, &dy)
        };
        let mut dx = dy.duplicate().unwrap();
        backward(x.view(), dx.view_mut()).unwrap();
        finite_differences("dx", &x, &dx, loss);
        let mut single = dy.to_dtype(DType::F32).unwrap();
        backward(x.to_dtype(DType::F32).unwrap().view(), single.view_mut()).unwrap();
        assert_close("f32", &single, &dx, 5e-6);
    }

    #[test]
    fn gpus_agree() {
        for shape in [[37, 48], [5, 7]] {
            against_cpu("gelu", |on| {
                let (x, mut y, mut d) = (on.randn(&shape, 1), on.empty(&shape), on.randn(&shape, 2));
                forward(x.view(), y.view_mut()).unwrap();
                backward(x.view(), d.view_mut()).unwrap();
                vec![("y", y), ("dx", d)]
            });
        }
    }
}
