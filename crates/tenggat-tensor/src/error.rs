//! What can go wrong in a tensor operation.

use crate::DType;

/// Result of a tensor operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two operands whose shapes do not fit together, or a shape that does not fit its data.
    #[error("{op}: {what}: expected {expected:?}, got {got:?}")]
    Shape {
        /// Operation that refused.
        op: &'static str,
        /// Which operand or axis.
        what: &'static str,
        /// What the operation needs.
        expected: Vec<usize>,
        /// What it was given.
        got: Vec<usize>,
    },
    /// An element type that the operation has no kernel for.
    #[error("{op}: no kernel for {dtype:?} on {device}")]
    DType {
        /// Operation that refused.
        op: &'static str,
        /// The type that was given.
        dtype: DType,
        /// Name of the device.
        device: &'static str,
    },
    /// An operand that is not where the others are.
    #[error("{op}: an operand is in {got}, expected it in {expected}")]
    Place {
        /// Operation that refused.
        op: &'static str,
        /// Where the operation works.
        expected: &'static str,
        /// Where the operand is.
        got: &'static str,
    },
    /// A GPU, or one of its libraries, is missing or failed.
    #[error("{0}")]
    Cuda(String),
    /// A GPU has no room left.
    #[error("out of GPU memory: {bytes} more bytes are needed; {free} of {total} are free")]
    OutOfMemory {
        /// Bytes of the tensor that does not fit.
        bytes: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes that the GPU has.
        total: usize,
    },
}

impl From<tenggat_gpu::Error> for Error {
    fn from(error: tenggat_gpu::Error) -> Self {
        match error {
            tenggat_gpu::Error::Failed(why) => Error::Cuda(why),
            tenggat_gpu::Error::DType { op, dtype } => Error::DType { op, dtype, device: "cuda" },
            tenggat_gpu::Error::OutOfMemory { bytes, free, total } => {
                Error::OutOfMemory { bytes, free, total }
            }
        }
    }
}

impl Error {
    /// A shape mismatch.
    pub fn shape(op: &'static str, what: &'static str, expected: &[usize], got: &[usize]) -> Self {
        Error::Shape { op, what, expected: expected.to_vec(), got: got.to_vec() }
    }
}

/// Refuses unless `expected == got`.
pub(crate) fn expect_shape(
    op: &'static str,
    what: &'static str,
    expected: &[usize],
    got: &[usize],
) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::shape(op, what, expected, got)) }
}

/// Refuses element types other than `expected`, the one that a GPU kernel is chosen by.
pub(crate) fn expect_dtypes(op: &'static str, expected: DType, got: &[DType]) -> Result<()> {
    match got.iter().find(|&&dtype| dtype != expected) {
        Some(&dtype) => Err(Error::DType { op, dtype, device: "cuda" }),
        None => Ok(()),
    }
}
