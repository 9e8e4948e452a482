//! Host memory: element types, buffers and the pool that recycles them.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod element;
mod level;
mod matrix;
mod pool;
mod simd;

pub use element::{Element, Real};
pub(crate) use level::Level;
#[cfg(target_arch = "x86_64")]
pub(crate) use level::tiles_are_emulated;
pub(crate) use matrix::{Mat, MatMut};
pub use pool::Pool;
pub(crate) use pool::{Buffer, Storage};
pub(crate) use simd::{sum, vectorised};
