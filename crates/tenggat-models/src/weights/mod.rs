//! Weights as they lie on disk: one safetensors file or several with an index, memory-mapped.

mod folder;
mod json;

pub use folder::{Weights, shard_names};
pub use json::read_json;
