//! GPU Adafactor. Nothing is read back: what later passes need of earlier ones stays in the GPU's memory.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use super::{Hyper, State};
use crate::error::expect_dtypes;
use crate::{DType, Result, Tensor, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "adafactor", source: include_str!("op.cu") };

const ROWS: Kernel = Kernel::new(&MODULE, "adafactor_rows");
const COLUMNS: Kernel = Kernel::new(&MODULE, "adafactor_columns");
const MEANS: Kernel = Kernel::new(&MODULE, "adafactor_means");
const SIZES: Kernel = Kernel::new(&MODULE, "adafactor_sizes");
const SCALE: Kernel = Kernel::new(&MODULE, "adafactor_scale");
const UPDATE: Kernel = Kernel::new(&MODULE, "adafactor_update");

/// Numbers of `Shared`.
const SHARED: usize = 3;
/// Threads of blocks that sum columns or all rows.
const SUMMING: u32 = 512;

/// Mirrors `Rows`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Rows {
    parameter: Mat,
    gradient: Mat,
    clip: Mat,
    rows: Mat,
    squares: u64,
    beta2: f32,
    rest2: f32,
    eps: f32,
}

/// Mirrors `Columns`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Columns {
    gradient: Mat,
    clip: Mat,
    columns: Mat,
    width: i32,
    beta2: f32,
    rest2: f32,
    eps: f32,
}

/// Mirrors `Means`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Means {
    rows: Mat,
    squares: u64,
    shared: u64,
    lr: f32,
    floor: f32,
    per_value: f32,
}

/// Mirrors `Sizes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Sizes {
    gradient: Mat,
    clip: Mat,
    rows: Mat,
    columns: Mat,
    shared: u64,
    sizes: u64,
}

/// Mirrors `Scale`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Scale {
    sizes: u64,
    shared: u64,
    rows: i32,
    threshold: f32,
    per_value: f32,
}

/// Mirrors `Update`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Update {
    parameter: Mat,
    gradient: Mat,
    clip: Mat,
    rows: Mat,
    columns: Mat,
    first: Mat,
    shared: u64,
    beta1: f32,
    rest1: f32,
    weight_decay: f32,
}

pub fn step(
    op: &'static str,
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    state: State<'_>,
    h: Hyper,
) -> Result<()> {
    let types = [gradient.dtype(), clip.dtype(), state.rows.dtype(), state.columns.dtype()];
    expect_dtypes(op, DType::F32, &types)?;
    expect_dtypes(op, DType::F32, &[parameter.dtype()])?;
    let ((cuda, to), [m, n]) = (parameter.cuda(op)?, parameter.shape());
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (gradient, clip) = (gradient.cuda(op)?.1, clip.cuda(op)?.1);
    let (rows, columns) = (state.rows.cuda(op)?.1, state.columns.cuda(op)?.1);
    let (first, beta1) = match state.first {
        Some((first, beta1)) => {
            expect_dtypes(op, DType::F32, &[first.dtype()])?;
            (first.cuda(op)?.1, beta1)
        }
        None => (Mat::NONE, 0.0),
    };
    let scratch = Tensor::empty(&parameter.device(), DType::F32, &[SHARED + m])?;
    let shared = scratch.view().cuda(op)?.1.data;
    let sums = scratch.matrix(SHARED, 1, m)?.cuda(op)?.1.data;
    let squares = if h.scale_floor.is_some() { sums } else { 0 };
    let (beta2, rest2, eps) = (h.beta2 as f32, (1.0 - h.beta2) as f32, h.eps as f32);
    let per_value = (1.0 / (m * n) as f64) as f32;
    let by_row = Grid::threads(m, if n < 1024 { 32 } else { Grid::THREADS });
    let alone = Grid::threads(1, SUMMING);

    cuda.launch(ROWS, &[], by_row, Rows { parameter: to, gradient, clip, rows, squares, beta2, rest2, eps })?;
    // Narrow matrices leave more threads for their rows.
    let across = n.next_power_of_two().min(32);
    let args = Columns { gradient, clip, columns, width: int(across)?, beta2, rest2, eps };
    cuda.launch(COLUMNS, &[], Grid::threads(n.div_ceil(across), SUMMING), args)?;
    let floor = h.scale_floor.unwrap_or(0.0) as f32;
    cuda.launch(MEANS, &[], alone, Means { rows, squares, shared, lr: h.lr as f32, floor, per_value })?;
    cuda.launch(SIZES, &[], by_row, Sizes { gradient, clip, rows, columns, shared, sizes: sums })?;
    let threshold = h.threshold as f32;
    cuda.launch(SCALE, &[], alone, Scale { sizes: sums, shared, rows: int(m)?, threshold, per_value })?;
    let args = Update {
        parameter: to,
        gradient,
        clip,
        rows,
        columns,
        first,
        shared,
        beta1: beta1 as f32,
        rest1: (1.0 - beta1) as f32,
        weight_decay: h.weight_decay as f32,
    };
    let (vectorised, v) = width(DType::F32, &[to, gradient, columns, first]);
    Ok(cuda.launch(UPDATE.vectorised(vectorised), &[], Grid::covering(m * n / v), args)?)
}
