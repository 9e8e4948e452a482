//! Element types.

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit float: activations and trained weights on the CPU.
    F32,
    /// 64-bit float: gradient checks.
    F64,
    /// bfloat16: stored weights.
    BF16,
    /// Bytes: codes of quantised optimiser states.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
            DType::BF16 => 2,
            DType::U8 => 1,
        }
    }
}
