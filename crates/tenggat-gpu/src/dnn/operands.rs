//! Where the tensors of a pass are.

use super::tensor::Operand;

/// Device addresses of the forward pass, each a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Output, written.
    pub o: u64,
    /// Log-sum-exp of the scaled scores, f32 `[b, h, s]`, written.
    pub stats: u64,
    /// Valid keys of each sample, i32 `[b]`: the first so many tokens.
    pub key_lengths: u64,
    /// Valid queries of each sample, i32 `[b]`.
    pub query_lengths: u64,
}

impl Forward {
    pub(super) fn memory(&self) -> [(Operand, u64); 7] {
        [
            (Operand::Q, self.q),
            (Operand::K, self.k),
            (Operand::V, self.v),
            (Operand::O, self.o),
            (Operand::Stats, self.stats),
            (Operand::KeyLengths, self.key_lengths),
            (Operand::QueryLengths, self.query_lengths),
        ]
    }
}

/// Device addresses of the backward pass, each a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// What the forward pass read and wrote.
    pub saved: Forward,
    /// Gradient of the output.
    pub d_o: u64,
    /// Gradient of the queries, written.
    pub dq: u64,
    /// Gradient of the keys, written.
    pub dk: u64,
    /// Gradient of the values, written.
    pub dv: u64,
}

impl Backward {
    pub(super) fn memory(&self, [row_sums, accumulator]: [u64; 2]) -> [(Operand, u64); 13] {
        let [q, k, v, o, stats, key_lengths, query_lengths] = self.saved.memory();
        [
            q,
            k,
            v,
            o,
            stats,
            key_lengths,
            query_lengths,
            (Operand::DO, self.d_o),
            (Operand::DQ, self.dq),
            (Operand::DK, self.dk),
            (Operand::DV, self.dv),
            (Operand::RowSums, row_sums),
            (Operand::Accumulator, accumulator),
        ]
    }
}
