//! GPU layer norm and modulation.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use super::EPS;
use crate::error::expect_shape;
use crate::ops::columns::{Columns, Parts, Shape};
use crate::{DType, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module {
    name: "layer_norm_modulate",
    source: concat!(include_str!("../columns/columns.cuh"), include_str!("op.cu")),
};

const FORWARD: Kernel = Kernel::new(&MODULE, "layer_norm_forward");
const BACKWARD: Kernel = Kernel::new(&MODULE, "layer_norm_backward");

/// Packs that a thread holds, where rows are read 16 bytes at a time and where they are not; as in `op.cu`.
const PIECES: [usize; 2] = [2, 8];
/// Most threads of a block, as the kernels are told (`__launch_bounds__`).
const MOST_THREADS: usize = 512;
/// Tokens that a block of the backward pass goes over: one where nothing is summed over them; otherwise more
/// for longer inputs, so that at least 256 blocks share the work of any but the shortest, and partial sums
/// are a sixteenth of the rows of 4096. By tokens alone: sums do not depend on the card.
fn chunk(tokens: usize, sums: bool) -> usize {
    if sums { (tokens / 256).clamp(1, 16) } else { 1 }
}

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    modulation: Mat,
    y: Mat,
    stats: Mat,
    tokens: i32,
    inverse: f32,
    eps: f32,
}

/// Mirrors `Backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    x: Mat,
    modulation: Mat,
    stats: Mat,
    dy: Mat,
    dx: Mat,
    parts: Parts,
    inverse: f32,
}

/// Whether rows of these matrices are read 16 bytes at a time, and the threads that hold one; the first has
/// the columns that count.
///
/// # Errors
/// Rows are too long.
fn cut(op: &'static str, dtype: DType, matrices: &[Mat]) -> Result<(bool, u32)> {
    let cols = matrices[0].cols as usize;
    let (vectorised, v) = width(dtype, matrices);
    let most = |v: usize, pieces: usize| MOST_THREADS * v * pieces;
    let vectorised = vectorised && cols <= most(v, PIECES[0]);
    let (v, pieces) = if vectorised { (v, PIECES[0]) } else { (1, PIECES[1]) };
    expect_shape(
        op,
        "columns (on a GPU at most 4096, or 8192 of aligned bf16)",
        &[cols.min(most(v, pieces))],
        &[cols],
    )?;
    // All threads with as many packs each as can be: fewer warps have to meet.
    Ok((vectorised, cols.div_ceil(v * pieces).next_multiple_of(32).max(32) as u32))
}

fn inverse(cols: i64) -> f32 {
    (1.0 / cols as f64) as f32
}

pub fn forward(
    op: &'static str,
    x: View<'_>,
    modulation: View<'_>,
    tokens: usize,
    y: ViewMut<'_>,
    stats: ViewMut<'_>,
) -> Result<()> {
    let (cuda, y_mat) = y.cuda(op)?;
    let (x, modulation, stats) = (x.cuda(op)?.1, modulation.cuda(op)?.1, stats.cuda(op)?.1);
    let (vectorised, threads) = cut(op, y.dtype(), &[x, modulation, y_mat])?;
    let (tokens, inverse) = (int(tokens)?, inverse(x.cols));
    let args = Forward { x, modulation, y: y_mat, stats, tokens, inverse, eps: EPS as f32 };
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[y.dtype()], Grid::threads(y.rows(), threads), args)?)
}

#[allow(clippy::too_many_arguments)] // those of the op
pub fn backward(
    op: &'static str,
    x: View<'_>,
    modulation: View<'_>,
    stats: View<'_>,
    tokens: usize,
    dy: View<'_>,
    dx: ViewMut<'_>,
    dmodulation: Option<ViewMut<'_>>,
) -> Result<()> {
    let (dtype, cols) = (dx.dtype(), dx.cols());
    let (cuda, dx) = dx.cuda(op)?;
    let (x, modulation, stats, dy) =
        (x.cuda(op)?.1, modulation.cuda(op)?.1, stats.cuda(op)?.1, dy.cuda(op)?.1);
    let (vectorised, threads) = cut(op, dtype, &[x, modulation, dy, dx])?;
    let chunk = chunk(tokens, dmodulation.is_some());
    let shape = Shape { samples: modulation.rows as usize, tokens, cols, chunk };
    let columns = Columns::new(&cuda, shape, if dmodulation.is_some() { 2 } else { 0 })?;
    let args = Backward { x, modulation, stats, dy, dx, parts: columns.parts()?, inverse: inverse(x.cols) };
    cuda.launch(BACKWARD.vectorised(vectorised), &[dtype], columns.whole_rows(threads), args)?;
    columns.finish(op, dmodulation)
}
