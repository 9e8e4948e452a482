#![doc = include_str!("../README.md")]

mod backend;
mod blas;
mod buffer;
mod compile;
mod copier;
mod cuda;
pub mod dnn;
mod dtype;
mod emulated;
mod error;
pub mod float8;
mod fork;
mod gpu;
mod graph;
mod kernel;
mod library;
mod memory;
mod options;
mod prefetch;
mod staging;
mod streams;

pub use blas::{Batch, Epilogue, Factor, PRODUCT_MODULE, Product};
pub use buffer::Buffer;
pub use compile::{ARCHITECTURES, Compiled, compile_all};
pub use copier::Source;
pub use cuda::Cuda;
pub use dtype::DType;
pub use emulated::Emulation;
pub use error::{Error, Result};
pub use fork::Fork;
pub use graph::{Capture, Graph};
pub use kernel::{Grid, Kernel, Mat, Module, int, width};
pub use library::{driver_is_there, preload};
pub use options::{Options, Without};
pub use prefetch::Prefetch;
