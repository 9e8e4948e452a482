//! GPU Lion.

use tenggat_gpu::{Grid, Kernel, Mat, Module, width};

use super::Hyper;
use crate::error::expect_dtypes;
use crate::{DType, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "lion", source: include_str!("op.cu") };

const STEP: Kernel = Kernel::new(&MODULE, "lion_step");

/// Mirrors `Step`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    parameter: Mat,
    gradient: Mat,
    clip: Mat,
    m: Mat,
    lr: f32,
    decay: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
}

pub fn step(
    op: &'static str,
    parameter: ViewMut<'_>,
    gradient: View<'_>,
    clip: View<'_>,
    m: ViewMut<'_>,
    h: Hyper,
) -> Result<()> {
    expect_dtypes(op, DType::F32, &[parameter.dtype(), gradient.dtype(), clip.dtype(), m.dtype()])?;
    let ((cuda, to), n) = (parameter.cuda_flat(op)?, parameter.cols());
    let args = Step {
        parameter: to,
        gradient: gradient.cuda_flat(op)?.1,
        clip: clip.cuda_flat(op)?.1,
        m: m.cuda_flat(op)?.1,
        lr: h.lr as f32,
        decay: (1.0 - h.lr * h.weight_decay) as f32,
        beta1: h.beta1 as f32,
        beta2: h.beta2 as f32,
        rest1: (1.0 - h.beta1) as f32,
        rest2: (1.0 - h.beta2) as f32,
    };
    let (vectorised, v) = width(DType::F32, &[to, args.gradient, args.m]);
    Ok(cuda.launch(STEP.vectorised(vectorised), &[], Grid::covering(n / v), args)?)
}
