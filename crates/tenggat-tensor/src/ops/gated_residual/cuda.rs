//! GPU gated residual.

use crate::cuda::{Grid, Kernel, Mat, Module, int, width};
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "gated_residual", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "gated_residual_forward");
const INPUT: Kernel = Kernel::new(&MODULE, "gated_residual_backward_input");
const GATE: Kernel = Kernel::new(&MODULE, "gated_residual_backward_gate");

/// Threads of a block that sums over tokens: one warp's width of columns.
const SUMMING: u32 = 512;

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

/// Mirrors `Input`, and `Gate` with y in the place of the gate.
#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    other: Mat,
    dout: Mat,
    to: Mat,
    tokens: i32,
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
        Forward { x: x.cuda(op)?.1, gate: gate.cuda(op)?.1, y: y.cuda(op)?.1, out: to, tokens: int(tokens) };
    let (wide, v) = width(out.dtype(), &[args.x, args.gate, args.y, to]);
    cuda.launch(FORWARD.wide(wide), &[out.dtype()], Grid::covering(out.rows() * out.cols() / v), args)
}

pub fn backward_input(
    op: &'static str,
    gate: View<'_>,
    dout: View<'_>,
    tokens: usize,
    dy: ViewMut<'_>,
) -> Result<()> {
    let (cuda, to) = dy.cuda(op)?;
    let args = Backward { other: gate.cuda(op)?.1, dout: dout.cuda(op)?.1, to, tokens: int(tokens) };
    let (wide, v) = width(dy.dtype(), &[args.other, args.dout, to]);
    cuda.launch(INPUT.wide(wide), &[dy.dtype()], Grid::covering(dy.rows() * dy.cols() / v), args)
}

pub fn backward_gate(
    op: &'static str,
    y: View<'_>,
    dout: View<'_>,
    tokens: usize,
    dgate: ViewMut<'_>,
) -> Result<()> {
    let (cuda, to) = dgate.cuda(op)?;
    let args = Backward { other: y.cuda(op)?.1, dout: dout.cuda(op)?.1, to, tokens: int(tokens) };
    let grid = Grid::threads(dgate.cols().div_ceil(32), SUMMING).layers(dgate.rows());
    cuda.launch(GATE, &[dgate.dtype()], grid, args)
}
