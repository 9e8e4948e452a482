//! GPU gated residual.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use crate::ops::columns::{Columns, Parts, Shape};
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module {
    name: "gated_residual",
    source: concat!(include_str!("../columns/columns.cuh"), include_str!("op.cu")),
};

const FORWARD: Kernel = Kernel::new(&MODULE, "gated_residual_forward");
const BACKWARD: Kernel = Kernel::new(&MODULE, "gated_residual_backward");

/// Tokens that a block of the backward pass goes over: so few that there are blocks enough for any card.
const CHUNK: usize = 32;

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

/// Mirrors `Backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    gate: Mat,
    y: Mat,
    dout: Mat,
    dy: Mat,
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

pub fn backward(
    op: &'static str,
    gate: View<'_>,
    y: View<'_>,
    dout: View<'_>,
    tokens: usize,
    dy: ViewMut<'_>,
    dgate: Option<ViewMut<'_>>,
) -> Result<()> {
    let (dtype, cols) = (dy.dtype(), dy.cols());
    let (cuda, dy) = dy.cuda(op)?;
    let (gate, y, dout) = (gate.cuda(op)?.1, y.cuda(op)?.1, dout.cuda(op)?.1);
    let shape = Shape { samples: gate.rows as usize, tokens, cols, chunk: CHUNK };
    let columns = Columns::new(&cuda, shape, usize::from(dgate.is_some()))?;
    let (vectorised, v) = width(dtype, &[gate, y, dout, dy]);
    let args = Backward { gate, y, dout, dy, parts: columns.parts()? };
    cuda.launch(BACKWARD.vectorised(vectorised), &[dtype], columns.grid(v), args)?;
    columns.finish(op, dgate)
}
