//! GPU head norm and rotary embedding.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int};

use super::{EPS, Segment};
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "rms_norm_rope", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "rms_norm_rope_forward");
const BACKWARD: Kernel = Kernel::new(&MODULE, "rms_norm_rope_backward");

/// Most channels of a head: 32 lanes with 4 pairs each.
const MOST_CHANNELS: usize = 256;

/// Mirrors `Segment` of `op.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Place {
    tokens: i32,
    joint_tokens: i32,
    at: i32,
    heads: i32,
}

impl TryFrom<Segment> for Place {
    type Error = tenggat_gpu::Error;

    fn try_from(s: Segment) -> Result<Self, Self::Error> {
        let Segment { tokens, joint_tokens, at, heads } = s;
        let (tokens, joint_tokens) = (int(tokens)?, int(joint_tokens)?);
        Ok(Place { tokens, joint_tokens, at: int(at)?, heads: int(heads)? })
    }
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

/// A warp for each head of q, k and v of each token.
fn grid(op: &'static str, rows: usize, rope: &View<'_>, segment: Segment) -> Result<Grid> {
    let channels = rope.cols();
    expect_shape(
        op,
        "channels of a head (at most 256 on a GPU)",
        &[channels.min(MOST_CHANNELS)],
        &[channels],
    )?;
    Ok(Grid::covering(rows * 3 * segment.heads * 32))
}

pub fn forward(
    op: &'static str,
    [qkv, weights, rope]: [View<'_>; 3],
    segment: Segment,
    [q, k, v]: [ViewMut<'_>; 3],
    rstd: ViewMut<'_>,
) -> Result<()> {
    let (cuda, q_mat) = q.cuda(op)?;
    let args = Forward {
        qkv: qkv.cuda(op)?.1,
        weights: weights.cuda(op)?.1,
        rope: rope.cuda(op)?.1,
        joint: [q_mat, k.cuda(op)?.1, v.cuda(op)?.1],
        rstd: rstd.cuda(op)?.1,
        segment: segment.try_into()?,
        eps: EPS as f32,
    };
    Ok(cuda.launch(FORWARD, &[q.dtype()], grid(op, qkv.rows(), &rope, segment)?, args)?)
}

pub fn backward(
    op: &'static str,
    [qkv, weights, rope, rstd]: [View<'_>; 4],
    segment: Segment,
    [dq, dk, dv]: [View<'_>; 3],
    dqkv: ViewMut<'_>,
) -> Result<()> {
    let (cuda, to) = dqkv.cuda(op)?;
    let args = Backward {
        qkv: qkv.cuda(op)?.1,
        weights: weights.cuda(op)?.1,
        rope: rope.cuda(op)?.1,
        rstd: rstd.cuda(op)?.1,
        joint: [dq.cuda(op)?.1, dk.cuda(op)?.1, dv.cuda(op)?.1],
        dqkv: to,
        segment: segment.try_into()?,
    };
    Ok(cuda.launch(BACKWARD, &[dqkv.dtype()], grid(op, qkv.rows(), &rope, segment)?, args)?)
}
