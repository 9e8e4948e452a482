//! GPU layer norm.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use crate::error::expect_dtypes;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "layer_norm", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "layer_norm");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    weight: Mat,
    bias: Mat,
    y: Mat,
    eps: f32,
}

pub fn forward(op: &'static str, [x, weight, bias]: [View<'_>; 3], eps: f64, y: ViewMut<'_>) -> Result<()> {
    expect_dtypes(op, y.dtype(), &[x.dtype(), weight.dtype(), bias.dtype()])?;
    let (cuda, to) = y.cuda(op)?;
    let (x, weight, bias) = (x.cuda(op)?.1, weight.cuda(op)?.1, bias.cuda(op)?.1);
    let args = Forward { x, weight, bias, y: to, eps: eps as f32 };
    let (vectorised, _) = width(y.dtype(), &[x, weight, bias, to]);
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[y.dtype()], Grid::blocks(y.rows()), args)?)
}
