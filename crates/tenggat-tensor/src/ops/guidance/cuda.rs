//! GPU guidance.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use super::Norm;
use crate::error::expect_dtypes;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "guidance", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "guidance");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    conditional: Mat,
    unconditional: Mat,
    scale: f32,
    keep_norm: i32,
}

pub fn forward(
    op: &'static str,
    conditional: ViewMut<'_>,
    unconditional: View<'_>,
    scale: f64,
    norm: Norm,
) -> Result<()> {
    let dtype = conditional.dtype();
    expect_dtypes(op, dtype, &[unconditional.dtype()])?;
    let ((cuda, to), (_, from)) = (conditional.cuda(op)?, unconditional.cuda(op)?);
    let args = Forward {
        conditional: to,
        unconditional: from,
        scale: scale as f32,
        keep_norm: (norm == Norm::Conditional).into(),
    };
    let (vectorised, _) = width(dtype, &[to, from]);
    Ok(cuda.launch(
        FORWARD.vectorised(vectorised),
        &[dtype],
        Grid::covering(32 * conditional.rows()),
        args,
    )?)
}
