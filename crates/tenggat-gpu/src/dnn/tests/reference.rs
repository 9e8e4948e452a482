//! Attention by its formula, in f64 on the host, to hold other results against.

use half::bf16;

use super::super::Shape;
use crate::DType;

/// Lengths, inputs and results of one attention, in the order `[b, s, h, d]`.
pub(super) struct Reference {
    pub shape: Shape,
    pub scale: f64,
    pub key_lens: Vec<usize>,
    pub query_lens: Vec<usize>,
    /// q, k, v, dO; dO is zero past the query lengths.
    pub inputs: [Vec<f64>; 4],
    /// o, log-sum-exp, dq, dk, dv.
    outputs: [Vec<f64>; 5],
}

/// Standard normal numbers: splitmix64, then Box and Muller.
fn randn(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len)
        .map(|_| {
            let (radius, angle) = (1.0 - uniform(), uniform());
            (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
        })
        .collect()
}

impl Reference {
    /// Random inputs of a type, bf16 or f64, and their attention in f64.
    pub fn new(shape: Shape, key_lens: &[usize], query_lens: &[usize], dtype: DType) -> Self {
        let row = shape.heads * shape.head_dim;
        let len = shape.batch * shape.tokens * row;
        let round = |x: f64| if dtype == DType::BF16 { bf16::from_f64(x).to_f64() } else { x };
        let inputs = [1, 2, 3, 4].map(|seed| randn(len, seed).into_iter().map(round).collect());
        Self::of(shape, key_lens, query_lens, inputs)
    }

    /// Attention of given inputs.
    pub fn of(shape: Shape, key_lens: &[usize], query_lens: &[usize], mut inputs: [Vec<f64>; 4]) -> Self {
        let Shape { batch, heads, tokens, head_dim, .. } = shape;
        let row = heads * head_dim;
        for (sample, &length) in inputs[3].chunks_mut(tokens * row).zip(query_lens) {
            sample[length * row..].fill(0.0);
        }
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut outputs = [row, heads, row, row, row].map(|width| vec![0.0; batch * tokens * width]);
        for sample in 0..batch {
            for head in 0..heads {
                let at = |token: usize| (sample * tokens + token) * row + head * head_dim;
                let keys = (0..key_lens[sample]).map(at).collect::<Vec<_>>();
                (0..tokens).for_each(|query| {
                    let lse = &mut outputs[1][(sample * tokens + query) * heads + head];
                    *lse = log_sum_exp(&scores(&inputs, at(query), &keys, head_dim, scale));
                    let lse = *lse;
                    add_query(&inputs, &mut outputs, at(query), &keys, head_dim, (scale, lse));
                });
            }
        }
        let (key_lens, query_lens) = (key_lens.to_vec(), query_lens.to_vec());
        Reference { shape, scale, key_lens, query_lens, inputs, outputs }
    }

    /// Prints the largest difference of a result from the formula's, as a part of the largest value, and
    /// refuses more than `tolerance`.
    pub fn compare(&self, output: usize, got: &[f64], tolerance: f64) {
        let (name, expected) = (["o", "lse", "dq", "dk", "dv"][output], &self.outputs[output]);
        assert_eq!(got.len(), expected.len());
        let row = got.len() / self.shape.batch / self.shape.tokens;
        // Keys past their length get zeros; rows of queries past theirs are not defined.
        let counts = |token: usize| {
            let query = token % self.shape.tokens < self.query_lens[token / self.shape.tokens];
            query || output >= 2
        };
        let scale = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        // A NaN stays.
        let largest = (0..got.len())
            .filter(|i| counts(i / row))
            .map(|i| (got[i] - expected[i]).abs() / scale)
            .fold(0.0, |largest: f64, x| if x <= largest { largest } else { x });
        eprintln!("{name}: {largest:.2e}");
        assert!(largest <= tolerance, "{name}: off by {largest}");
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Scaled scores of a query with each key.
fn scores([q, k, ..]: &[Vec<f64>; 4], query: usize, keys: &[usize], d: usize, scale: f64) -> Vec<f64> {
    keys.iter().map(|&key| scale * dot(&q[query..query + d], &k[key..key + d])).collect()
}

fn log_sum_exp(scores: &[f64]) -> f64 {
    let largest = scores.iter().fold(f64::NEG_INFINITY, |largest, &s| largest.max(s));
    largest + scores.iter().map(|s| (s - largest).exp()).sum::<f64>().ln()
}

/// Output and gradients of one query: with `p = softmax`, `dv += pᵀ·dO`, `ds = p ∘ (dO·vᵀ − dO·o)`, `dq =
/// scale·ds·k`, `dk += scale·dsᵀ·q`.
fn add_query(
    inputs: &[Vec<f64>; 4],
    [o, _, dq, dk, dv]: &mut [Vec<f64>; 5],
    query: usize,
    keys: &[usize],
    d: usize,
    (scale, lse): (f64, f64),
) {
    let [q, k, v, d_o] = inputs;
    let p: Vec<f64> =
        scores(inputs, query, keys, d, scale).into_iter().map(|score| (score - lse).exp()).collect();
    for (&key, p) in keys.iter().zip(&p) {
        (0..d).for_each(|i| o[query + i] += p * v[key + i]);
    }
    let d_o = &d_o[query..query + d];
    let mean = dot(d_o, &o[query..query + d]);
    for (&key, p) in keys.iter().zip(&p) {
        let ds = scale * p * (dot(d_o, &v[key..key + d]) - mean);
        for i in 0..d {
            dv[key + i] += p * d_o[i];
            dq[query + i] += ds * k[key + i];
            dk[key + i] += ds * q[query + i];
        }
    }
}
