//! Element types.

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit float: activations and trained weights on the CPU.
    F32,
    /// 64-bit float: gradient checks.
    F64,
    /// bfloat16: stored weights; activations on a GPU.
    BF16,
    /// Bytes: codes of quantised optimiser states.
    U8,
}

impl DType {
    /// Type of sums and statistics of values of this type.
    pub const fn wide(self) -> DType {
        match self {
            DType::BF16 => DType::F32,
            wide => wide,
        }
    }

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
