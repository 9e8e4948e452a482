//! GPU softmax.

use tenggat_gpu::{Grid, Kernel, Mat, Module};

use crate::error::expect_dtypes;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "softmax", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "softmax");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    y: Mat,
}

pub fn forward(op: &'static str, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    expect_dtypes(op, y.dtype().wide(), &[x.dtype()])?;
    let (cuda, to) = y.cuda(op)?;
    let args = Forward { x: x.cuda(op)?.1, y: to };
    Ok(cuda.launch(FORWARD, &[y.dtype()], Grid::covering(32 * y.rows()), args)?)
}
