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

    /// `y = x · Wᵀ (+ bias) (+ y)`, or false if this device cannot compute it, with y as it was; x: `[m,
    /// in]`, y: `[m, out]`.
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
mod tests;
