//! GPU scale and shift.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use crate::error::expect_dtypes;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "scale_shift", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "scale_shift");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Mat,
    scale: Mat,
    shift: Mat,
    y: Mat,
}

pub fn forward(
    op: &'static str,
    x: View<'_>,
    scale: View<'_>,
    shift: View<'_>,
    y: ViewMut<'_>,
) -> Result<()> {
    expect_dtypes(op, y.dtype(), &[x.dtype(), scale.dtype(), shift.dtype()])?;
    let (cuda, to) = y.cuda(op)?;
    let args = Forward { x: x.cuda(op)?.1, scale: scale.cuda(op)?.1, shift: shift.cuda(op)?.1, y: to };
    let (vectorised, v) = width(y.dtype(), &[args.x, args.scale, args.shift, to]);
    Ok(cuda.launch(
        FORWARD.vectorised(vectorised),
        &[y.dtype()],
        Grid::covering(y.rows() * y.cols() / v),
        args,
    )?)
}
