//! GPU products of the small factor with every row.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use crate::error::expect_dtypes;
use crate::{DType, Result, Tensor, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "kronecker", source: include_str!("op.cu") };

const MULTIPLY: Kernel = Kernel::new(&MODULE, "kronecker");
const PARTIAL: Kernel = Kernel::new(&MODULE, "kronecker_partial");
const TOTAL: Kernel = Kernel::new(&MODULE, "kronecker_total");

/// Rows of the result that a thread takes, and of both operands that a block of the gradient takes.
const OWN: usize = 4;
/// Rows that a block of the gradient sums over. A constant, so that sums do not depend on the GPU.
const CHUNK: usize = 64;

/// Mirrors `Multiply`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Multiply {
    from: Mat,
    to: Mat,
    w: u64,
    w_row: i64,
    w_col: i64,
    terms: i32,
    rows: i32,
    k: i32,
    add: i32,
    alpha: f32,
}

/// Mirrors `Partial`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Partial {
    t: Mat,
    dy: Mat,
    parts: u64,
    l: i32,
    q: i32,
    k: i32,
    chunk: i32,
}

/// Mirrors `Total`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Total {
    parts: u64,
    dw1: Mat,
    chunks: i32,
    alpha: f32,
    beta: f32,
}

/// Whether a pack of elements lies within one row of the small matrices, and how many it has.
fn packs(dtype: DType, k: usize, matrices: &[Mat]) -> (bool, usize) {
    let (vectorised, v) = width(dtype, matrices);
    if vectorised && k.is_multiple_of(v) { (true, v) } else { (false, 1) }
}

/// `Y += alpha · W₁·T`.
pub fn forward(op: &'static str, alpha: f64, w1: View<'_>, t: View<'_>, y: ViewMut<'_>) -> Result<()> {
    multiply(op, alpha, w1, false, t, true, y)
}

/// `dT = alpha · W₁ᵀ·dY`.
pub fn backward_t(op: &'static str, alpha: f64, w1: View<'_>, dy: View<'_>, dt: ViewMut<'_>) -> Result<()> {
    multiply(op, alpha, w1, true, dy, false, dt)
}

fn multiply(
    op: &'static str,
    alpha: f64,
    w1: View<'_>,
    transposed: bool,
    from: View<'_>,
    add: bool,
    to: ViewMut<'_>,
) -> Result<()> {
    let dtype = to.dtype();
    expect_dtypes(op, dtype, &[from.dtype()])?;
    let ((cuda, to_mat), (_, w)) = (to.cuda(op)?, w1.cuda(op)?);
    let ([rows, terms], [w_row, w_col]) = match transposed {
        true => ([w1.cols(), w1.rows()], [1, w.stride]),
        false => ([w1.rows(), w1.cols()], [w.stride, 1]),
    };
    let k = to.cols() / rows.max(1);
    let args = Multiply {
        from: from.cuda(op)?.1,
        to: to_mat,
        w: w.data,
        w_row,
        w_col,
        terms: int(terms)?,
        rows: int(rows)?,
        k: int(k)?,
        add: add.into(),
        alpha: alpha as f32,
    };
    let (vectorised, v) = packs(dtype, k, &[args.from, to_mat]);
    let grid = Grid::covering(to.rows() * rows.div_ceil(OWN) * (k / v));
    Ok(cuda.launch(MULTIPLY.vectorised(vectorised), &[w1.dtype(), dtype], grid, args)?)
}

/// `dW₁ = beta · dW₁ + alpha · Σ dY·Tᵀ`: sums of chunks of rows, then their sum.
pub fn backward_w1(
    op: &'static str,
    alpha: f64,
    t: View<'_>,
    dy: View<'_>,
    beta: f64,
    dw1: ViewMut<'_>,
) -> Result<()> {
    let dtype = t.dtype();
    expect_dtypes(op, dtype, &[dy.dtype()])?;
    expect_dtypes(op, dtype.wide(), &[dw1.dtype()])?;
    let ((cuda, to), [l, q]) = (dw1.cuda(op)?, dw1.shape());
    let (k, chunks) = (t.cols() / q.max(1), t.rows().div_ceil(CHUNK));
    let parts = Tensor::empty(&dw1.device(), DType::F32, &[chunks, l * q])?;
    let address = parts.view().cuda(op)?.1.data;
    let args = Partial {
        t: t.cuda(op)?.1,
        dy: dy.cuda(op)?.1,
        parts: address,
        l: int(l)?,
        q: int(q)?,
        k: int(k)?,
        chunk: int(CHUNK)?,
    };
    let (vectorised, _) = packs(dtype, k, &[args.t, args.dy]);
    let grid = Grid::blocks(l.div_ceil(OWN) * q.div_ceil(OWN)).layers(chunks);
    cuda.launch(PARTIAL.vectorised(vectorised), &[dtype], grid, args)?;
    let args =
        Total { parts: address, dw1: to, chunks: int(chunks)?, alpha: alpha as f32, beta: beta as f32 };
    Ok(cuda.launch(TOTAL, &[], Grid::covering(l * q), args)?)
}
