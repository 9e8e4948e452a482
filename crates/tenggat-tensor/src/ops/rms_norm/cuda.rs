//! GPU RMS norm.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "rms_norm", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "rms_norm");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    weight: Mat,
    y: Mat,
    eps: f32,
}

pub fn forward(op: &'static str, x: View<'_>, weight: View<'_>, eps: f64, y: ViewMut<'_>) -> Result<()> {
    let (cuda, y_mat) = y.cuda(op)?;
    let args = Forward { x: x.cuda(op)?.1, weight: weight.cuda(op)?.1, y: y_mat, eps: eps as f32 };
    let (vectorised, _) = width(y.dtype(), &[args.x, args.weight, y_mat]);
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[y.dtype()], Grid::blocks(y.rows()), args)?)
}
