//! GPU convolution: the unfolded input of a slab of output pixels, times the weight.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use super::{Filter, Pictures, Resample, Write};
use crate::error::expect_dtypes;
use crate::ops::gemm;
use crate::{DType, Error, Result, Tensor, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "conv2d", source: include_str!("op.cu") };

const LENGTHS: Kernel = Kernel::new(&MODULE, "conv2d_lengths");
const UNFOLD: Kernel = Kernel::new(&MODULE, "conv2d_unfold");

/// Bytes of an unfolded slab: enough to fill a GPU, little beside the activations of large pictures.
const SLAB_BYTES: usize = 256 << 20;

/// Mirrors `Lengths`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Lengths {
    x: Mat,
    factors: u64,
    root: f32,
}

/// Mirrors `Unfold`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Unfold {
    x: Mat,
    columns: Mat,
    norm: u64,
    factors: u64,
    first: i32,
    height: i32,
    width: i32,
    out_height: i32,
    out_width: i32,
    step: i32,
    pad: i32,
    shift: i32,
}

pub fn forward(
    op: &'static str,
    x: View<'_>,
    input: Pictures,
    filter: Filter<'_>,
    write: Write,
    y: ViewMut<'_>,
) -> Result<()> {
    in_slabs(op, x, input, filter, write, y, SLAB_BYTES)
}

/// [`forward`] with slabs of at most this many bytes, but at least one pixel.
pub(super) fn in_slabs(
    op: &'static str,
    x: View<'_>,
    input: Pictures,
    filter: Filter<'_>,
    write: Write,
    mut y: ViewMut<'_>,
    slab_bytes: usize,
) -> Result<()> {
    let (dtype, device) = (y.dtype(), y.device());
    expect_dtypes(op, dtype, &[x.dtype(), filter.weight.dtype(), filter.bias.dtype()])?;
    let (cuda, from) = x.cuda(op)?;
    let factors = filter.norm.map(|norm| {
        expect_dtypes(op, dtype, &[norm.dtype()])?;
        let factors = Tensor::empty(&device, DType::F32, &[x.rows()])?;
        let to = factors.view().cuda(op)?.1.data;
        let (vectorised, _) = width(dtype, &[from]);
        let args = Lengths { x: from, factors: to, root: (x.cols() as f32).sqrt() };
        cuda.launch(LENGTHS.vectorised(vectorised), &[dtype], Grid::covering(32 * x.rows()), args)?;
        Ok::<_, Error>(factors)
    });
    let factors = factors.transpose()?;
    let address = |t: Option<&Tensor>| t.map_or(Ok(0), |t| Ok::<_, Error>(t.view().cuda(op)?.1.data));
    let output = filter.resample.output(input);
    let (step, pad, shift) = match filter.resample {
        Resample::Keep => (1, 1, 0),
        Resample::Halve => (2, 0, 0),
        Resample::Double => (1, 1, 1),
    };
    let taps = 9 * x.cols();
    // Rows of whole 16 bytes, so that products find them aligned.
    let stride = taps.next_multiple_of(16 / dtype.bytes());
    let rows = (slab_bytes / (stride * dtype.bytes())).max(1).min(y.rows());
    let mut columns = Tensor::empty(&device, dtype, &[rows, stride])?;
    for first in (0..y.rows()).step_by(rows.max(1)) {
        let count = rows.min(y.rows() - first);
        let slab = columns.view_mut().row_range(0..count).columns(0..taps);
        let to = slab.cuda(op)?.1;
        // A pack lies within one tap, whose columns are those of x.
        let (vectorised, v) = width(dtype, &[Mat { cols: from.cols, ..to }, from]);
        let args = Unfold {
            x: from,
            columns: to,
            norm: address(filter.norm)?,
            factors: address(factors.as_ref())?,
            first: int(first)?,
            height: int(input.height)?,
            width: int(input.width)?,
            out_height: int(output.height)?,
            out_width: int(output.width)?,
            step,
            pad,
            shift,
        };
        cuda.launch(UNFOLD.vectorised(vectorised), &[dtype], Grid::covering(count * taps / v), args)?;
        let (weight, bias) = (filter.weight.view(), Some(filter.bias.view()));
        let part = y.reborrow().row_range(first..first + count);
        gemm::cuda::product(op, 1.0, (slab.as_view(), false), (weight, false), write.beta(), bias, part)?;
    }
    Ok(())
}
