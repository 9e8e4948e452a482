//! What attention is planned for.

/// What the parts of a workspace are multiples of, in bytes.
pub(super) const PART_ALIGNMENT: usize = 256;

/// How the tokens and heads of a `[b, s, h, d]` tensor lie, in elements; `d` is contiguous, and a sample
/// follows the last token of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Strides {
    /// From a token to the next.
    pub token: usize,
    /// From a head to the next.
    pub head: usize,
}

/// Attention of one size and layout. Values are bf16.
///
/// O and dO are contiguous `[b, s, h, d]`; dQ, dK and dV lie as Q, K and V do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens per sample, padding included.
    pub tokens: usize,
    /// Channels of a head: a multiple of 8.
    pub head_dim: usize,
    /// Layout of Q.
    pub q: Strides,
    /// Layout of K.
    pub k: Strides,
    /// Layout of V.
    pub v: Strides,
}

impl Shape {
    /// Q, K and V are contiguous tensors `[b, s, h, d]`.
    pub fn separate(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Self {
        let strides = Strides { token: heads * head_dim, head: head_dim };
        Shape { batch, heads, tokens, head_dim, q: strides, k: strides, v: strides }
    }

    /// Q, K and V are slices of one tensor `[b, s, 3, h, d]`.
    #[cfg(test)]
    pub fn packed(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Self {
        let strides = Strides { token: 3 * heads * head_dim, head: head_dim };
        Shape { q: strides, k: strides, v: strides, ..Self::separate(batch, tokens, heads, head_dim) }
    }

    /// Layout of O and dO.
    pub(super) fn output(&self) -> Strides {
        Strides { token: self.heads * self.head_dim, head: self.head_dim }
    }

    /// Bytes of the row sums and of the accumulator of the backward pass, each filled up to a multiple of
    /// 256.
    pub(super) fn scratch_bytes(&self) -> [usize; 2] {
        let rows = 4 * self.batch * self.heads * self.tokens;
        [rows, rows * self.head_dim].map(|bytes| bytes.next_multiple_of(PART_ALIGNMENT))
    }
}
