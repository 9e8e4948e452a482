//! GPU Prodigy. The decision between the passes is the caller's: the first waits for its two sums.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use super::{Accumulate, Buffers, Update};
use crate::error::expect_dtypes;
use crate::{DType, Result, Tensor, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "prodigy", source: include_str!("op.cu") };

const ACCUMULATE: Kernel = Kernel::new(&MODULE, "prodigy_accumulate");
const UPDATE: Kernel = Kernel::new(&MODULE, "prodigy_update");

/// Values that one block sums in f32; chunks are added in f64, in their order.
const CHUNK: usize = 1 << 14;

/// Mirrors `Accumulate`.
#[derive(Clone, Copy)]
#[repr(C)]
struct First {
    parameter: Mat,
    gradient: Mat,
    clip: Mat,
    start: Mat,
    m: Mat,
    v: Mat,
    s: Mat,
    sums: u64,
    chunk: i32,
    beta1: f32,
    beta2: f32,
    beta3: f32,
    l2: f32,
    first: f32,
    second: f32,
    third: f32,
}

/// Mirrors `Update`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Second {
    parameter: Mat,
    m: Mat,
    v: Mat,
    step_size: f32,
    eps: f32,
    decay: f32,
}

pub fn accumulate(
    op: &'static str,
    parameter: View<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    buffers: Buffers<'_>,
    h: Accumulate,
) -> Result<(f64, f64)> {
    let Buffers { start, m, v, s } = buffers;
    let types = [parameter.dtype(), gradient.dtype(), clip.dtype(), start.dtype()];
    expect_dtypes(op, DType::F32, &types)?;
    expect_dtypes(op, DType::F32, &[m.dtype(), v.dtype(), s.dtype()])?;
    let (cuda, from) = parameter.cuda_flat(op)?;
    let chunks = parameter.cols().div_ceil(CHUNK);
    let sums = Tensor::empty(&m.device(), DType::F32, &[chunks, 2])?;
    let args = First {
        parameter: from,
        gradient: gradient.cuda_flat(op)?.1,
        clip: clip.cuda_flat(op)?.1,
        start: start.cuda_flat(op)?.1,
        m: m.cuda_flat(op)?.1,
        v: v.cuda_flat(op)?.1,
        s: s.cuda_flat(op)?.1,
        sums: sums.view().cuda_flat(op)?.1.data,
        chunk: int(CHUNK)?,
        beta1: h.beta1 as f32,
        beta2: h.beta2 as f32,
        beta3: h.beta3 as f32,
        l2: h.l2 as f32,
        first: (h.d * (1.0 - h.beta1)) as f32,
        second: (h.d * h.d * (1.0 - h.beta2)) as f32,
        third: h.sum_weight as f32,
    };
    let (vectorised, _) = width(DType::F32, &[from, args.gradient, args.start, args.m, args.v, args.s]);
    cuda.launch(ACCUMULATE.vectorised(vectorised), &[], Grid::blocks(chunks), args)?;
    let (mut distance, mut size) = (0.0, 0.0);
    for pair in sums.to_f64()?.chunks_exact(2) {
        distance += pair[0];
        size += pair[1];
    }
    Ok((h.distance_weight * distance, size))
}

pub fn update(op: &'static str, parameter: ViewMut<'_>, m: View<'_>, v: View<'_>, h: Update) -> Result<()> {
    expect_dtypes(op, DType::F32, &[parameter.dtype(), m.dtype(), v.dtype()])?;
    let (cuda, to) = parameter.cuda_flat(op)?;
    let args = Second {
        parameter: to,
        m: m.cuda_flat(op)?.1,
        v: v.cuda_flat(op)?.1,
        step_size: h.step_size as f32,
        eps: h.eps as f32,
        decay: (1.0 - h.step_size * h.weight_decay) as f32,
    };
    let (vectorised, pack) = width(DType::F32, &[to, args.m, args.v]);
    Ok(cuda.launch(UPDATE.vectorised(vectorised), &[], Grid::covering(parameter.cols() / pack), args)?)
}
