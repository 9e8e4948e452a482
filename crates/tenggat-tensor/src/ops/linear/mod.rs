//! Linear layer with a frozen weight: forward and input gradient, never a weight gradient.
//!
//! Forward: `y = x · Wᵀ + bias (+ y)`. Backward: `dx = dy · W (+ dx)`.

mod cpu;

pub use super::write::Write;

use super::{dispatch_real, gemm};
use crate::error::expect_shape;
use crate::weight::Weight;
use crate::{DType, Error, Result, Tensor, View, ViewMut};

/// `y = x · Wᵀ + bias`; x: `[m, in]`, w: `[out, in]`, bias: `[out]`, y: `[m, out]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, w: &Weight, bias: Option<&Tensor>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "linear forward";
    check_shapes(OP, x, w, bias, &y)?;
    if let Weight::Packed(w) = w {
        return w.forward(x, bias, None, Write::Replace, y);
    }
    let mut y = y;
    match bias {
        Some(bias) if y.on_gpu() => on_gpu(OP, x, w, Some(bias), Write::Replace, y),
        Some(bias) => {
            super::copy::broadcast_row(bias.view(), y.reborrow())?;
            product(OP, x, w, Write::Add, y)
        }
        None => product(OP, x, w, Write::Replace, y),
    }
}

/// `y += x · Wᵀ + bias` on a GPU, where the last product that writes y finds what it adds to already there,
/// and nothing has to pass over y again; shapes as in [`forward`].
///
/// # Errors
/// Shapes do not fit, types differ, or y is not on a GPU.
pub fn forward_onto(x: View<'_>, w: &Weight, bias: Option<&Tensor>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "linear forward onto";
    check_shapes(OP, x, w, bias, &y)?;
    on_gpu(OP, x, w, bias, Write::Add, y)
}

fn check_shapes(
    op: &'static str,
    x: View<'_>,
    w: &Weight,
    bias: Option<&Tensor>,
    y: &ViewMut<'_>,
) -> Result<()> {
    let [out, input] = w.shape();
    expect_shape(op, "x columns", &[input], &[x.cols()])?;
    expect_shape(op, "y", &[x.rows(), out], &y.shape())?;
    bias.map_or(Ok(()), |bias| expect_shape(op, "bias", &[out], bias.shape()))
}

/// `y = x · Wᵀ (+ bias) (+ y)` on a GPU.
fn on_gpu(
    op: &'static str,
    x: View<'_>,
    w: &Weight,
    bias: Option<&Tensor>,
    write: Write,
    mut y: ViewMut<'_>,
) -> Result<()> {
    if let Weight::Fp8(w) = w
        && w.forward(x, bias, write, y.reborrow())?
    {
        return Ok(());
    }
    let wide = w.scratch(y.dtype())?;
    let w = wide.as_ref().map_or_else(|| w.dense(op), Ok)?;
    match bias {
        Some(bias) => gemm::nt_with_bias(x, w.view(), bias.view(), write.beta(), y),
        None => gemm::nt(1.0, x, w.view(), write.beta(), y),
    }
}

/// `y += x · Wᵀ`; x: `[m, in]`, w: `[out, in]`, y: `[m, out]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn accumulate(x: View<'_>, w: &Weight, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "linear accumulate";
    check_shapes(OP, x, w, None, &y)?;
    product(OP, x, w, Write::Add, y)
}

fn product(op: &'static str, x: View<'_>, w: &Weight, write: Write, y: ViewMut<'_>) -> Result<()> {
    if y.on_gpu() {
        return on_gpu(op, x, w, None, write, y);
    }
    match w {
        Weight::Dense(w) if w.dtype() == y.dtype() => gemm::nt(1.0, x, w.view(), write.beta(), y),
        Weight::Dense(w) => {
            check_bf16(op, w.dtype())?;
            dispatch_real!(op, y.dtype(), T => {
                cpu::forward::<T>(x.cpu(op)?, &w.view().cpu(op)?, write, y.cpu(op)?);
                Ok(())
            })
        }
        Weight::Quantised(w) => dispatch_real!(op, y.dtype(), T => {
            cpu::forward::<T>(x.cpu(op)?, w, write, y.cpu(op)?);
            Ok(())
        }),
        Weight::Packed(w) => w.forward(x, None, None, write, y),
        Weight::Resident(_) | Weight::Fp8(_) => {
            Err(Error::Place { op, expected: "host memory", got: "a GPU" })
        }
    }
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
    let mut dx = dx;
    if dx.on_gpu() {
        if let Weight::Fp8(w) = w
            && w.backward(dy, write, dx.reborrow())?
        {
            return Ok(());
        }
        let wide = w.scratch(dx.dtype())?;
        let w = wide.as_ref().map_or_else(|| w.dense(OP), Ok)?;
        return gemm::nn(1.0, dy, w.view(), write.beta(), dx);
    }
    match w {
        Weight::Dense(w) if w.dtype() == dx.dtype() => gemm::nn(1.0, dy, w.view(), write.beta(), dx),
        Weight::Dense(w) => {
            check_bf16(OP, w.dtype())?;
            dispatch_real!(OP, dx.dtype(), T => {
                cpu::backward::<T>(dy.cpu(OP)?, &w.view().cpu(OP)?, write, dx.cpu(OP)?);
                Ok(())
            })
        }
        Weight::Quantised(w) => dispatch_real!(OP, dx.dtype(), T => {
            cpu::backward::<T>(dy.cpu(OP)?, w, write, dx.cpu(OP)?);
            Ok(())
        }),
        Weight::Packed(w) => w.backward(dy, None, Some((write, dx))),
        Weight::Resident(_) | Weight::Fp8(_) => {
            Err(Error::Place { op: OP, expected: "host memory", got: "a GPU" })
        }
    }
}

/// Only bf16 is converted to f32 inside the product.
fn check_bf16(op: &'static str, dtype: DType) -> Result<()> {
    if dtype == DType::BF16 { Ok(()) } else { Err(Error::DType { op, dtype, device: "cpu" }) }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::Device;
    use crate::weight::Quantised;

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

    /// The quantised layer computes what its dequantised copy computes, forward and backward. Sums of up to
    /// 2112 products, grouped differently.
    #[test]
    fn a_quantised_weight_computes_as_its_dequantised_copy() {
        let (m, out, input) = (19, 2112, 320);
        let stored = randn(DType::BF16, &[out, input], 3);
        let stored = stored.host::<half::bf16>().unwrap();
        let formats =
            ["uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "qfloat8", "float8", "qint8", "int8"];
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-3)] {
            let (x, dy) = (randn(dtype, &[m, input], 1), randn(dtype, &[m, out], 2));
            let bias = randn(dtype, &[out], 4);
            for format in formats {
                let narrow = Quantised::quantise(format.parse().unwrap(), stored, input).unwrap();
                let wide = Weight::Dense(narrow.dequantise(&x.device(), dtype).unwrap());
                let narrow = Weight::Quantised(narrow);
                let run = |w: &Weight| {
                    let (mut y, mut dx) =
                        (x.empty_like(&[m, out]).unwrap(), x.empty_like(&[m, input]).unwrap());
                    forward(x.view(), w, Some(&bias), y.view_mut()).unwrap();
                    accumulate(x.view(), w, y.view_mut()).unwrap();
                    backward(dy.view(), w, Write::Replace, dx.view_mut()).unwrap();
                    (y, dx)
                };
                let ((y, dx), (y_ref, dx_ref)) = (run(&narrow), run(&wide));
                assert_close(format, &y, &y_ref, tolerance);
                assert_close(format, &dx, &dx_ref, tolerance);
            }
        }
    }

    /// More inputs than are widened at once, and no bias: every piece counts, forward and added.
    #[test]
    fn every_piece_of_a_wide_input_counts() {
        let (m, out, input) = (3, 70, 2 * 2048 + 64);
        let (x, stored) = (randn(DType::F64, &[m, input], 1), randn(DType::BF16, &[out, input], 3));
        let narrow = Quantised::quantise("uint5".parse().unwrap(), stored.host().unwrap(), input).unwrap();
        let wide = narrow.dequantise(&Device::cpu(), DType::F64).unwrap();
        let cases = [
            ("bf16", stored.to_dtype(DType::F64).unwrap(), Weight::Dense(stored)),
            ("uint5", wide, Weight::Quantised(narrow)),
        ];
        for (what, wide, narrow) in cases {
            let run = |w: &Weight| {
                let mut y = x.empty_like(&[m, out]).unwrap();
                forward(x.view(), w, None, y.view_mut()).unwrap();
                let once = y.to_f64().unwrap();
                accumulate(x.view(), w, y.view_mut()).unwrap();
                (once, y)
            };
            let ((once, twice), (once_wide, twice_wide)) = (run(&narrow), run(&Weight::Dense(wide)));
            assert!(once.iter().zip(&once_wide).all(|(a, b)| (a - b).abs() < 1e-10), "{what}");
            assert_close(what, &twice, &twice_wide, 1e-10);
        }
    }

    #[test]
    fn a_quantised_layer_gives_the_same_bits_on_any_number_of_threads() {
        let (m, out, input) = (5, 700, 448);
        let (x, dy) = (randn(DType::F32, &[m, input], 1), randn(DType::F32, &[m, out], 2));
        let stored = randn(DType::BF16, &[out, input], 3);
        let w = Quantised::quantise("uint5".parse().unwrap(), stored.host().unwrap(), input).unwrap();
        let w = Weight::Quantised(w);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut dx) = (x.empty_like(&[m, out]).unwrap(), x.empty_like(&[m, input]).unwrap());
                forward(x.view(), &w, None, y.view_mut()).unwrap();
                backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
                (y.to_f32().unwrap(), dx.to_f32().unwrap())
            })
        };
        assert!(run(1) == run(3));
    }

    #[test]
    fn gpus_agree() {
        let (m, out, input) = (21, 48, 128);
        let stored = randn(DType::BF16, &[out, input], 3);
        let stored = stored.host::<half::bf16>().unwrap();
        for format in [None, Some("uint3"), Some("qfloat8"), Some("int8")] {
            against_cpu(format.unwrap_or("bf16"), |on| {
                let w = match format {
                    Some(format) => Weight::Quantised(
                        Quantised::quantise(format.parse().unwrap(), stored, input).unwrap(),
                    ),
                    None => {
                        let values: Vec<f64> = stored.iter().map(|w| w.to_f64()).collect();
                        Weight::Dense(
                            Tensor::from_f64(&Device::cpu(), DType::BF16, &values, &[out, input]).unwrap(),
                        )
                    }
                };
                let w = w.into_device(on.device()).unwrap();
                let (x, dy, bias) = (on.randn(&[m, input], 1), on.randn(&[m, out], 2), on.randn(&[out], 4));
                let (mut y, mut more, mut dx) =
                    (on.empty(&[m, out]), on.randn(&[m, out], 5), on.empty(&[m, input]));
                forward(x.view(), &w, Some(&bias), y.view_mut()).unwrap();
                accumulate(x.view(), &w, more.view_mut()).unwrap();
                backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
                let mut onto = on.randn(&[m, out], 6);
                if y.view_mut().on_gpu() {
                    forward_onto(x.view(), &w, Some(&bias), onto.view_mut()).unwrap();
                } else {
                    super::super::copy::add_scaled(1.0, y.view(), onto.view_mut()).unwrap();
                }
                vec![("y", y), ("accumulated", more), ("dx", dx), ("onto", onto)]
            });
        }
    }
}
