//! GPU losses.

use tenggat_gpu::{Buffer, Grid, Kernel, Mat, Module, int};

use super::Loss;
use crate::error::expect_dtypes;
use crate::{DType, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "loss", source: include_str!("op.cu") };

const BACKWARD: Kernel = Kernel::new(&MODULE, "loss");
const FINISH: Kernel = Kernel::new(&MODULE, "loss_finish");

/// Samples of a launch.
const SAMPLES: usize = 64;
/// Blocks that share a sample; a constant, so that sums are grouped the same way on every GPU.
const BLOCKS: usize = 64;

/// Mirrors `Backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    pred: Mat,
    target: Mat,
    mask: Mat,
    dpred: Mat,
    sums: u64,
    tokens: i32,
    kind: i32,
    c: f32,
    factors: [f32; SAMPLES],
}

/// Mirrors `Finish`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Finish {
    sums: u64,
    loss: Mat,
    parts: i32,
    inverse: f32,
}

pub fn forward_backward(
    op: &'static str,
    kind: Loss,
    [pred, target]: [View<'_>; 2],
    mask: Option<View<'_>>,
    weights: &[f64],
    mut loss: ViewMut<'_>,
    mut dpred: ViewMut<'_>,
) -> Result<()> {
    expect_dtypes(op, dpred.dtype(), &[pred.dtype()])?;
    expect_dtypes(op, DType::F32, &[target.dtype(), loss.dtype()])?;
    expect_dtypes(op, DType::F32, &mask.iter().map(View::dtype).collect::<Vec<_>>())?;
    let tokens = pred.rows() / weights.len().max(1);
    let elements = (tokens * pred.cols()) as f64;
    let (kind, c) = match kind {
        Loss::Squared => (0, 0.0),
        Loss::Absolute => (1, 0.0),
        Loss::PseudoHuber { c } => (2, c as f32),
    };
    for (group, some) in weights.chunks(SAMPLES).enumerate() {
        let samples = group * SAMPLES..group * SAMPLES + some.len();
        let rows = samples.start * tokens..samples.end * tokens;
        let dpred = dpred.reborrow().row_range(rows.clone());
        let (cuda, to) = dpred.cuda(op)?;
        let sums = Buffer::new(&cuda, some.len() * BLOCKS * size_of::<f32>())?;
        let mask = mask.map(|mask| mask.row_range(rows.clone()).cuda(op)).transpose()?;
        let mut args = Backward {
            pred: pred.row_range(rows.clone()).cuda(op)?.1,
            target: target.row_range(rows).cuda(op)?.1,
            mask: mask.map_or(Mat::NONE, |(_, mask)| mask),
            dpred: to,
            sums: sums.address(),
            tokens: int(tokens)?,
            kind,
            c,
            factors: [0.0; SAMPLES],
        };
        let share = weights.len() as f64 * elements;
        args.factors.iter_mut().zip(some).for_each(|(to, weight)| *to = (weight / share) as f32);
        cuda.launch(BACKWARD, &[dpred.dtype()], Grid::blocks(BLOCKS).layers(some.len()), args)?;
        let loss = loss.reborrow().row_range(samples).cuda(op)?.1;
        let args =
            Finish { sums: sums.address(), loss, parts: int(BLOCKS)?, inverse: (1.0 / elements) as f32 };
        cuda.launch(FINISH, &[], Grid::threads(some.len(), 32), args)?;
    }
    Ok(())
}
