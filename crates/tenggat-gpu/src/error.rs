//! What can go wrong between here and a device.

use crate::DType;

/// Result of a call to a device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A call to a device that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device, the driver or a library is missing, refused or failed.
    #[error("{0}")]
    Failed(String),
    /// An element type that the operation has no kernel for.
    #[error("{op}: no kernel for {dtype:?} on cuda")]
    DType {
        /// Operation that refused.
        op: &'static str,
        /// The type that was given.
        dtype: DType,
    },
    /// The device has no memory left.
    #[error("out of GPU memory: {bytes} more bytes are needed; {free} of {total} are free")]
    OutOfMemory {
        /// Bytes that do not fit.
        bytes: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes that the device has.
        total: usize,
    },
}

/// A failure that the device or one of its libraries reported.
pub(crate) fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Failed(format!("{what}: {error}"))
}
