//! What is trained on: images and captions, their encodings and caches, and batches of them.

pub(crate) mod batch;
pub mod cache;
pub(crate) mod encoding;
mod error;
pub mod pictures;

pub use error::{Error, Result};
