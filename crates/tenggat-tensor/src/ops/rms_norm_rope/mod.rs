//! RMS norm of every query and key head, then rotary position embedding, written into the joint sequence.
//!
//! For a head `x` of `d` channels: `ρ = 1/√(mean(x²) + eps)`, `n = w · x·ρ`, and each adjacent pair is
//! turned: `y₀ = n₀ cos − n₁ sin`, `y₁ = n₀ sin + n₁ cos`. Values are copied unchanged.
//!
//! Backward turns back (`dn₀ = dy₀ cos + dy₁ sin`, `dn₁ = dy₁ cos − dy₀ sin`), then with `g = dn · w` and `h
//! = x·ρ`: `dx = ρ · (g − h · mean(g·h))`. Saved: q|k|v and ρ.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{Result, View, ViewMut};

/// Added to the mean square; the value of every query and key norm of Qwen-Image.
pub const EPS: f64 = 1e-6;

/// Where one stream's tokens stand in the joint sequence, and how its channels are cut into heads.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Tokens of this stream per sample.
    pub tokens: usize,
    /// Tokens of the joint sequence per sample.
    pub joint_tokens: usize,
    /// First token of this stream in the joint sequence.
    pub at: usize,
    /// Attention heads.
    pub heads: usize,
}

impl Segment {
    fn check_shapes(
        &self,
        op: &'static str,
        qkv: [usize; 2],
        joint: [usize; 2],
        rope: [usize; 2],
    ) -> Result<()> {
        let inner = joint[1];
        expect_shape(op, "q|k|v columns", &[3 * inner], &[qkv[1]])?;
        let batch = qkv[0] / self.tokens.max(1);
        expect_shape(op, "q|k|v rows", &[batch * self.tokens], &[qkv[0]])?;
        expect_shape(op, "joint rows", &[batch * self.joint_tokens], &[joint[0]])?;
        expect_shape(op, "rope table", &[self.tokens, inner / self.heads], &rope)
    }
}

/// Norms and turns q and k, and copies v, of one stream into the joint buffers.
///
/// qkv: `[b·tokens, 3·h·d]`; weights: `[2, d]` (query row, key row); rope: `[tokens, d]` = d/2 cosines | d/2
/// sines; joint q, k, v: `[b·joint_tokens, h·d]`, of which this stream's rows are written; rstd: `[b·tokens,
/// 2·h]`.
///
/// # Errors
/// Shapes do not fit, or types differ.
#[allow(clippy::too_many_arguments)] // one fused kernel: q, k and v leave in one pass
pub fn forward(
    qkv: View<'_>,
    weights: View<'_>,
    rope: View<'_>,
    segment: Segment,
    q: ViewMut<'_>,
    k: ViewMut<'_>,
    v: ViewMut<'_>,
    rstd: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm_rope forward";
    segment.check_shapes(OP, qkv.shape(), q.shape(), rope.shape())?;
    expect_shape(OP, "k", &q.shape(), &k.shape())?;
    expect_shape(OP, "v", &q.shape(), &v.shape())?;
    expect_shape(OP, "weights", &[2, rope.cols()], &weights.shape())?;
    expect_shape(OP, "rstd", &[qkv.rows(), 2 * segment.heads], &rstd.shape())?;
    if q.on_gpu() {
        return cuda::forward(OP, [qkv, weights, rope], segment, [q, k, v], rstd);
    }
    dispatch_real!(OP, q.dtype(), T => {
        let joint = [q.cpu::<T>(OP)?, k.cpu(OP)?, v.cpu(OP)?];
        cpu::forward(qkv.cpu(OP)?, weights.cpu(OP)?, rope.cpu(OP)?, segment, joint, rstd.cpu(OP)?);
        Ok(())
    })
}

/// Writes the gradient of this stream's q|k|v (`[b·tokens, 3·h·d]`) from the joint gradients
/// (`[b·joint_tokens, h·d]`).
///
/// # Errors
/// Shapes do not fit, or types differ.
#[allow(clippy::too_many_arguments)] // one fused kernel: q, k and v come in one pass
pub fn backward(
    qkv: View<'_>,
    weights: View<'_>,
    rope: View<'_>,
    rstd: View<'_>,
    segment: Segment,
    dq: View<'_>,
    dk: View<'_>,
    dv: View<'_>,
    dqkv: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm_rope backward";
    segment.check_shapes(OP, qkv.shape(), dq.shape(), rope.shape())?;
    expect_shape(OP, "dk", &dq.shape(), &dk.shape())?;
    expect_shape(OP, "dv", &dq.shape(), &dv.shape())?;
    expect_shape(OP, "dqkv", &qkv.shape(), &dqkv.shape())?;
    if dqkv.on_gpu() {
        return cuda::backward(OP, [qkv, weights, rope, rstd], segment, [dq, dk, dv], dqkv);
    }
    dispatch_real!(OP, dqkv.dtype(), T => {
        let joint = [dq.cpu::<T>(OP)?, dk.cpu(OP)?, dv.cpu(OP)?];
        let tables = (weights.cpu(OP)?, rope.cpu(OP)?, rstd.cpu(OP)?);
        cpu::backward(qkv.cpu(OP)?, tables, segment, joint, dqkv.cpu(OP)?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::{DType, Tensor};

    const S: Segment = Segment { tokens: 3, joint_tokens: 5, at: 1, heads: 2 };
    const B: usize = 2;
    const D: usize = 4;
    const INNER: usize = 8;

    struct Case {
        weights: Tensor,
        rope: Tensor,
    }

    impl Case {
        fn new(dtype: DType) -> Self {
            let angles = randn(DType::F64, &[S.tokens, D / 2], 7).to_f64().unwrap();
            let table: Vec<f64> = angles
                .chunks(D / 2)
                .flat_map(|row| {
                    row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())).collect::<Vec<_>>()
                })
                .collect();
            let weights = randn(dtype, &[2, D], 8);
            Case {
                rope: Tensor::from_f64(&weights.device(), dtype, &table, &[S.tokens, D]).unwrap(),
                weights,
            }
        }

        fn forward(&self, qkv: &Tensor) -> ([Tensor; 3], Tensor) {
            let joint = || Tensor::zeros(&qkv.device(), qkv.dtype(), &[B * S.joint_tokens, INNER]).unwrap();
            let ([mut q, mut k, mut v], mut rstd) =
                ([joint(), joint(), joint()], qkv.empty_like(&[B * S.tokens, 2 * S.heads]).unwrap());
            forward(
                qkv.view(),
                self.weights.view(),
                self.rope.view(),
                S,
                q.view_mut(),
                k.view_mut(),
                v.view_mut(),
                rstd.view_mut(),
            )
            .unwrap();
            ([q, k, v], rstd)
        }
    }

    #[test]
    fn norms_turns_and_places() {
        let case = Case::new(DType::F64);
        let qkv = randn(DType::F64, &[B * S.tokens, 3 * INNER], 1);
        let ([q, k, v], _) = case.forward(&qkv);
        let (x, w, rope) =
            (qkv.to_f64().unwrap(), case.weights.to_f64().unwrap(), case.rope.to_f64().unwrap());
        let outputs = [q, k, v].map(|t| t.to_f64().unwrap());
        for (b, t, h) in
            (0..B).flat_map(|b| (0..S.tokens).flat_map(move |t| (0..S.heads).map(move |h| (b, t, h))))
        {
            for part in 0..3 {
                let head = &x[(b * S.tokens + t) * 3 * INNER + part * INNER + h * D..][..D];
                let out = &outputs[part][(b * S.joint_tokens + S.at + t) * INNER + h * D..][..D];
                if part == 2 {
                    assert_eq!(head, out);
                    continue;
                }
                let rms = (head.iter().map(|v| v * v).sum::<f64>() / D as f64 + EPS).sqrt();
                for pair in 0..D / 2 {
                    let n = [0, 1].map(|i| head[2 * pair + i] / rms * w[part * D + 2 * pair + i]);
                    let (cos, sin) = (rope[t * D + pair], rope[t * D + D / 2 + pair]);
                    assert!((out[2 * pair] - (n[0] * cos - n[1] * sin)).abs() < 1e-12);
                    assert!((out[2 * pair + 1] - (n[0] * sin + n[1] * cos)).abs() < 1e-12);
                }
            }
        }
        // Rows of the other stream stay untouched.
        assert!(outputs.iter().all(|o| o[..INNER].iter().chain(&o[4 * INNER..5 * INNER]).all(|&v| v == 0.0)));
    }

    #[test]
    fn backward_is_the_derivative() {
        let case = Case::new(DType::F64);
        let qkv = randn(DType::F64, &[B * S.tokens, 3 * INNER], 1);
        let d = [2, 3, 4].map(|seed| randn(DType::F64, &[B * S.joint_tokens, INNER], seed));
        let (_, rstd) = case.forward(&qkv);
        let mut dqkv = qkv.empty_like(qkv.shape()).unwrap();
        backward(
            qkv.view(),
            case.weights.view(),
            case.rope.view(),
            rstd.view(),
            S,
            d[0].view(),
            d[1].view(),
            d[2].view(),
            dqkv.view_mut(),
        )
        .unwrap();
        let loss = |qkv: &Tensor| case.forward(qkv).0.iter().zip(&d).map(|(o, d)| dot(o, d)).sum();
        finite_differences("dqkv", &qkv, &dqkv, loss);
    }

    #[test]
    fn f32_agrees_with_f64() {
        let qkv = randn(DType::F64, &[B * S.tokens, 3 * INNER], 1);
        let single = Case::new(DType::F32).forward(&qkv.to_dtype(DType::F32).unwrap()).0;
        for (a, b) in single.iter().zip(Case::new(DType::F64).forward(&qkv).0) {
            assert_close("rms_norm_rope", a, &b, 2e-6);
        }
    }

    #[test]
    fn gpus_agree() {
        // Packs of 16 bytes and pairs; heads that a block takes at once, and in turns of which the last is
        // not full.
        for (heads, d) in [(3, 128), (2, 6), (5, 32), (37, 128), (19, 36)] {
            against_cpu("rms norm and rope", |on| {
                let segment = Segment { tokens: 5, joint_tokens: 9, at: 2, heads };
                let (batch, inner) = (2, heads * d);
                let (rows, joint) = (batch * segment.tokens, [batch * segment.joint_tokens, inner]);
                let qkv = on.randn(&[rows, 3 * inner], 1);
                let (weights, rope) = (on.randn(&[2, d], 2), on.wide(&[segment.tokens, d], 3));
                let [mut q, mut k, mut v] = [on.randn(&joint, 4), on.randn(&joint, 5), on.randn(&joint, 6)];
                let (mut rstd, mut dqkv) = (on.empty_wide(&[rows, 2 * heads]), on.empty(&[rows, 3 * inner]));
                let to = rstd.view_mut();
                let (qm, km, vm) = (q.view_mut(), k.view_mut(), v.view_mut());
                forward(qkv.view(), weights.view(), rope.view(), segment, qm, km, vm, to).unwrap();
                let [dq, dk, dv] = [on.randn(&joint, 7), on.randn(&joint, 8), on.randn(&joint, 9)];
                backward(
                    qkv.view(),
                    weights.view(),
                    rope.view(),
                    rstd.view(),
                    segment,
                    dq.view(),
                    dk.view(),
                    dv.view(),
                    dqkv.view_mut(),
                )
                .unwrap();
                vec![("q", q), ("k", k), ("v", v), ("rstd", rstd), ("dqkv", dqkv)]
            });
        }
    }
}
