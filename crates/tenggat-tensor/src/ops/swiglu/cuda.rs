//! GPU SwiGLU gate.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use crate::error::expect_dtypes;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "swiglu", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "swiglu");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    gate: Mat,
    up: Mat,
    y: Mat,
}

pub fn forward(op: &'static str, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    expect_dtypes(op, y.dtype(), &[x.dtype()])?;
    let ((cuda, to), n) = (y.cuda(op)?, y.cols());
    let args = Forward { gate: x.columns(0..n).cuda(op)?.1, up: x.columns(n..2 * n).cuda(op)?.1, y: to };
    let (vectorised, v) = width(y.dtype(), &[args.gate, args.up, to]);
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[y.dtype()], Grid::covering(y.rows() * n / v), args)?)
}
