#![doc = include_str!("../README.md")]

mod cpu;
mod device;
mod error;
pub mod ops;
pub mod random;
mod storage;
mod tensor;
pub mod weight;

pub use cpu::{Element, Real};
pub use device::Device;
pub use error::{Error, Result};
pub use tenggat_gpu::DType;
pub use tensor::{Tensor, View, ViewMut};
