//! Frozen matrices whose products run on the 8-bit units of a GPU.
//!
//! Weights are e4m3 codes `c[o, i]` with an f32 scale `s[o]` per output. The other operand is rounded to e4m3
//! as well, a row (token) at a time: `r = max|x[t, ·]| / 448`, `q = e4m3(x · 448 / max|x[t, ·]|)`. Then
//! - forward `y[t, o] = r[t] · s[o] · Σᵢ q[t, i] · c[o, i] (+ bias)`;
//! - backward `dx[t, i] = r[t] · Σₒ q[t, o] · c[o, i]`, where `q` and `r` are those of `dy[t, o] · s[o]`: the
//!   scales lie on the axis of the sums.
//!
//! Hopper's products take the scales; elsewhere `Σᵢ q[t, i] · c[o, i]` is rounded to the type of the result
//! and scaled in a pass of its own.
//!
//! 8-bit units want both operands contiguous along the sums, so that the codes are there twice, once
//! transposed. e4m3 has 4 significant bits: with normally distributed numbers a rounded operand errs by 2.6 %
//! (L2), a product of two by 3.7 %. Neither speed nor numbers have been measured on a GPU yet.

use tenggat_gpu::{Batch, Epilogue, Factor, Grid, Kernel, Mat, Product, int};

use super::cuda::{self, MODULE, Resident};
use super::{Format, Parts};
use crate::error::{expect_dtypes, expect_shape};
use crate::ops::copy;
use crate::ops::linear::Write;
use crate::{DType, Result, Tensor, View, ViewMut};

const QUANTISE: Kernel = Kernel::new(&MODULE, "quantise_rows");
const TRANSPOSE: Kernel = Kernel::new(&MODULE, "transpose_bytes");
const SCALE_SUMS: Kernel = Kernel::new(&MODULE, "scale_sums");
/// Side of the tile that a block transposes.
const TILE: usize = 64;

/// Mirrors `QuantiseRows`.
#[derive(Clone, Copy)]
#[repr(C)]
struct QuantiseRows {
    x: Mat,
    factors: u64,
    codes: u64,
    scales: u64,
}

/// Mirrors `TransposeBytes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct TransposeBytes {
    from: u64,
    to: u64,
    rows: i32,
    cols: i32,
}

/// Mirrors `ScaleSums`.
#[derive(Clone, Copy)]
#[repr(C)]
struct ScaleSums {
    sums: Mat,
    to: Mat,
    rows: u64,
    cols: u64,
    bias: u64,
    beta: f32,
}

/// A matrix in a GPU's memory, rounded row by row.
#[derive(Debug)]
struct Rounded {
    /// e4m3 codes, `[rows, cols]`, one byte each.
    codes: Tensor,
    /// `[rows]` f32.
    scales: Tensor,
}

/// A frozen matrix `[out, in]` in 8-bit floats in a GPU's memory: 2 bytes per weight, as its codes are there
/// twice.
#[derive(Debug)]
pub struct Fp8 {
    rounded: Rounded,
    /// Codes as `[in, out]`.
    transposed: Tensor,
    /// The scales of the transposed codes: `[in]` f32, all 1.
    ones: Tensor,
}

fn address(tensor: &Tensor) -> Result<u64> {
    Ok(tensor.view().cuda("fp8 product")?.1.data)
}

/// Whether rows can be rounded 16 bytes at a time.
fn takes(x: View<'_>) -> Result<bool> {
    let (_, mat) = x.cuda("round to fp8")?;
    Ok(matches!(x.dtype(), DType::F32 | DType::BF16)
        && mat.is_vectorisable(x.dtype())
        && x.cols().is_multiple_of(16))
}

/// Rounds each row of `x · diag(factors)`; x: `[m, k]` f32 or bf16 in whole packs of 16 bytes, factors: `[k]`
/// f32. A row of zeros has scale 1; rows with no number larger than 2⁻¹⁰⁰ are rounded to multiples of it.
fn round(x: View<'_>, factors: Option<&Tensor>) -> Result<Rounded> {
    let device = x.device();
    let codes = Tensor::empty(&device, DType::U8, &x.shape())?;
    let scales = Tensor::empty(&device, DType::F32, &[x.rows()])?;
    let (cuda, mat) = x.cuda("round to fp8")?;
    let args = QuantiseRows {
        x: mat,
        factors: factors.map_or(Ok(0), address)?,
        codes: address(&codes)?,
        scales: address(&scales)?,
    };
    cuda.launch(QUANTISE, &[x.dtype()], Grid::blocks(x.rows()), args)?;
    Ok(Rounded { codes, scales })
}

/// The transpose of bytes `[rows, cols]`; both are multiples of 16.
fn transpose(from: &Tensor) -> Result<Tensor> {
    let [rows, cols] = from.view().shape();
    let to = Tensor::empty(&from.device(), DType::U8, &[cols, rows])?;
    let (cuda, _) = to.view().cuda("transpose")?;
    let args = TransposeBytes { from: address(from)?, to: address(&to)?, rows: int(rows)?, cols: int(cols)? };
    cuda.launch(TRANSPOSE, &[], Grid::blocks(rows.div_ceil(TILE) * cols.div_ceil(TILE)), args)?;
    Ok(to)
}

impl Fp8 {
    /// Whether 8-bit units multiply matrices of this shape: both axes are sums' or results' rows, of 16 at a
    /// time.
    pub fn fits(shape: [usize; 2]) -> bool {
        shape.iter().all(|n| *n > 0 && n.is_multiple_of(16))
    }

    /// From a matrix in a GPU's memory. Codes and scales of `float8` and `qfloat8` are taken over, without
    /// the rounding to bf16 that follows them elsewhere; other formats are dequantised to bf16 and
    /// rounded again.
    ///
    /// # Errors
    /// The shape does not fit ([`Fp8::fits`]), or the device has no room.
    pub fn from_resident(matrix: Resident) -> Result<Self> {
        let [out, input] = matrix.shape();
        if !matches!(matrix.format(), Format::Float8 | Format::QFloat8) {
            return Self::from_dense(&matrix.to_dense(DType::BF16)?);
        }
        let device = matrix.device();
        let Parts { codes, scales, .. } = matrix.into_parts()?;
        let scales: Vec<f32> = (scales.to_bytes()?.as_chunks::<2>().0.iter())
            .map(|&scale| half::bf16::from_le_bytes(scale).to_f32())
            .collect();
        let scales = Tensor::from_f32(&device, DType::F32, &scales, &[out])?;
        Self::of(Rounded { codes: codes.reshape(&[out, input])?, scales })
    }

    /// From a matrix `[out, in]` of f32 or bf16 in a GPU's memory, rounded row by row.
    ///
    /// # Errors
    /// As [`Fp8::from_resident`].
    pub fn from_dense(matrix: &Tensor) -> Result<Self> {
        Self::check(matrix.view().shape())?;
        Self::of(round(matrix.view(), None)?)
    }

    fn check(shape: [usize; 2]) -> Result<()> {
        let whole = shape.map(|n| n.next_multiple_of(16).max(16));
        expect_shape("fp8 weights", "axes (multiples of 16)", &whole, &shape)
    }

    fn of(rounded: Rounded) -> Result<Self> {
        let [out, input] = rounded.codes.view().shape();
        Self::check([out, input])?;
        let transposed = transpose(&rounded.codes)?;
        let ones = Tensor::from_f32(&rounded.codes.device(), DType::F32, &vec![1.0; input], &[input])?;
        Ok(Fp8 { rounded, transposed, ones })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.rounded.codes.view().shape()
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        let Rounded { codes, scales } = &self.rounded;
        codes.len() + self.transposed.len() + 4 * (scales.len() + self.ones.len())
    }

    /// The weights that it stands for, `[out, in]`, as f32 or bf16, rounded to bf16 in either.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn to_dense(&self, dtype: DType) -> Result<Tensor> {
        let mut wide = Tensor::empty(&self.ones.device(), dtype, &self.shape())?;
        cuda::dequantise_fp8(&self.rounded.codes, &self.rounded.scales, &mut wide)?;
        Ok(wide)
    }

    /// `y = x · Wᵀ (+ bias) (+ y)`, or false if this device cannot compute it, with y as it was; x: `[m, in]`, y:
    /// `[m, out]`.
    pub(crate) fn forward(
        &self,
        x: View<'_>,
        bias: Option<&Tensor>,
        write: Write,
        y: ViewMut<'_>,
    ) -> Result<bool> {
        let Rounded { codes, scales } = &self.rounded;
        multiply((x, None), (codes, scales), Start { bias, write }, y, true)
    }

    /// `dx = dy · W (+ dx)`, or false if this device cannot compute it, with dx as it was; dy: `[m, out]`,
    /// dx: `[m, in]`. Sums are kept in full: gradients add up over all layers.
    pub(crate) fn backward(&self, dy: View<'_>, write: Write, dx: ViewMut<'_>) -> Result<bool> {
        multiply(
            (dy, Some(&self.rounded.scales)),
            (&self.transposed, &self.ones),
            Start { bias: None, write },
            dx,
            false,
        )
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
struct Start<'a> {
    /// A row.
    bias: Option<&'a Tensor>,
    /// Nothing, or the values that are there.
    write: Write,
}

/// `c = round(a · diag(factors)) · (scales ∘ b)ᵀ + start`, or false; a: `[m, k]`, b: codes `[n, k]`, c: `[m,
/// n]`.
fn multiply(
    (a, factors): (View<'_>, Option<&Tensor>),
    (b, b_scales): (&Tensor, &Tensor),
    start: Start<'_>,
    c: ViewMut<'_>,
    fast: bool,
) -> Result<bool> {
    const OP: &str = "fp8 product";
    let mut c = c;
    if !takes(a)? {
        return Ok(false);
    }
    // The library's table of types has no 32-bit bias for 8-bit products.
    let beta = start.write.beta() as f32;
    let (first, epilogue, beta) = match (start.bias, start.write) {
        (Some(bias), _) if c.dtype() == DType::BF16 => {
            expect_dtypes(OP, DType::BF16, &[bias.dtype()])?;
            (None, Epilogue::Bias(address(bias)?), beta)
        }
        (Some(bias), Write::Replace) => (Some(bias), Epilogue::None, 1.0),
        // A GPU computes in bf16; in 32 bits it takes the way of other weights.
        (Some(_), Write::Add) => return Ok(false),
        (None, _) => (None, Epilogue::None, beta),
    };
    let (cuda, mat) = c.cuda(OP)?;
    let factor = |codes: &Tensor, transposed, scales: &Tensor| -> Result<Factor> {
        let (address, scales) = (address(codes)?, address(scales)?);
        Ok(Factor { address, dtype: DType::U8, stride: a.cols(), transposed, scales })
    };
    let product = Product {
        batch: Batch::ONE,
        rows: c.rows(),
        cols: c.cols(),
        inner: a.cols(),
        alpha: 1.0,
        // Stands for codes that are not there yet, and will be aligned as well.
        a: factor(b, false, b_scales)?,
        b: factor(b, true, b_scales)?,
        beta,
        c: mat.data,
        c_dtype: c.dtype(),
        c_stride: mat.stride as usize,
        epilogue,
        fast,
    };
    let (in_product, whole) = (cuda.computes_fp8(&product), product.fits_fp8());
    // Cards other than Hopper's multiply codes as they are, into sums that are scaled afterwards.
    let sums = match in_product {
        true => None,
        false => {
            let plain = |factor: Factor| Factor { scales: 0, ..factor };
            let (a, b) = (plain(product.a), plain(product.b));
            let product =
                Product { a, b, beta: 0.0, epilogue: Epilogue::None, c_stride: c.cols(), ..product };
            // What is not aligned goes the way of other weights on every card.
            if !whole || !cuda.computes_fp8(&product) {
                return Ok(false);
            }
            Some((Tensor::empty(&c.device(), c.dtype(), &c.shape())?, product))
        }
    };
    let rounded = round(a, factors)?;
    if let Some(bias) = first {
        copy::broadcast_row(bias.view(), c.reborrow())?;
    }
    let a = factor(&rounded.codes, false, &rounded.scales)?;
    let Some((mut sums, plain)) = sums else {
        cuda.product(Product { a, ..product })?;
        return Ok(true);
    };
    let sums_mat = sums.view_mut().cuda(OP)?.1;
    cuda.product(Product { a: Factor { scales: 0, ..a }, c: sums_mat.data, ..plain })?;
    let bias = match product.epilogue {
        Epilogue::Bias(address) => address,
        Epilogue::None => 0,
    };
    let args = ScaleSums {
        sums: sums_mat,
        to: mat,
        rows: a.scales,
        cols: product.b.scales,
        bias,
        beta: product.beta,
    };
    cuda.launch(
        SCALE_SUMS,
        &[c.dtype()],
        Grid::covering(c.rows() * c.cols() / (16 / c.dtype().bytes())),
        args,
    )?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tenggat_gpu::float8;

    use super::super::Quantised;
    use super::*;
    use crate::Device;
    use crate::ops::check::{gpu, open_gpu_without, randn};
    use crate::ops::linear::{self, Weight};

    /// The nearest code, found by trying all.
    fn nearest(x: f32) -> u8 {
        let x = f64::from(x);
        let error = |code: u8| (f64::from(float8::decode(code)) - x.abs()).abs();
        // Of two that are as near, the even one.
        let best = (0..=0x7e).min_by(|&a, &b| error(a).total_cmp(&error(b)).then((a & 1).cmp(&(b & 1))));
        best.unwrap() | if x.is_sign_negative() { 0x80 } else { 0 }
    }

    /// Codes and scales of rows, each operation in f64 and rounded to f32 once; x, factors: exact in f32.
    fn reference(x: &[f64], cols: usize, factors: Option<&[f64]>) -> (Vec<u8>, Vec<f32>) {
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in x.chunks(cols) {
            let v: Vec<f32> =
                row.iter().enumerate().map(|(i, x)| (x * factors.map_or(1.0, |f| f[i])) as f32).collect();
            let largest = v.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let range = if largest == 0.0 { 448.0 } else { f64::from(largest).max(2f64.powi(-100)) };
            let inverse = f64::from((448.0 / range) as f32);
            scales.push((range / 448.0) as f32);
            codes.extend(v.iter().map(|&v| nearest((f64::from(v) * inverse) as f32)));
        }
        (codes, scales)
    }

    /// What codes and scales stand for.
    fn value((codes, scales): &(Vec<u8>, Vec<f32>), cols: usize) -> Vec<f64> {
        let scale = |i: usize| f64::from(scales[i / cols]);
        codes.iter().enumerate().map(|(i, &code)| f64::from(float8::decode(code)) * scale(i)).collect()
    }

    fn stored(tensor: &Rounded) -> (Vec<u8>, Vec<f32>) {
        (tensor.codes.to_bytes().unwrap().into_owned(), tensor.scales.to_f32().unwrap())
    }

    #[test]
    fn rows_are_rounded_as_the_reference_rounds_them_bit_for_bit() {
        let Some(gpu) = gpu() else { return };
        // More columns than a block takes at once.
        let (m, k) = (7, 2080);
        let mut numbers = randn(DType::BF16, &[m, k], 1).to_f64().unwrap();
        for (i, x) in numbers.iter_mut().enumerate() {
            match i / k {
                0 => *x = 0.0,
                // All magnitudes that a row can hold, down to half of the smallest code and below.
                1 => *x *= 2f64.powi(-(i as i32 % 24)),
                // Ties: multiples of a sixteenth with a row's largest at 448.
                2 => *x = if i % k == 5 { -448.0 } else { (i % k) as f64 / 16.0 },
                3 => *x *= 2f64.powi(-110),
                4 => *x *= 2f64.powi(100),
                _ => {}
            }
        }
        let factors: Vec<f64> =
            randn(DType::F32, &[k], 2).to_f64().unwrap().iter().map(|f| f * 0.02).collect();
        let factors = Tensor::from_f64(&gpu, DType::F32, &factors, &[k]).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let x = Tensor::from_f64(&gpu, dtype, &numbers, &[m, k]).unwrap();
            let exact = x.to_f64().unwrap();
            for factors in [None, Some(&factors)] {
                let got = stored(&round(x.view(), factors).unwrap());
                let values = factors.map(|f| f.to_f64().unwrap());
                let expected = reference(&exact, k, values.as_deref());
                assert_eq!(got.1, expected.1, "{dtype:?}");
                let wrong = got.0.iter().zip(&expected.0).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{dtype:?}, factors: {}", factors.is_some());
                assert_eq!(got.1[0], 1.0);
                assert!(got.0[..k].iter().all(|code| code & 0x7f == 0));
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let Some(gpu) = gpu() else { return };
        let mut numbers = vec![1.0; 32];
        (numbers[3], numbers[20]) = (f64::NAN, f64::INFINITY);
        for dtype in [DType::F32, DType::BF16] {
            let x = Tensor::from_f64(&gpu, dtype, &numbers, &[2, 16]).unwrap();
            let back = value(&stored(&round(x.view(), None).unwrap()), 16);
            assert!(back[3].is_nan() && (back[0] - 1.0).abs() < 1e-6 && back[20].is_nan(), "{back:?}");
        }
    }

    #[test]
    fn transposes() {
        let Some(gpu) = gpu() else { return };
        for (rows, cols) in [(16, 16), (64, 128), (80, 48), (208, 144)] {
            let mut from = Tensor::empty(&gpu, DType::U8, &[rows, cols]).unwrap();
            let bytes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 + i / 251) as u8).collect();
            from.set_bytes(&bytes).unwrap();
            let to = transpose(&from).unwrap().to_bytes().unwrap().into_owned();
            let wrong = (0..rows * cols).find(|i| to[i % cols * rows + i / cols] != bytes[*i]);
            assert_eq!(wrong, None, "[{rows}, {cols}]");
        }
    }

    /// `[out, in]` of bf16 numbers in a format, on a GPU.
    fn weight(device: &Device, format: Option<&str>, [out, input]: [usize; 2]) -> Weight {
        let dense = randn(DType::BF16, &[out, input], 3);
        let weight = match format {
            Some(name) => Weight::Quantised(
                Quantised::quantise(name.parse().unwrap(), dense.host().unwrap(), input).unwrap(),
            ),
            None => Weight::Dense(dense),
        };
        weight.into_device(device).unwrap()
    }

    fn fp8(weight: Weight) -> Fp8 {
        match weight.into_fp8().unwrap() {
            Weight::Fp8(w) => *w,
            other => panic!("not in 8-bit floats: {other:?}"),
        }
    }

    #[test]
    fn codes_of_8_bit_floats_are_taken_over_and_other_weights_are_rounded() {
        let Some(gpu) = gpu() else { return };
        let (out, input) = (48, 128);
        let dense = randn(DType::BF16, &[out, input], 3);
        for format in ["float8", "qfloat8", "uint4", "int8"] {
            let stored_there =
                Quantised::quantise(format.parse().unwrap(), dense.host().unwrap(), input).unwrap();
            let w = fp8(weight(&gpu, Some(format), [out, input]));
            let expected = if format.ends_with("float8") {
                (stored_there.codes(), stored_there.scales().iter().map(|s| s.to_f32()).collect())
            } else {
                let wide = stored_there.dequantise(&Device::cpu(), DType::BF16).unwrap();
                reference(&wide.to_f64().unwrap(), input, None)
            };
            assert!(stored(&w.rounded) == expected, "{format}");
            assert_eq!((w.shape(), w.bytes()), ([out, input], 2 * out * input + 4 * (out + input)));
            if format.ends_with("float8") {
                let usual = stored_there.dequantise(&Device::cpu(), DType::F32).unwrap();
                assert_eq!(w.to_dense(DType::F32).unwrap().to_f64().unwrap(), usual.to_f64().unwrap());
            }
        }
        let w = fp8(weight(&gpu, None, [out, input]));
        assert!(stored(&w.rounded) == reference(&dense.to_f64().unwrap(), input, None));
    }

    /// `a · bᵀ + start` in f64, and the sums of magnitudes.
    fn exact(a: &[f64], b: &[f64], k: usize, start: impl Fn(usize, usize) -> f64) -> Vec<(f64, f64)> {
        let rows = a.chunks(k).enumerate().flat_map(|(i, a)| {
            let start = &start;
            b.chunks(k).enumerate().map(move |(j, b)| {
                let terms = || a.iter().zip(b).map(|(a, b)| a * b);
                let start = start(i, j);
                (start + terms().sum::<f64>(), start.abs() + terms().map(f64::abs).sum::<f64>())
            })
        });
        rows.collect()
    }

    /// Products are those of the operands as they were rounded: each of k sums in f32 errs by 2⁻²⁴ of the
    /// magnitudes so far, the scales and what is added by three more; the result is rounded to its type.
    #[test]
    fn layers_multiply_what_was_rounded() {
        let Some(gpu) = gpu() else { return };
        multiplies_what_was_rounded(&gpu, 0.0);
    }

    /// Where products take no scales, sums are rounded to the type of the result once more before they are
    /// scaled.
    #[test]
    fn cards_without_scales_in_products_scale_afterwards() {
        let Some(gpu) = open_gpu_without("fp8-scales".parse().unwrap()) else { return };
        assert!(gpu.fp8_products());
        multiplies_what_was_rounded(&gpu, 1.0);
    }

    fn multiplies_what_was_rounded(gpu: &Device, roundings_more: f64) {
        // Any number of rows.
        let (m, out, input) = (21, 48, 128);
        for format in [Some("float8"), Some("uint3"), None] {
            for dtype in [DType::F32, DType::BF16] {
                let w = fp8(weight(gpu, format, [out, input]));
                let (w_codes, w_scales) = stored(&w.rounded);
                let w_value = value(&(w_codes.clone(), w_scales.clone()), input);
                let transposed: Vec<f64> = (0..input * out)
                    .map(|i| f64::from(float8::decode(w_codes[i % out * input + i / out])))
                    .collect();
                let w = Weight::Fp8(Box::new(w));
                let number = |shape: &[usize], seed| randn(dtype, shape, seed).into_device(gpu).unwrap();
                let (x, dy, bias) = (number(&[m, input], 1), number(&[m, out], 2), number(&[out], 4));
                let (old_y, old_dx) = (number(&[m, out], 5), number(&[m, input], 6));
                let q = value(&reference(&x.to_f64().unwrap(), input, None), input);
                let scales: Vec<f64> = w_scales.iter().map(|&s| s.into()).collect();
                let dq = value(&reference(&dy.to_f64().unwrap(), out, Some(&scales)), out);
                let check = |what: &str, got: &Tensor, expected: Vec<(f64, f64)>, k: usize| {
                    let half = if dtype == DType::BF16 { 2f64.powi(-8) } else { 2f64.powi(-24) };
                    for (i, (got, (value, size))) in got.to_f64().unwrap().iter().zip(&expected).enumerate() {
                        let own = 1.01 * (k as f64 + 3.0) * 2f64.powi(-24) * size + half * value.abs();
                        let limit = own + 1.01 * roundings_more * half * size;
                        let off = (got - value).abs();
                        assert!(
                            off <= limit,
                            "{format:?} {dtype:?} {what}[{i}]: {got} {value}, limit {limit:e}"
                        );
                    }
                };
                let (bias_values, old) = (bias.to_f64().unwrap(), old_y.to_f64().unwrap());
                let mut y = x.empty_like(&[m, out]).unwrap();
                linear::forward(x.view(), &w, Some(&bias), y.view_mut()).unwrap();
                check("y", &y, exact(&q, &w_value, input, |_, j| bias_values[j]), input);
                let mut y = old_y.duplicate().unwrap();
                linear::accumulate(x.view(), &w, y.view_mut()).unwrap();
                check("accumulated", &y, exact(&q, &w_value, input, |i, j| old[i * out + j]), input);
                if dtype == DType::BF16 {
                    let mut y = old_y.duplicate().unwrap();
                    linear::forward_onto(x.view(), &w, Some(&bias), y.view_mut()).unwrap();
                    let start = |i: usize, j: usize| bias_values[j] + old[i * out + j];
                    check("onto", &y, exact(&q, &w_value, input, start), input);
                }
                let mut dx = x.empty_like(&[m, input]).unwrap();
                linear::backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
                check("dx", &dx, exact(&dq, &transposed, out, |_, _| 0.0), out);
                let (mut dx, old) = (old_dx.duplicate().unwrap(), old_dx.to_f64().unwrap());
                linear::backward(dy.view(), &w, Write::Add, dx.view_mut()).unwrap();
                check("dx more", &dx, exact(&dq, &transposed, out, |i, j| old[i * input + j]), out);
            }
        }
    }

    /// What rounding both operands does to products of normally distributed numbers.
    #[test]
    fn products_are_within_4_percent_of_those_in_full() {
        let Some(gpu) = gpu() else { return };
        let (m, out, input) = (32, 192, 512);
        let dense = randn(DType::BF16, &[out, input], 3).to_f64().unwrap();
        let w = weight(&gpu, None, [out, input]).into_fp8().unwrap();
        let (x, dy) = (randn(DType::F32, &[m, input], 1), randn(DType::F32, &[m, out], 2));
        let turned: Vec<f64> = (0..input * out).map(|i| dense[i % out * input + i / out]).collect();
        let y_full = exact(&x.to_f64().unwrap(), &dense, input, |_, _| 0.0);
        let dx_full = exact(&dy.to_f64().unwrap(), &turned, out, |_, _| 0.0);
        let (x, dy) = (x.into_device(&gpu).unwrap(), dy.into_device(&gpu).unwrap());
        let (mut y, mut dx) = (x.empty_like(&[m, out]).unwrap(), x.empty_like(&[m, input]).unwrap());
        linear::forward(x.view(), &w, None, y.view_mut()).unwrap();
        linear::backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
        for (what, got, full) in [("y", y, y_full), ("dx", dx, dx_full)] {
            let got = got.to_f64().unwrap();
            let off: f64 = got.iter().zip(&full).map(|(a, (b, _))| (a - b).powi(2)).sum();
            let relative = (off / full.iter().map(|(b, _)| b * b).sum::<f64>()).sqrt();
            println!("{what}: relative L2 error {relative:.4}");
            assert!((0.02..0.04).contains(&relative), "{what}: {relative}");
        }
    }

    /// Shapes and views that 8-bit units do not take go the way of other weights.
    #[test]
    fn other_sizes_fall_back() {
        let Some(gpu) = gpu() else { return };
        for shape in [[40, 128], [48, 120], [48, 37]] {
            let there = weight(&gpu, Some("float8"), shape).into_fp8().unwrap();
            assert!(matches!(there, Weight::Resident(_)), "{shape:?}");
            assert!(Fp8::from_dense(&Tensor::zeros(&gpu, DType::BF16, &shape).unwrap()).is_err());
        }
        let host = Weight::Dense(randn(DType::BF16, &[48, 128], 3));
        assert!(matches!(host.into_fp8().unwrap(), Weight::Dense(_)));
        let (m, out, input) = (5, 48, 128);
        let usual = weight(&gpu, Some("float8"), [out, input]);
        let w = weight(&gpu, Some("float8"), [out, input]).into_fp8().unwrap();
        // Rows that do not begin at multiples of 16 bytes, of either operand.
        let x = randn(DType::BF16, &[m, input + 4], 1).into_device(&gpu).unwrap();
        let x = x.view().columns(4..input + 4);
        let run = |w: &Weight| {
            let mut y = Tensor::zeros(&gpu, DType::BF16, &[m, out + 8]).unwrap();
            let mut dx = Tensor::zeros(&gpu, DType::BF16, &[m, input + 8]).unwrap();
            linear::forward(x, w, None, y.view_mut().columns(8..out + 8)).unwrap();
            let dy = y.view().columns(8..out + 8);
            linear::backward(dy, w, Write::Replace, dx.view_mut().columns(0..input)).unwrap();
            [y.to_f64().unwrap(), dx.to_f64().unwrap()]
        };
        assert_eq!(run(&w), run(&usual));
        let Weight::Fp8(w) = w else { panic!("not in 8-bit floats") };
        let mut y = randn(DType::BF16, &[m, out], 2).into_device(&gpu).unwrap();
        let before = y.to_f64().unwrap();
        assert!(!w.forward(x, None, Write::Replace, y.view_mut()).unwrap());
        assert_eq!(y.to_f64().unwrap(), before);
    }
}
