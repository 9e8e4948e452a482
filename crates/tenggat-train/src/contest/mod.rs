//! The timed contest: what its container is given and must leave behind, its rules of scoring, and the score
//! of a LoRA by them.
//!
//! Source of the rules: rayonlabs/G.O.D, `trainer/` and `validator/evaluation/`.

mod archive;
pub mod container;
mod error;
pub mod evaluate;
mod kind;
mod pictures;
pub mod rules;
mod split;
pub mod work;

pub use archive::{Unpacked, unpack};
pub use error::{Error, Result};
pub use kind::{ModelType, Part};
pub use pictures::test_pictures;
pub use split::{HoldOut, Split, split};
