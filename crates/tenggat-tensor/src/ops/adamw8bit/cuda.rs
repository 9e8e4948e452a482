//! GPU AdamW with 8-bit moments.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int};

use super::{BLOCK, Hyper, Moment, SIGNED, UNSIGNED};
use crate::error::expect_dtypes;
use crate::{DType, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "adamw8bit", source: include_str!("op.cu") };

const STEP: Kernel = Kernel::new(&MODULE, "adamw8bit_step");

/// Blocks of moments that one block of threads takes, so that it reads the maps for all of them.
const PER_BLOCK: usize = 8;

/// Mirrors `Step`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    parameter: Mat,
    gradient: Mat,
    clip: Mat,
    m_codes: Mat,
    v_codes: Mat,
    m_scales: Mat,
    v_scales: Mat,
    decay: f32,
    step_size: f32,
    root_correction: f32,
    l2: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
    per_block: i32,
    maps: [[f32; BLOCK]; 2],
}

pub fn step(
    op: &'static str,
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    [m, v]: [Moment<'_>; 2],
    h: Hyper,
) -> Result<()> {
    let types = [parameter.dtype(), gradient.dtype(), clip.dtype(), m.scales.dtype(), v.scales.dtype()];
    expect_dtypes(op, DType::F32, &types)?;
    expect_dtypes(op, DType::U8, &[m.codes.dtype(), v.codes.dtype()])?;
    let (cuda, to) = parameter.cuda_flat(op)?;
    let steps = h.step.min(i32::MAX as u64) as i32;
    let args = Step {
        parameter: to,
        gradient: gradient.cuda_flat(op)?.1,
        clip: clip.cuda_flat(op)?.1,
        m_codes: m.codes.cuda_flat(op)?.1,
        v_codes: v.codes.cuda_flat(op)?.1,
        m_scales: m.scales.cuda_flat(op)?.1,
        v_scales: v.scales.cuda_flat(op)?.1,
        decay: (1.0 - h.lr * h.weight_decay) as f32,
        step_size: (h.lr / (1.0 - h.beta1.powi(steps))) as f32,
        root_correction: (1.0 - h.beta2.powi(steps)).sqrt() as f32,
        l2: h.l2 as f32,
        beta1: h.beta1 as f32,
        beta2: h.beta2 as f32,
        rest1: (1.0 - h.beta1) as f32,
        rest2: (1.0 - h.beta2) as f32,
        eps: h.eps as f32,
        per_block: int(PER_BLOCK)?,
        maps: [*SIGNED.values(), *UNSIGNED.values()],
    };
    let grid = Grid::threads(parameter.cols().div_ceil(BLOCK * PER_BLOCK), BLOCK as u32);
    Ok(cuda.launch(STEP, &[], grid, args)?)
}
