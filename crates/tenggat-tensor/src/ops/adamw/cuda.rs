//! GPU AdamW.

use tenggat_gpu::{Buffer, Grid, Kernel, Module, int, width};

use super::Hyper;
use crate::{DType, Error, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "adamw", source: include_str!("op.cu") };

const SQUARES: Kernel = Kernel::new(&MODULE, "sum_squares");
const CLIP: Kernel = Kernel::new(&MODULE, "clip_factor");
const STEP: Kernel = Kernel::new(&MODULE, "adamw");

/// Parts whose squares are summed on their own; a constant, so that the norm is the same on every GPU.
const PARTS: usize = 1024;

/// Mirrors `Squares`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Squares {
    x: u64,
    n: i64,
    sums: u64,
}

/// Mirrors `Clip`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Clip {
    sums: u64,
    parts: i32,
    max_norm: f32,
    clip: u64,
}

/// Mirrors `Step`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    p: u64,
    m: u64,
    v: u64,
    g: u64,
    clip: u64,
    n: i64,
    decay: f32,
    step_size: f32,
    root_correction: f32,
    l2: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
}

/// States and parameters are 32-bit on a GPU.
fn only_f32(op: &'static str, dtype: DType) -> Result<()> {
    if dtype == DType::F32 { Ok(()) } else { Err(Error::DType { op, dtype, device: "cuda" }) }
}

pub fn clip_factor(
    op: &'static str,
    gradient: View<'_>,
    max_norm: Option<f64>,
    clip: ViewMut<'_>,
) -> Result<()> {
    only_f32(op, gradient.dtype())?;
    let (cuda, to) = clip.cuda_flat(op)?;
    let sums = Buffer::new(&cuda, PARTS * size_of::<f32>())?;
    let n = (gradient.rows() * gradient.cols()) as i64;
    let args = Squares { x: gradient.cuda_flat(op)?.1.data, n, sums: sums.address() };
    cuda.launch(SQUARES, &[], Grid::blocks(PARTS), args)?;
    let max_norm = max_norm.map_or(-1.0, |norm| norm as f32);
    let args = Clip { sums: sums.address(), parts: int(PARTS)?, max_norm, clip: to.data };
    Ok(cuda.launch(CLIP, &[], Grid::blocks(1), args)?)
}

pub fn step(
    op: &'static str,
    p: ViewMut<'_>,
    [g, clip]: [View<'_>; 2],
    [m, v]: [ViewMut<'_>; 2],
    h: Hyper,
) -> Result<()> {
    only_f32(op, p.dtype())?;
    let (cuda, p_mat) = p.cuda_flat(op)?;
    let (g, m, v) = (g.cuda_flat(op)?.1, m.cuda_flat(op)?.1, v.cuda_flat(op)?.1);
    let steps = h.step.min(i32::MAX as u64) as i32;
    let args = Step {
        p: p_mat.data,
        m: m.data,
        v: v.data,
        g: g.data,
        clip: clip.cuda_flat(op)?.1.data,
        n: p.cols() as i64,
        decay: (1.0 - h.lr * h.weight_decay) as f32,
        step_size: (h.lr / (1.0 - h.beta1.powi(steps))) as f32,
        root_correction: (1.0 - h.beta2.powi(steps)).sqrt() as f32,
        l2: h.l2 as f32,
        beta1: h.beta1 as f32,
        beta2: h.beta2 as f32,
        rest1: (1.0 - h.beta1) as f32,
        rest2: (1.0 - h.beta2) as f32,
        eps: h.eps as f32,
    };
    let (vectorised, v) = width(DType::F32, &[p_mat, g, m, v]);
    Ok(cuda.launch(STEP.vectorised(vectorised), &[], Grid::covering(p.cols() / v), args)?)
}
