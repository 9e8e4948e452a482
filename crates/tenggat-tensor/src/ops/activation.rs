//! Launches of the kernels of `activation.cuh`: activations of single elements on a GPU.

use tenggat_gpu::{Grid, Kernel, Mat, width};

use crate::{Result, View, ViewMut};

/// Mirrors `Two`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Two {
    x: Mat,
    y: Mat,
}

/// Runs a kernel over every element of `y` and that of `x` at the same place.
pub(super) fn each(op: &'static str, kernel: Kernel, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    let ((cuda, y_mat), (_, x)) = (y.cuda(op)?, x.cuda(op)?);
    let (vectorised, v) = width(y.dtype(), &[x, y_mat]);
    let grid = Grid::covering(y.rows() * y.cols() / v);
    Ok(cuda.launch(kernel.vectorised(vectorised), &[y.dtype()], grid, Two { x, y: y_mat })?)
}
