//! Causal attention with grouped queries over sequences packed one after another.
//!
//! Token i of a sequence sees the tokens 0..=i of the same one. Query head `h` uses key and value head
//! `h / (heads / kv_heads)`. Per sequence and head: `S = scale · Q·Kᵀ` below the diagonal, `P = softmax(S)`,
//! `O = P·V`.
//!
//! Packing wastes no work on padding: a row is a token. Forward only: it belongs to the frozen text encoder.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// What the shapes of the operands do not say.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// Tokens of each sequence; they sum to the rows of q.
    pub lens: &'a [usize],
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Multiplies the scores; usually 1/√d.
    pub scale: f64,
}

/// Attends. q, o: `[Σ lens, heads·d]`; k, v: `[Σ lens, kv_heads·d]`.
///
/// # Errors
/// Shapes do not fit, or types differ; on a GPU, heads are longer than 128.
pub fn forward(q: View<'_>, k: View<'_>, v: View<'_>, layout: Layout<'_>, o: ViewMut<'_>) -> Result<()> {
    const OP: &str = "causal attention";
    let Layout { lens, heads, kv_heads, .. } = layout;
    expect_shape(OP, "query heads, by key heads", &[heads], &[heads / kv_heads.max(1) * kv_heads])?;
    let d = q.cols() / heads.max(1);
    expect_shape(OP, "q", &[lens.iter().sum(), heads * d], &q.shape())?;
    expect_shape(OP, "k", &[q.rows(), kv_heads * d], &k.shape())?;
    expect_shape(OP, "v", &k.shape(), &v.shape())?;
    expect_shape(OP, "o", &q.shape(), &o.shape())?;
    if o.on_gpu() {
        return cuda::forward(OP, q, k, v, layout, o);
    }
    dispatch_real!(OP, o.dtype(), T => {
        cpu::forward::<T>(q.cpu(OP)?, k.cpu(OP)?, v.cpu(OP)?, layout, o.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;
    const D: usize = 8;
    const SCALE: f64 = 0.4;

    fn run(lens: &[usize], [q, k, v]: [&Tensor; 3]) -> Tensor {
        let mut o = q.empty_like(q.shape()).unwrap();
        let layout = Layout { lens, heads: HEADS, kv_heads: KV_HEADS, scale: SCALE };
        forward(q.view(), k.view(), v.view(), layout, o.view_mut()).unwrap();
        o
    }

    fn inputs(rows: usize, dtype: DType) -> [Tensor; 3] {
        [(HEADS, 1), (KV_HEADS, 2), (KV_HEADS, 3)]
            .map(|(heads, seed)| randn(DType::F64, &[rows, heads * D], seed).to_dtype(dtype).unwrap())
    }

    /// One query at a time, from the definition.
    fn naive(lens: &[usize], [q, k, v]: [&Tensor; 3]) -> Vec<f64> {
        let [q, k, v] = [q, k, v].map(|t| t.to_f64().unwrap());
        let mut o = vec![0.0; q.len()];
        let mut first = 0;
        for &len in lens {
            for (i, h) in (0..len).flat_map(|i| (0..HEADS).map(move |h| (i, h))) {
                let q = &q[((first + i) * HEADS + h) * D..][..D];
                let at = |j: usize| ((first + j) * KV_HEADS + h * KV_HEADS / HEADS) * D;
                let scores: Vec<f64> =
                    (0..=i).map(|j| (0..D).map(|c| q[c] * k[at(j) + c]).sum::<f64>() * SCALE).collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    for c in 0..D {
                        o[((first + i) * HEADS + h) * D + c] += s.exp() / total * v[at(j) + c];
                    }
                }
            }
            first += len;
        }
        o
    }

    /// Lengths around the block size, an empty sequence, and a single token.
    #[test]
    fn agrees_with_the_definition() {
        let lens = [70, 1, 0, 64, 131];
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 3e-6)] {
            let [q, k, v] = inputs(lens.iter().sum(), dtype);
            let (o, expected) = (run(&lens, [&q, &k, &v]), naive(&lens, [&q, &k, &v]));
            let worst =
                o.to_f64().unwrap().iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < tolerance, "{dtype:?}: {worst:e}");
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let [mut q, k, v] = inputs(5, DType::F32);
        q.host_mut::<f32>().unwrap().iter_mut().for_each(|x| *x *= 1e3);
        assert!(run(&[5], [&q, &k, &v]).to_f32().unwrap().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn refuses_lengths_that_do_not_add_up() {
        let [q, k, v] = inputs(5, DType::F32);
        let mut o = q.empty_like(q.shape()).unwrap();
        let layout = Layout { lens: &[2, 2], heads: HEADS, kv_heads: KV_HEADS, scale: SCALE };
        assert!(forward(q.view(), k.view(), v.view(), layout, o.view_mut()).is_err());
        let layout = Layout { lens: &[5], heads: HEADS, kv_heads: 4, scale: SCALE };
        assert!(forward(q.view(), k.view(), v.view(), layout, o.view_mut()).is_err());
    }

    /// Sequences of several tiles of queries and keys, an empty one and a single token; heads of one share of
    /// channels and of several, whole or not; q, k and v side by side as parts of one matrix.
    #[test]
    fn gpus_agree() {
        for (d, before) in [(8, 0), (72, 1), (33, 0)] {
            against_cpu("causal attention", |on| {
                let (lens, heads, kv_heads) = ([37, 1, 0, 19], 4, 2);
                let (rows, q_end) = (lens.iter().sum(), before + heads * d);
                let all = on.randn(&[rows, q_end + 2 * kv_heads * d], 1);
                let mut o = on.empty(&[rows, heads * d]);
                let q = all.view().columns(before..q_end);
                let k = all.view().columns(q_end..q_end + kv_heads * d);
                let v = all.view().columns(q_end + kv_heads * d..q_end + 2 * kv_heads * d);
                let layout = Layout { lens: &lens, heads, kv_heads, scale: 0.3 };
                forward(q, k, v, layout, o.view_mut()).unwrap();
                vec![("o", o)]
            });
        }
    }
}
