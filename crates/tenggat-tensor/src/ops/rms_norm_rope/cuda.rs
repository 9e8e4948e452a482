//! GPU head norm and rotary embedding.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int};

use super::{EPS, Segment};
use crate::error::expect_shape;
use crate::{DType, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "rms_norm_rope", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "rms_norm_rope_forward");
const BACKWARD: Kernel = Kernel::new(&MODULE, "rms_norm_rope_backward");

/// Most channels of a head that are taken in pairs: 32 threads with 4 pairs each.
const MOST_CHANNELS: usize = 256;
/// Most threads of a block, as the kernels are told (`__launch_bounds__`).
const MOST_THREADS: usize = 512;

/// Mirrors `Segment` of `op.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Place {
    tokens: i32,
    joint_tokens: i32,
    at: i32,
    heads: i32,
    lane_bits: i32,
    inverse: f32,
}

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    qkv: Mat,
    weights: Mat,
    rope: Mat,
    joint: [Mat; 3],
    rstd: Mat,
    segment: Place,
    eps: f32,
}

/// Mirrors `Backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    qkv: Mat,
    weights: Mat,
    rope: Mat,
    rstd: Mat,
    joint: [Mat; 3],
    dqkv: Mat,
    segment: Place,
}

/// How the work is cut: whether threads take 16 bytes at a time, the launch, and what the kernel is told of
/// it.
///
/// A head is taken by as many threads as it has packs of 16 bytes, if they are a power of two and all
/// matrices can be read so; else by 32 threads, in pairs of channels.
fn cut(
    op: &'static str,
    dtype: DType,
    rows: usize,
    (rope, matrices): (&View<'_>, &[Mat]),
    segment: Segment,
) -> Result<(bool, Grid, Place)> {
    let (channels, pack) = (rope.cols(), 16 / dtype.bytes());
    let lanes = channels / pack;
    let vectorised = channels.is_multiple_of(pack)
        && lanes.is_power_of_two()
        && lanes <= 32
        && matrices.iter().all(|m| m.is_vectorisable(dtype))
        && rope.cuda(op)?.1.in_packs(rope.dtype(), pack / 2);
    if !vectorised {
        let most = channels.min(MOST_CHANNELS);
        expect_shape(op, "channels of a head (at most 256 on a GPU)", &[most], &[channels])?;
    }
    let Segment { tokens, joint_tokens, at, heads } = segment;
    let lanes = if vectorised { lanes } else { 32 };
    let threads = (heads * lanes).next_multiple_of(32).clamp(32, MOST_THREADS);
    let place = Place {
        tokens: int(tokens)?,
        joint_tokens: int(joint_tokens)?,
        at: int(at)?,
        heads: int(heads)?,
        lane_bits: lanes.ilog2() as i32,
        inverse: (1.0 / channels as f64) as f32,
    };
    let grid = Grid::threads(tokens, threads as u32).layers(rows / tokens.max(1));
    Ok((vectorised, grid, place))
}

pub fn forward(
    op: &'static str,
    [qkv, weights, rope]: [View<'_>; 3],
    segment: Segment,
    [q, k, v]: [ViewMut<'_>; 3],
    rstd: ViewMut<'_>,
) -> Result<()> {
    let (dtype, rows) = (q.dtype(), qkv.rows());
    let (cuda, q) = q.cuda(op)?;
    let (qkv, weights, joint) = (qkv.cuda(op)?.1, weights.cuda(op)?.1, [q, k.cuda(op)?.1, v.cuda(op)?.1]);
    let matrices = [&[qkv, weights][..], &joint].concat();
    let (vectorised, grid, segment) = cut(op, dtype, rows, (&rope, &matrices), segment)?;
    let (rope, rstd) = (rope.cuda(op)?.1, rstd.cuda(op)?.1);
    let args = Forward { qkv, weights, rope, joint, rstd, segment, eps: EPS as f32 };
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[dtype], grid, args)?)
}

pub fn backward(
    op: &'static str,
    [qkv, weights, rope, rstd]: [View<'_>; 4],
    segment: Segment,
    [dq, dk, dv]: [View<'_>; 3],
    dqkv: ViewMut<'_>,
) -> Result<()> {
    let (dtype, rows) = (dqkv.dtype(), qkv.rows());
    let (cuda, dqkv) = dqkv.cuda(op)?;
    let (qkv, weights) = (qkv.cuda(op)?.1, weights.cuda(op)?.1);
    let joint = [dq.cuda(op)?.1, dk.cuda(op)?.1, dv.cuda(op)?.1];
    let matrices = [&[qkv, weights, dqkv][..], &joint].concat();
    let (vectorised, grid, segment) = cut(op, dtype, rows, (&rope, &matrices), segment)?;
    let (rope, rstd) = (rope.cuda(op)?.1, rstd.cuda(op)?.1);
    let args = Backward { qkv, weights, rope, rstd, joint, dqkv, segment };
    Ok(cuda.launch(BACKWARD.vectorised(vectorised), &[dtype], grid, args)?)
}
