//! tenggat-train

pub mod timesteps;
pub mod adapter;
pub mod optimiser;
