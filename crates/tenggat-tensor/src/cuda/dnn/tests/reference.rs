//! What the CPU makes of an attention, to hold other results against.

use super::super::Shape;
use crate::ops::attention;
use crate::ops::check::randn;
use crate::{DType, Device, Tensor};

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

impl Reference {
    /// Random inputs of a type, and what the CPU makes of them in f64.
    pub fn new(shape: Shape, key_lens: &[usize], query_lens: &[usize], dtype: DType) -> Self {
        let Shape { batch, heads, tokens, head_dim, .. } = shape;
        let dims = [batch * tokens, heads * head_dim];
        let mut inputs = [1, 2, 3, 4].map(|seed| {
            let rounded = randn(DType::F64, &dims, seed).to_dtype(dtype).unwrap();
            rounded.to_f64().unwrap()
        });
        for (sample, &length) in inputs[3].chunks_mut(tokens * dims[1]).zip(query_lens) {
            sample[length * dims[1]..].fill(0.0);
        }
        let device = Device::cpu();
        let tensor = |values: &Vec<f64>| Tensor::from_f64(&device, DType::F64, values, &dims).unwrap();
        let [q, k, v, d_o] = inputs.each_ref().map(tensor);
        let [mut o, mut dq, mut dk, mut dv] = [(); 4].map(|()| q.empty_like(&dims).unwrap());
        let mut lse = q.empty_like(&[dims[0], heads]).unwrap();
        let scale = 1.0 / (head_dim as f64).sqrt();
        let layout = attention::Layout { key_lens, device_lens: None, tokens, heads, scale, narrow: false };
        attention::forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut()).unwrap();
        let saved = attention::Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: lse.view() };
        let [into_q, into_k, into_v] = [&mut dq, &mut dk, &mut dv].map(Tensor::view_mut);
        attention::backward(saved, layout, d_o.view(), into_q, into_k, into_v).unwrap();
        let outputs = [o, lse, dq, dk, dv].map(|tensor| tensor.to_f64().unwrap());
        Reference {
            shape,
            scale,
            key_lens: key_lens.to_vec(),
            query_lens: query_lens.to_vec(),
            inputs,
            outputs,
        }
    }

    /// Prints the largest difference of a result from the CPU's, as a part of the largest value, and refuses
    /// more than `tolerance`.
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
