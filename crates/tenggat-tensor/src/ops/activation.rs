//! Activations of single elements: what the ops of GELU and SiLU share, on CPUs and, by the kernels of
//! `activation.cuh`, on GPUs.

use rayon::prelude::*;
use tenggat_gpu::{Grid, Kernel, Mat, width};

use super::{ROW_BLOCK, dispatch_real};
use crate::cpu::{self, MatMut, Real, vectorised};
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// A function of one element, with its derivative.
pub(super) trait Activation {
    /// Name of the op and kernel of the forward pass.
    const FORWARD: (&'static str, Kernel);
    /// The same of the backward pass.
    const BACKWARD: (&'static str, Kernel);

    /// The function.
    fn value<T: Real>(x: T) -> T;

    /// Its derivative.
    fn slope<T: Real>(x: T) -> T;
}

/// `y = value(x)`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub(super) fn forward<A: Activation>(x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    let (op, kernel) = A::FORWARD;
    expect_shape(op, "y", &x.shape(), &y.shape())?;
    if y.on_gpu() {
        return launch(op, kernel, x, y);
    }
    dispatch_real!(op, y.dtype(), T => {
        each::<T>(x.cpu(op)?, y.cpu(op)?, #[inline(always)] |y, x| *y = A::value(x));
        Ok(())
    })
}

/// `d *= slope(x)`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub(super) fn backward<A: Activation>(x: View<'_>, d: ViewMut<'_>) -> Result<()> {
    let (op, kernel) = A::BACKWARD;
    expect_shape(op, "d", &x.shape(), &d.shape())?;
    if d.on_gpu() {
        return launch(op, kernel, x, d);
    }
    dispatch_real!(op, d.dtype(), T => {
        each::<T>(x.cpu(op)?, d.cpu(op)?, #[inline(always)] |d, x| *d *= A::slope(x));
        Ok(())
    })
}

/// Calls `f` with every element of `y` and that of `x` at the same place.
fn each<T: Real>(x: cpu::Mat<'_, T>, mut y: MatMut<'_, T>, f: impl Fn(&mut T, T) + Copy + Sync + Send) {
    y.par_blocks(ROW_BLOCK).for_each(|(first, mut block)| {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..block.rows {
                    block.row_mut(i).iter_mut().zip(x.row(first + i)).for_each(|(y, &x)| f(y, x));
                }
            },
        );
    });
}

/// Mirrors `Two`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Two {
    x: Mat,
    y: Mat,
}

/// Runs a kernel over every element of `y` and that of `x` at the same place.
fn launch(op: &'static str, kernel: Kernel, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
    let ((cuda, y_mat), (_, x)) = (y.cuda(op)?, x.cuda(op)?);
    let (vectorised, v) = width(y.dtype(), &[x, y_mat]);
    let grid = Grid::covering(y.rows() * y.cols() / v);
    Ok(cuda.launch(kernel.vectorised(vectorised), &[y.dtype()], grid, Two { x, y: y_mat })?)
}
