//! Weights as they lie on disk: one safetensors file or several with an index, memory-mapped; and the frozen
//! matrices made from them, dense or quantised.

mod checkpoint;
mod folder;
mod json;
mod matrix;
mod quantised_file;
mod random;
mod stored;

pub use checkpoint::{Checkpoint, Modules, Quantisation};
pub use folder::{Weights, shard_names};
pub(crate) use json::dimension;
pub use json::read_json;
pub use matrix::{Matrix, Part, Source};
pub use quantised_file::{Progress, QuantisedFile};
pub use random::Random;
pub use stored::Stored;
