//! GPU gather.

use tenggat_gpu::{Buffer, Grid, Kernel, Mat, Module};

use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "embedding", source: include_str!("op.cu") };

const GATHER: Kernel = Kernel::new(&MODULE, "embedding");

/// Mirrors `Gather`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gather {
    ids: u64,
    table: Mat,
    y: Mat,
}

/// Channels that a thread takes where both sides allow it: 16 bytes of the wider type.
const PACK: usize = 4;

pub fn gather(op: &'static str, ids: &[u32], table: View<'_>, y: ViewMut<'_>) -> Result<()> {
    let ((cuda, to), (_, from)) = (y.cuda(op)?, table.cuda(op)?);
    let numbers = Buffer::new(&cuda, size_of_val(ids))?;
    cuda.upload(bytemuck::cast_slice(ids), numbers.address())?;
    let vectorised = from.in_packs(table.dtype(), PACK) && to.in_packs(y.dtype(), PACK);
    let grid = Grid::covering(y.rows() * y.cols() / if vectorised { PACK } else { 1 });
    let args = Gather { ids: numbers.address(), table: from, y: to };
    Ok(cuda.launch(GATHER.vectorised(vectorised), &[table.dtype(), y.dtype()], grid, args)?)
}
