//! GPU gated residual.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use crate::ops::columns::{Columns, Parts};
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module {
    name: "gated_residual",
    source: concat!(include_str!("../columns/columns.cuh"), include_str!("op.cu")),
};

const FORWARD: Kernel = Kernel::new(&MODULE, "gated_residual_forward");
const INPUT: Kernel = Kernel::new(&MODULE, "gated_residual_backward_input");
const GATE: Kernel = Kernel::new(&MODULE, "gated_residual_backward_gate");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    gate: Mat,
    y: Mat,
    out: Mat,
    tokens: i32,
}

/// Mirrors `Input`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Input {
    gate: Mat,
    dout: Mat,
    dy: Mat,
    tokens: i32,
}

/// Mirrors `Gate`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    y: Mat,
    dout: Mat,
    parts: Parts,
}

pub fn forward(
    op: &'static str,
    x: View<'_>,
    gate: View<'_>,
    y: View<'_>,
    tokens: usize,
    out: ViewMut<'_>,
) -> Result<()> {
    let (cuda, to) = out.cuda(op)?;
    let args =
        Forward { x: x.cuda(op)?.1, gate: gate.cuda(op)?.1, y: y.cuda(op)?.1, out: to, tokens: int(tokens)? };
    let (vectorised, v) = width(out.dtype(), &[args.x, args.gate, args.y, to]);
    Ok(cuda.launch(
        FORWARD.vectorised(vectorised),
        &[out.dtype()],
        Grid::covering(out.rows() * out.cols() / v),
        args,
    )?)
}

pub fn backward_input(
    op: &'static str,
    gate: View<'_>,
    dout: View<'_>,
    tokens: usize,
    dy: ViewMut<'_>,
) -> Result<()> {
    let (cuda, to) = dy.cuda(op)?;
    let args = Input { gate: gate.cuda(op)?.1, dout: dout.cuda(op)?.1, dy: to, tokens: int(tokens)? };
    let (vectorised, v) = width(dy.dtype(), &[args.gate, args.dout, to]);
    Ok(cuda.launch(
        INPUT.vectorised(vectorised),
        &[dy.dtype()],
        Grid::covering(dy.rows() * dy.cols() / v),
        args,
    )?)
}

pub fn backward_gate(
    op: &'static str,
    y: View<'_>,
    dout: View<'_>,
    tokens: usize,
    dgate: ViewMut<'_>,
) -> Result<()> {
    let (cuda, y_mat) = y.cuda(op)?;
    let columns = Columns::new(&cuda, 1, dgate.rows(), tokens, y.cols())?;
    let args = Gate { y: y_mat, dout: dout.cuda(op)?.1, parts: columns.parts()? };
    let (vectorised, v) = width(y.dtype(), &[args.y, args.dout]);
    cuda.launch(GATE.vectorised(vectorised), &[y.dtype()], columns.grid(v), args)?;
    columns.finish(op, dgate)
}
