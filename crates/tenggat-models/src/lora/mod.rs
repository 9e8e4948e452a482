//! LoRA adapters of a transformer: where each matrix lies in one flat parameter buffer.
//!
//! A module computes `y = W·x + b + scale · B·(A·x)` (Hu et al., arXiv:2106.09685). The Kronecker variant
//! (LoKr, arXiv:2309.14859) computes `y = W·x + b + scale · (W₁ ⊗ W₂)·x`, and its two matrices take the
//! places of A and B.
//!
//! All matrices of an adapter share one buffer, so that clipping, the optimiser and averaging are each one
//! pass; gradients lie in a second buffer of the same layout. Modules that share an input (q, k and v of a
//! stream) stand side by side, so that their A matrices are one product.

mod kronecker;
mod layout;
mod low_rank;
mod parameters;
mod pass;
#[cfg(test)]
mod tests;

pub use layout::{Candidate, Group, Kind, Layout, Matrix, Module, factors};
pub(crate) use parameters::Rounded;
pub use parameters::{Gradients, Lora};
pub(crate) use pass::Adapter;
