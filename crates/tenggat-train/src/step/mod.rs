//! One training step, and everything random in it.

pub(crate) mod noise;
pub mod optimiser;
mod passes;
pub mod random;
pub mod timesteps;
mod trainer;

pub use trainer::{Batch, Objective, Outcome, Part, Trainer};
