//! What can go wrong between here and cuDNN.

use std::ffi::CStr;

use cudarc::cudnn::sys;

use super::shape::Shape;

/// Result of a call into cuDNN.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Attention that cuDNN could not plan or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file of the library could be loaded.
    #[error(
        "cuDNN not found: no libcudnn.so.9 on the library path; it comes with `pip install nvidia-cudnn-cu13`"
    )]
    Missing,
    /// The library is older than what attention needs.
    #[error("cuDNN {}: attention needs {} or newer", readable(*.found), readable(*.needed))]
    Version {
        /// Version of the library, `10000 · major + 100 · minor + patch`.
        found: usize,
        /// Oldest version that does.
        needed: usize,
    },
    /// A call that cuDNN refused.
    #[error("cuDNN: {what}: {status:?}: {message}")]
    Status {
        /// What was being built or done.
        what: String,
        /// What the call returned.
        status: sys::cudnnStatus_t,
        /// Text of `cudnnGetLastErrorString`.
        message: String,
    },
    /// A call that the driver refused.
    #[error("CUDA driver: {what}: {status:?}")]
    Driver {
        /// What was asked for.
        what: &'static str,
        /// What the call returned.
        status: cudarc::driver::sys::CUresult,
    },
    /// No engine takes the operations on this device.
    #[error("cuDNN: {what}: none of {tried} engines takes it{}", .last.as_deref().map_or(String::new(),
        |last| format!("; the last one: {last}")))]
    Engines {
        /// Which graph.
        what: String,
        /// Engines that cuDNN proposed.
        tried: usize,
        /// Why the last of them refused.
        last: Option<Box<Error>>,
    },
    /// A pass that failed before, of which cuDNN is not asked again.
    #[error("{0}")]
    Refused(String),
    /// A shape that attention is not defined for, or that cuDNN cannot read.
    #[error("attention {shape:?}: {reason}")]
    Shape {
        /// What was asked for.
        shape: Shape,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A device address that the kernels cannot read.
    #[error("attention: address {address:#x} of {operand} is not a multiple of {alignment}")]
    Address {
        /// Which tensor.
        operand: String,
        /// Where it lies.
        address: u64,
        /// What its address must be a multiple of.
        alignment: u64,
    },
}

impl Error {
    /// The error of a call that returned `status`, with the library's own words.
    ///
    /// To be called on the thread of the call, before the next one: the library keeps its last message per
    /// thread.
    pub(super) fn status(what: impl Into<String>, status: sys::cudnnStatus_t) -> Self {
        let mut text = [0u8; 1024];
        // SAFETY: the buffer has the length that is passed, and the library ends its text with a NUL within
        // it.
        unsafe { sys::cudnnGetLastErrorString(text.as_mut_ptr().cast(), text.len()) };
        let message = CStr::from_bytes_until_nul(&text).map_or_else(|_| "".into(), CStr::to_string_lossy);
        Error::Status { what: what.into(), status, message: message.trim().to_owned() }
    }
}

/// A version as people write it. Before 9 a thousand made a major version, since then it is ten thousand.
fn readable(version: usize) -> String {
    let major = if version < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}", version / major, version % major / 100)
}

/// An error with the text that `what` gives, unless the status is success.
pub(super) fn check(status: sys::cudnnStatus_t, what: impl FnOnce() -> String) -> Result<()> {
    match status {
        sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS => Ok(()),
        status => Err(Error::status(what(), status)),
    }
}
