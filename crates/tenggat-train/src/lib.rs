//! tenggat-train

pub mod adapter;
pub mod dataset;
pub mod draws;
pub mod job;
pub mod optimiser;
pub mod step;
pub mod timesteps;
pub mod score;
