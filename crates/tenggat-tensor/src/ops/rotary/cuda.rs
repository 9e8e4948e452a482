//! GPU rotary embedding.

use tenggat_gpu::{Grid, Kernel, Mat, Module};

use crate::error::expect_dtypes;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "rotary", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "rotary");

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    table: Mat,
    x: Mat,
}

/// Pairs that a thread takes where both sides allow it: 16 bytes of the wider type.
const PACK: usize = 4;

pub fn forward(op: &'static str, table: View<'_>, heads: usize, x: ViewMut<'_>) -> Result<()> {
    expect_dtypes(op, x.dtype().wide(), &[table.dtype()])?;
    let ((cuda, to), (_, from)) = (x.cuda(op)?, table.cuda(op)?);
    let half = table.cols() / 2;
    let vectorised =
        half.is_multiple_of(PACK) && from.in_packs(table.dtype(), PACK) && to.in_packs(x.dtype(), PACK);
    let grid = Grid::covering(x.rows() * heads * half / if vectorised { PACK } else { 1 });
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[x.dtype()], grid, Forward { table: from, x: to })?)
}
