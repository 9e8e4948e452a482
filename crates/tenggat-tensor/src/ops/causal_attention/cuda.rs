//! GPU causal attention.

use tenggat_gpu::{Buffer, Grid, Kernel, Mat, Module, int, width};

use super::Layout;
use crate::error::expect_dtypes;
use crate::{Error, Result, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "causal_attention", source: include_str!("op.cu") };

const FORWARD: Kernel = Kernel::new(&MODULE, "causal_attention");

/// Queries of a block, and its threads.
const QUERIES: usize = 16;
const THREADS: u32 = 128;
/// Most channels of a head.
const MOST_D: usize = 128;

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    q: Mat,
    k: Mat,
    v: Mat,
    o: Mat,
    starts: u64,
    group: i32,
    d: i32,
    scale: f32,
}

pub fn forward(
    op: &'static str,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    layout: Layout<'_>,
    o: ViewMut<'_>,
) -> Result<()> {
    let Layout { lens, heads, kv_heads, scale } = layout;
    let d = q.cols() / heads.max(1);
    if d > MOST_D {
        return Err(Error::shape(op, "channels of a head (at most)", &[MOST_D], &[d]));
    }
    expect_dtypes(op, o.dtype(), &[q.dtype(), k.dtype(), v.dtype()])?;
    let (cuda, to) = o.cuda(op)?;
    let mut end = 0;
    let starts: Vec<i32> = std::iter::once(Ok(0))
        .chain(lens.iter().map(|len| {
            end += len;
            int(end)
        }))
        .collect::<Result<_, _>>()?;
    let there = Buffer::new(&cuda, size_of_val(&starts[..]))?;
    cuda.upload(bytemuck::cast_slice(&starts), there.address())?;
    let args = Forward {
        q: q.cuda(op)?.1,
        k: k.cuda(op)?.1,
        v: v.cuda(op)?.1,
        o: to,
        starts: there.address(),
        group: int(heads / kv_heads.max(1))?,
        d: int(d)?,
        scale: scale as f32,
    };
    // A pack of channels lies within a head.
    let (vectorised, pack) = width(o.dtype(), &[args.k, args.v]);
    let vectorised = vectorised && d.is_multiple_of(pack);
    let longest = lens.iter().copied().max().unwrap_or(0);
    let mut grid = Grid::threads(longest.div_ceil(QUERIES), THREADS).layers(heads);
    grid.blocks[2] = lens.len();
    Ok(cuda.launch(FORWARD.vectorised(vectorised), &[o.dtype()], grid, args)?)
}
