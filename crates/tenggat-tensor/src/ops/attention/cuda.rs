//! GPU attention: cuDNN's fused kernels for bf16 where they are installed, else our own.

use std::sync::Arc;

use tenggat_gpu::dnn::{self, Dnn};
use tenggat_gpu::{Buffer, Cuda, Grid, Kernel, Mat, Module, int};

use super::{Layout, Saved};
use crate::error::expect_shape;
use crate::ops::gemm;
use crate::{DType, Error, Result, Tensor, View, ViewMut};

pub(crate) const MODULE: Module = Module { name: "attention", source: include_str!("op.cu") };

const SOFTMAX: Kernel = Kernel::new(&MODULE, "attention_softmax");
const PRODUCTS: Kernel = Kernel::new(&MODULE, "attention_products");

/// The kernels for heads of at most 32, 64 and 128 channels.
const fn by_width(names: [&'static str; 3]) -> [Kernel; 3] {
    let [a, b, c] = names;
    [Kernel::new(&MODULE, a), Kernel::new(&MODULE, b), Kernel::new(&MODULE, c)]
}
const FORWARD: [Kernel; 3] = by_width(["attention_forward_1", "attention_forward_2", "attention_forward_4"]);
const QUERIES: [Kernel; 3] = by_width([
    "attention_backward_queries_1",
    "attention_backward_queries_2",
    "attention_backward_queries_4",
]);
const KEYS: [Kernel; 3] =
    by_width(["attention_backward_keys_1", "attention_backward_keys_2", "attention_backward_keys_4"]);

/// Most channels of a head.
const MOST_CHANNELS: usize = 128;
/// Threads of a block: 4 warps, each with 4 rows.
const THREADS: u32 = 128;
const ROWS: usize = 16;

/// Mirrors `Layout` of `op.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Shape {
    key_lens: u64,
    tokens: i32,
    heads: i32,
    d: i32,
    scale: f32,
}

/// Mirrors `Forward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    q: Mat,
    k: Mat,
    v: Mat,
    o: Mat,
    lse: Mat,
    layout: Shape,
}

/// Mirrors `Backward`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    q: Mat,
    k: Mat,
    v: Mat,
    o: Mat,
    d_o: Mat,
    lse: Mat,
    products: Mat,
    dq: Mat,
    dk: Mat,
    dv: Mat,
    layout: Shape,
}

fn shape(op: &'static str, cuda: &Arc<Cuda>, layout: Layout<'_>, channels: usize) -> Result<(Shape, usize)> {
    let d = channels / layout.heads.max(1);
    expect_shape(op, "channels of a head (at most 128 on a GPU)", &[d.min(MOST_CHANNELS)], &[d])?;
    let key_lens = match layout.device_lens {
        Some(lens) => lens.view().cuda(op)?.1.data,
        None => cuda.constants(&layout.key_lens.iter().map(|&n| int(n)).collect::<Result<Vec<i32>, _>>()?)?,
    };
    let (tokens, heads, scale) = (int(layout.tokens)?, int(layout.heads)?, layout.scale as f32);
    Ok((Shape { key_lens, tokens, heads, d: int(d)?, scale }, d))
}

/// Which of the kernels by width.
fn width(d: usize) -> usize {
    [32, 64].iter().filter(|&&most| d > most).count()
}

/// The layout as cuDNN takes it, if it can take all these matrices: bf16, no gaps between rows.
///
/// # Errors
/// It could, but is not installed, and there are [`MANY_TOKENS`].
fn fused<'a>(
    cuda: &'a Cuda,
    dtype: DType,
    layout: Layout<'_>,
    d: usize,
    all: &[Mat],
) -> Result<Option<(&'a Dnn, dnn::Shape)>> {
    let whole = all.iter().all(|m| m.stride == m.cols && m.data.is_multiple_of(16));
    if dtype != DType::BF16 || !d.is_multiple_of(8) || !whole {
        return Ok(None);
    }
    if let Some(why) = cuda.missing_dnn().filter(|_| layout.tokens >= MANY_TOKENS) {
        return Err(Error::Cuda(format!(
            "attention over {} tokens would take about thirty times as long without tensor cores: {why}. \
             Install cuDNN for your CUDA version, for example `pip install nvidia-cudnn-cu13`, or set \
             TENGGAT_WITHOUT=dnn to run without it",
            layout.tokens
        )));
    }
    let shape = dnn::Shape::separate(layout.key_lens.len(), layout.tokens, layout.heads, d);
    Ok(cuda.dnn().map(|library| (library, shape)))
}

/// Tokens from which on our own kernels take so long that they are not taken unasked where cuDNN is merely
/// not installed.
const MANY_TOKENS: usize = 1024;

/// Runs a pass on cuDNN, in a workspace of this many bytes. Whether it was queued: if cuDNN has no plan for
/// it, or its plan does not start, that is noted, and our own kernels do the work from then on.
///
/// # Errors
/// There is no room for the workspace; or the pass failed while work is captured, which ends the capture.
fn queued(
    cuda: &Arc<Cuda>,
    (library, pass, shape): (&Dnn, dnn::Pass, dnn::Shape),
    workspace: dnn::Result<usize>,
    run: impl FnOnce(u64) -> dnn::Result<()>,
) -> Result<bool> {
    let failed = |e: &dnn::Error| {
        library.refuse(pass, shape, e);
        cuda.note(format!("attention runs without tensor cores: {e}"));
    };
    let bytes = match workspace {
        Err(dnn::Error::Refused(_)) => return Ok(false),
        Err(e) if cuda.is_capturing() => return Err(Error::Cuda(e.to_string())),
        Err(e) => {
            failed(&e);
            return Ok(false);
        }
        Ok(bytes) => bytes,
    };
    let workspace = Buffer::new(cuda, bytes)?;
    match run(workspace.address()) {
        Err(e) if cuda.is_capturing() => Err(Error::Cuda(e.to_string())),
        result => Ok(result.inspect_err(failed).is_ok()),
    }
}

/// What cuDNN reads and writes forward.
fn operands(
    cuda: &Cuda,
    [q, k, v, o, lse]: [Mat; 5],
    key_lengths: u64,
    layout: Layout<'_>,
) -> Result<dnn::Forward> {
    Ok(dnn::Forward {
        q: q.data,
        k: k.data,
        v: v.data,
        o: o.data,
        // Ours has the order [b, s, h]; nobody but attention reads it.
        stats: lse.data,
        key_lengths,
        query_lengths: cuda.constants(&vec![int(layout.tokens)?; layout.key_lens.len()])?,
    })
}

/// Bytes of scores in memory at once, where all scores of a sample are written out.
const SCORE_BYTES: usize = 256 << 20;

/// Mirrors `Softmax`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Softmax {
    scores: Mat,
    to: Mat,
    lse: Mat,
    length: i32,
}

/// Attention of heads with more channels than the kernels hold, such as the VAE's: three products with the
/// scores of some queries written out between them. Forward only: nothing is trained there.
fn written_out(
    op: &'static str,
    [q, k, v]: [View<'_>; 3],
    layout: Layout<'_>,
    mut o: ViewMut<'_>,
    mut lse: ViewMut<'_>,
) -> Result<()> {
    let d = q.cols() / layout.heads.max(1);
    let at_once = (SCORE_BYTES / (layout.tokens * size_of::<f32>()).max(1)).clamp(1, layout.tokens.max(1));
    let mut scores = Tensor::empty(&q.device(), DType::F32, &[at_once, layout.tokens])?;
    let mut weights = Tensor::empty(&q.device(), q.dtype(), &[at_once, layout.tokens])?;
    for (sample, &length) in layout.key_lens.iter().enumerate() {
        let all = sample * layout.tokens..(sample + 1) * layout.tokens;
        for head in 0..layout.heads {
            let columns = head * d..(head + 1) * d;
            let own = [k, v].map(|view| view.row_range(all.clone()).columns(columns.clone()));
            for first in (all.clone()).step_by(at_once) {
                let rows = first..(first + at_once).min(all.end);
                let queries = q.row_range(rows.clone()).columns(columns.clone());
                let mut scores = scores.view_mut().row_range(0..rows.len());
                gemm::nt(layout.scale, queries, own[0], 0.0, scores.reborrow())?;
                let (cuda, scores) = scores.cuda(op)?;
                let weights_mat = weights.view_mut().row_range(0..rows.len()).cuda(op)?.1;
                let lse = lse.reborrow().row_range(rows.clone()).columns(head..head + 1).cuda(op)?.1;
                let args = Softmax { scores, to: weights_mat, lse, length: int(length)? };
                cuda.launch(SOFTMAX, &[q.dtype()], Grid::blocks(rows.len()), args)?;
                let weights = weights.view().row_range(0..rows.len());
                gemm::nn(1.0, weights, own[1], 0.0, o.reborrow().row_range(rows).columns(columns.clone()))?;
            }
        }
    }
    Ok(())
}

fn grid(layout: Layout<'_>) -> Grid {
    Grid::threads(layout.tokens.div_ceil(ROWS), THREADS).layers(layout.key_lens.len() * layout.heads)
}

pub fn forward(
    op: &'static str,
    [q, k, v]: [View<'_>; 3],
    layout: Layout<'_>,
    o: ViewMut<'_>,
    lse: ViewMut<'_>,
) -> Result<()> {
    if q.cols() > MOST_CHANNELS * layout.heads {
        return written_out(op, [q, k, v], layout, o, lse);
    }
    let (cuda, o_mat) = o.cuda(op)?;
    let (shape, d) = shape(op, &cuda, layout, q.cols())?;
    let args = Forward {
        q: q.cuda(op)?.1,
        k: k.cuda(op)?.1,
        v: v.cuda(op)?.1,
        o: o_mat,
        lse: lse.cuda(op)?.1,
        layout: shape,
    };
    if let Some((library, shape)) = fused(&cuda, o.dtype(), layout, d, &[args.q, args.k, args.v, args.o])? {
        let operands =
            operands(&cuda, [args.q, args.k, args.v, args.o, args.lse], args.layout.key_lens, layout)?;
        let run = |workspace| library.forward(shape, operands, layout.scale as f32, workspace);
        if queued(&cuda, (library, dnn::Pass::Forward, shape), library.forward_workspace(shape), run)? {
            return Ok(());
        }
    }
    Ok(cuda.launch(FORWARD[width(d)], &[o.dtype()], grid(layout), args)?)
}

pub fn backward(
    op: &'static str,
    saved: Saved<'_>,
    layout: Layout<'_>,
    d_o: View<'_>,
    [dq, dk, dv]: [ViewMut<'_>; 3],
) -> Result<()> {
    let (cuda, dq_mat) = dq.cuda(op)?;
    let (shape, d) = shape(op, &cuda, layout, d_o.cols())?;
    let args = Backward {
        q: saved.q.cuda(op)?.1,
        k: saved.k.cuda(op)?.1,
        v: saved.v.cuda(op)?.1,
        o: saved.o.cuda(op)?.1,
        d_o: d_o.cuda(op)?.1,
        lse: saved.lse.cuda(op)?.1,
        products: Mat::NONE,
        dq: dq_mat,
        dk: dk.cuda(op)?.1,
        dv: dv.cuda(op)?.1,
        layout: shape,
    };
    let Backward { q, k, v, o, lse, .. } = args;
    let all = [q, k, v, o, args.d_o, args.dq, args.dk, args.dv];
    if let Some((library, shape)) = fused(&cuda, dq.dtype(), layout, d, &all)? {
        let saved = operands(&cuda, [q, k, v, o, lse], args.layout.key_lens, layout)?;
        let operands =
            dnn::Backward { saved, d_o: args.d_o.data, dq: args.dq.data, dk: args.dk.data, dv: args.dv.data };
        let run = |workspace| library.backward(shape, operands, layout.scale as f32, workspace);
        if queued(&cuda, (library, dnn::Pass::Backward, shape), library.backward_workspace(shape), run)? {
            return Ok(());
        }
    }
    let mut products = Tensor::empty(&dq.device(), DType::F32, &[d_o.rows(), layout.heads])?;
    let args = Backward { products: products.view_mut().cuda(op)?.1, ..args };
    let types = [dq.dtype()];
    cuda.launch(PRODUCTS, &types, Grid::covering(d_o.rows() * layout.heads * 32), args)?;
    cuda.launch(QUERIES[width(d)], &types, grid(layout), args)?;
    Ok(cuda.launch(KEYS[width(d)], &types, grid(layout), args)?)
}
