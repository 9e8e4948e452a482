//! GPU copies.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use crate::error::expect_shape;
use crate::{DType, Error, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "copy", source: include_str!("op.cu") };

const COPY: Kernel = Kernel::new(&MODULE, "copy");
const FILL: Kernel = Kernel::new(&MODULE, "fill");
const CAST: Kernel = Kernel::new(&MODULE, "cast");
pub(super) const ADD_SCALED: Kernel = Kernel::new(&MODULE, "add_scaled");
pub(super) const MULTIPLY: Kernel = Kernel::new(&MODULE, "multiply");
pub(super) const LERP: Kernel = Kernel::new(&MODULE, "lerp");
pub(super) const BROADCAST_ROW: Kernel = Kernel::new(&MODULE, "broadcast_row");

/// Mirrors `Two`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Two {
    from: Mat,
    to: Mat,
    factor: f32,
}

/// Mirrors `Cast`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Cast {
    from: Mat,
    to: Mat,
}

/// Runs a kernel over every element of `to` and that of `from` at the same place, or in its only row.
pub(super) fn each(
    op: &'static str,
    kernel: Kernel,
    factor: f64,
    from: View<'_>,
    to: ViewMut<'_>,
) -> Result<()> {
    if from.dtype() != to.dtype() {
        return Err(Error::DType { op, dtype: from.dtype(), device: "cuda" });
    }
    let ((cuda, to_mat), (_, from)) = (to.cuda_flat(op)?, from.cuda_flat(op)?);
    let (vectorised, v) = width(to.dtype(), &[from, to_mat]);
    let grid = Grid::covering(to.rows() * to.cols() / v);
    Ok(cuda.launch(
        kernel.vectorised(vectorised),
        &[to.dtype()],
        grid,
        Two { from, to: to_mat, factor: factor as f32 },
    )?)
}

pub(super) fn copy(op: &'static str, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    each(op, COPY, 0.0, from, to)
}

pub(super) fn fill(op: &'static str, value: f64, to: ViewMut<'_>) -> Result<()> {
    let (cuda, mat) = to.cuda_flat(op)?;
    let (bytes, gaps) = (to.rows() * to.cols() * to.dtype().bytes(), to.rows() > 1 && mat.stride != mat.cols);
    if value == 0.0 && !gaps {
        return Ok(cuda.set_bytes(mat.data, 0, bytes)?);
    }
    let (vectorised, v) = width(to.dtype(), &[mat]);
    let grid = Grid::covering(to.rows() * to.cols() / v);
    Ok(cuda.launch(
        FILL.vectorised(vectorised),
        &[to.dtype()],
        grid,
        Two { from: mat, to: mat, factor: value as f32 },
    )?)
}

/// Rounds to another type of float; bytes stay bytes.
pub(super) fn cast(op: &'static str, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    expect_shape(op, "to", &from.shape(), &to.shape())?;
    let ((cuda, to_mat), (_, from_mat)) = (to.cuda_flat(op)?, from.cuda_flat(op)?);
    let types = [from.dtype(), to.dtype()];
    if types.contains(&DType::F64) || types.contains(&DType::U8) && types[0] != types[1] {
        return Err(Error::DType { op, dtype: types[0], device: "cuda" });
    }
    // Four elements at a time: 16 bytes of the wider type.
    let whole = |m: Mat, dtype: DType| {
        m.data.is_multiple_of(4 * dtype.bytes() as u64) && m.cols % 4 == 0 && m.stride % 4 == 0
    };
    let vectorised = whole(from_mat, types[0]) && whole(to_mat, types[1]);
    let grid = Grid::covering(to.rows() * to.cols() / if vectorised { 4 } else { 1 });
    Ok(cuda.launch(CAST.vectorised(vectorised), &types, grid, Cast { from: from_mat, to: to_mat })?)
}
