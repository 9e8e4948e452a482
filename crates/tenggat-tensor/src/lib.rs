//! Tensors and the closed set of ops that a Qwen-Image training step is made of.
//!
//! A [`Tensor`] is an owned, contiguous, row-major array on one [`Device`]; a [`View`] borrows it as a matrix
//! of rows with a row stride. Ops ([`ops`]) take views in and write views out; none allocates its result.
//! Every op has its contract and tests in `ops/<name>/mod.rs`, and one implementation per device beside it.
//!
//! ```
//! use tenggat_tensor::{DType, Device, Tensor, ops::gemm};
//! let device = Device::cpu();
//! let a = Tensor::from_f64(&device, DType::F32, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
//! let mut c = Tensor::zeros(&device, DType::F32, &[2, 2])?;
//! gemm::nn(1.0, a.view(), a.view(), 0.0, c.view_mut())?;
//! assert_eq!(c.to_f32()?, [7.0, 10.0, 15.0, 22.0]);
//! # Ok::<(), tenggat_tensor::Error>(())
//! ```
//!
//! Numbers: `F32` is the working precision on the CPU; `F64` runs the same ops for checking gradients; `BF16`
//! is a storage type of frozen weights.

mod cpu;
mod device;
mod error;
pub mod ops;
pub mod random;
mod storage;
mod tensor;

pub use cpu::{Element, Real};
pub use device::Device;
pub use error::{Error, Result};
pub use tenggat_gpu::DType;
pub use tensor::{Tensor, View, ViewMut};
