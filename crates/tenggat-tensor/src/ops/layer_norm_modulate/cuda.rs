//! GPU layer norm and modulation.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use super::EPS;
use crate::ops::columns::{Columns, Parts};
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module {
    name: "layer_norm_modulate",
    source: concat!(include_str!("../columns/columns.cuh"), include_str!("op.cu")),
};

const FORWARD: Kernel = Kernel::new(&MODULE, "layer_norm_forward");
const INPUT: Kernel = Kernel::new(&MODULE, "layer_norm_backward_input");
const MODULATION: Kernel = Kernel::new(&MODULE, "layer_norm_backward_modulation");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    modulation: Mat,
    y: Mat,
    stats: Mat,
    tokens: i32,
    eps: f32,
}

/// Mirrors `Input`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Input {
    x: Mat,
    modulation: Mat,
    stats: Mat,
    dy: Mat,
    dx: Mat,
    tokens: i32,
}

/// Mirrors `Modulation`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Modulation {
    x: Mat,
    stats: Mat,
    dy: Mat,
    parts: Parts,
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
    let args = Forward { x, modulation, y: y_mat, stats, tokens: int(tokens)?, eps: EPS as f32 };
    let (vectorised, _) = width(y.dtype(), &[x, modulation, y_mat]);
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[y.dtype()], Grid::blocks(y.rows()), args)?)
}

pub fn backward_input(
    op: &'static str,
    x: View<'_>,
    modulation: View<'_>,
    stats: View<'_>,
    tokens: usize,
    dy: View<'_>,
    dx: ViewMut<'_>,
) -> Result<()> {
    let (cuda, dx_mat) = dx.cuda(op)?;
    let (x, modulation, stats, dy) =
        (x.cuda(op)?.1, modulation.cuda(op)?.1, stats.cuda(op)?.1, dy.cuda(op)?.1);
    let args = Input { x, modulation, stats, dy, dx: dx_mat, tokens: int(tokens)? };
    let (vectorised, _) = width(dx.dtype(), &[x, modulation, dy, dx_mat]);
    Ok(cuda.launch(INPUT.vectorised(vectorised), &[dx.dtype()], Grid::blocks(dx.rows()), args)?)
}

pub fn backward_modulation(
    op: &'static str,
    x: View<'_>,
    stats: View<'_>,
    tokens: usize,
    dy: View<'_>,
    dmodulation: ViewMut<'_>,
) -> Result<()> {
    let (cuda, x_mat) = x.cuda(op)?;
    let columns = Columns::new(&cuda, 2, dmodulation.rows(), tokens, x.cols())?;
    let args = Modulation { x: x_mat, stats: stats.cuda(op)?.1, dy: dy.cuda(op)?.1, parts: columns.parts()? };
    let (vectorised, v) = width(x.dtype(), &[args.x, args.dy]);
    cuda.launch(MODULATION.vectorised(vectorised), &[x.dtype()], columns.grid(v), args)?;
    columns.finish(op, dmodulation)
}
