//! tenggat-train

pub mod job;
pub mod timesteps;
pub mod adapter;
pub mod optimiser;
