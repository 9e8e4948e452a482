//! Scaled dot-product attention through cuDNN's graph API.
//!
//! A pass is described as a graph of operations on tensors (`operations.rs`, `tensor.rs`): the forward pass
//! is one operation (`forward.rs`), the backward pass 24 that cuDNN recognises as one kernel (`backward.rs`
//! has their table). cuDNN chooses an engine for the graph and compiles it into a plan (`plan.rs`), which
//! takes about a second and is therefore kept, also as a file. Running a plan needs the addresses of the
//! tensors and nothing else.
//!
//! Formulas are those of `attention`, the op. Values are bf16 `[b, s, h, d]` with strides of their own
//! for Q, K and V; sums and softmax are f32. Valid keys and queries are prefixes of a sample. Speed, rounding
//! and what the kernels leave in rows past the length are unmeasured.

mod backward;
mod descriptor;
mod error;
mod forward;
mod handle;
mod operands;
mod operations;
mod plan;
mod shape;
mod target;
mod tensor;
#[cfg(test)]
mod tests;
mod valid;

pub use error::{Error, Result};
pub use handle::Dnn;
pub use operands::{Backward, Forward};
pub use plan::Pass;
pub use shape::{Shape, Strides};
