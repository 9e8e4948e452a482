//! Linear layer with a frozen weight: forward and input gradient, never a weight gradient.
//!
//! Forward: `y = x · Wᵀ + bias (+ y)`. Backward: `dx = dy · W (+ dx)`.

mod cpu;

use super::{dispatch_real, gemm};
use crate::error::expect_shape;
use crate::{DType, Result, Tensor, View, ViewMut};

/// A frozen weight as it is stored.
#[derive(Debug)]
pub enum Weight {
    /// `[out, in]` in the computing type, or in bf16 and widened block by block as it is used.
    Dense(Tensor),
}

impl Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        let Weight::Dense(w) = self;
        [w.shape()[0], w.shape()[1]]
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        let Weight::Dense(w) = self;
        w.len() * w.dtype().bytes()
    }
}

/// What happens to the values that the output already has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten, and never read.
    Replace,
    /// The result is added to them.
    Add,
}

impl Write {
    /// As the `beta` of a matrix product.
    pub fn beta(self) -> f64 {
        if self == Write::Replace { 0.0 } else { 1.0 }
    }
}

/// `y = x · Wᵀ + bias`; x: `[m, in]`, w: `[out, in]`, bias: `[out]`, y: `[m, out]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, w: &Weight, bias: Option<&Tensor>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "linear forward";
    let [out, input] = w.shape();
    expect_shape(OP, "x columns", &[input], &[x.cols()])?;
    expect_shape(OP, "y", &[x.rows(), out], &y.shape())?;
    let mut y = y;
    let write = match bias {
        Some(bias) => {
            expect_shape(OP, "bias", &[out], bias.shape())?;
            super::copy::broadcast_row(bias.view(), y.reborrow())?;
            Write::Add
        }
        None => Write::Replace,
    };
    let Weight::Dense(w) = w;
    if w.dtype() == y.dtype() {
        return gemm::nt(1.0, x, w.view(), write.beta(), y);
    }
    expect_dtype(OP, w.dtype())?;
    dispatch_real!(OP, y.dtype(), T => {
        cpu::forward_widened::<T>(x.cpu(OP)?, w.view().cpu(OP)?, write, y.cpu(OP)?);
        Ok(())
    })
}

/// `dx = dy · W`, or added to `dx`; dy: `[m, out]`, w: `[out, in]`, dx: `[m, in]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn backward(dy: View<'_>, w: &Weight, write: Write, dx: ViewMut<'_>) -> Result<()> {
    const OP: &str = "linear backward";
    let [out, input] = w.shape();
    expect_shape(OP, "dy columns", &[out], &[dy.cols()])?;
    expect_shape(OP, "dx", &[dy.rows(), input], &dx.shape())?;
    let Weight::Dense(w) = w;
    if w.dtype() == dx.dtype() {
        return gemm::nn(1.0, dy, w.view(), write.beta(), dx);
    }
    expect_dtype(OP, w.dtype())?;
    dispatch_real!(OP, dx.dtype(), T => {
        cpu::backward_widened::<T>(dy.cpu(OP)?, w.view().cpu(OP)?, write, dx.cpu(OP)?);
        Ok(())
    })
}

/// Only bf16 is widened on the way.
fn expect_dtype(op: &'static str, dtype: DType) -> Result<()> {
    if dtype == DType::BF16 { Ok(()) } else { Err(crate::Error::DType { op, dtype, device: "cpu" }) }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    /// L = Σ y∘dy, y = x Wᵀ + b: dL/dx = dy W.
    #[test]
    fn input_gradient_is_the_derivative() {
        let (x, dy) = (randn(DType::F64, &[3, 5], 1), randn(DType::F64, &[3, 4], 2));
        let (w, b) = (Weight::Dense(randn(DType::F64, &[4, 5], 3)), randn(DType::F64, &[4], 4));
        let loss = |x: &Tensor| {
            let mut y = x.empty_like(&[3, 4]).unwrap();
            forward(x.view(), &w, Some(&b), y.view_mut()).unwrap();
            dot(&y, &dy)
        };
        let mut dx = x.empty_like(&[3, 5]).unwrap();
        backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
        finite_differences("dx", &x, &dx, loss);
        let once = dx.to_f64().unwrap();
        backward(dy.view(), &w, Write::Add, dx.view_mut()).unwrap();
        assert!(dx.to_f64().unwrap().iter().zip(once).all(|(a, b)| (a - 2.0 * b).abs() < 1e-12));
    }

    #[test]
    fn a_bf16_weight_computes_as_its_widened_copy() {
        let (m, out, input) = (37, 300, 130);
        let (x, dy) = (randn(DType::F32, &[m, input], 1), randn(DType::F32, &[m, out], 2));
        let (stored, bias) = (randn(DType::BF16, &[out, input], 3), randn(DType::F32, &[out], 4));
        let wide = Weight::Dense(stored.to_dtype(DType::F32).unwrap());
        let narrow = Weight::Dense(stored);
        let run = |w: &Weight| {
            let (mut y, mut dx) = (x.empty_like(&[m, out]).unwrap(), randn(DType::F32, &[m, input], 5));
            forward(x.view(), w, Some(&bias), y.view_mut()).unwrap();
            backward(dy.view(), w, Write::Add, dx.view_mut()).unwrap();
            (y, dx)
        };
        let ((y, dx), (y_ref, dx_ref)) = (run(&narrow), run(&wide));
        // Sums of 300 products, grouped differently: 300 · 17 · 2⁻²⁴.
        assert_close("y", &y, &y_ref, 3e-4);
        assert_close("dx", &dx, &dx_ref, 3e-4);
        assert_eq!(narrow.bytes() * 2, wide.bytes());
    }
}
