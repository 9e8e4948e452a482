//! Matrix products through cuBLASLt.
//!
//! The library's matrices are column-major, ours row-major: it computes `Cᵀ = op(B)ᵀ · op(A)ᵀ`, so our B is
//! its A and the other way round, and a row-major matrix is its own transpose there.
//!
//! Operands of 8-bit floats come with a scale per row of A and per column of B (`OUTER_VEC_32F`, which the
//! documentation promises for compute capability 9.0 from cuBLAS 12.9 on), or without scales, which the
//! caller then applies. What a device has is asked of the library itself.
//!
//! The library guesses which of its ways of computing a product is the fastest. Its first guess is taken,
//! until a large shape has come so often that the best guesses are timed ([`timing`]) and the fastest is
//! kept. Ways differ in the order of sums, so that results may differ in their last bits from one process to
//! the next. What was captured keeps the way it had.
//!
//! These products are checked against headers and documentation alone; none has run on a GPU yet, nor was one
//! timed.

mod description;
mod fallback;
mod handle;
mod product;
mod timing;

pub use fallback::MODULE as PRODUCT_MODULE;
pub(crate) use fallback::launch as fallback;
pub(crate) use handle::Blas;
pub use product::{Batch, Epilogue, Factor, Product};
