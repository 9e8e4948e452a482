//! The timed contest: its test pictures, its rules of scoring, and the score of a LoRA by them.
//!
//! Source of the rules: rayonlabs/G.O.D, `validator/evaluation/`.

pub mod evaluate;
mod pictures;
pub mod rules;

pub use pictures::test_pictures;
