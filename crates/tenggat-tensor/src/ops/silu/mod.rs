//! SiLU: `y = x·σ(x)`, `dy/dx = σ + x·σ·(1 − σ)`. Saved: the input.

mod cpu;
pub(crate) mod cuda;

use super::activation;
use crate::{Result, View, ViewMut};

/// `y = silu(x)`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn forward(x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    activation::forward::<cpu::Silu>(x, y)
}

/// `d *= silu'(x)`: turns the output gradient into the input gradient in place; both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn backward(x: View<'_>, d: ViewMut<'_>) -> Result<()> {
    activation::backward::<cpu::Silu>(x, d)
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    #[test]
    fn backward_is_the_derivative() {
        let (x, dy) = (randn(DType::F64, &[3, 9], 1), randn(DType::F64, &[3, 9], 2));
        let loss = |x: &Tensor| {
            let mut y = x.empty_like(&[3, 9]).unwrap();
            forward(x.view(), y.view_mut()).unwrap();
            dot(&y, &dy)
        };
        let mut dx = dy.duplicate().unwrap();
        backward(x.view(), dx.view_mut()).unwrap();
        finite_differences("dx", &x, &dx, loss);
    }

    #[test]
    fn f32_agrees_with_f64() {
        let x = randn(DType::F64, &[20, 50], 3);
        let (mut y, mut y32) = (x.empty_like(&[20, 50]).unwrap(), randn(DType::F32, &[20, 50], 0));
        forward(x.view(), y.view_mut()).unwrap();
        forward(x.to_dtype(DType::F32).unwrap().view(), y32.view_mut()).unwrap();
        assert_close("silu", &y32, &y, 1e-6);
    }

    #[test]
    fn gpus_agree() {
        for shape in [[37, 48], [5, 7]] {
            against_cpu("silu", |on| {
                let (x, mut y, mut d) = (on.randn(&shape, 1), on.empty(&shape), on.randn(&shape, 2));
                forward(x.view(), y.view_mut()).unwrap();
                backward(x.view(), d.view_mut()).unwrap();
                vec![("y", y), ("dx", d)]
            });
        }
    }
}
