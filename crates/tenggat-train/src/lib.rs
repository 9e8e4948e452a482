//! tenggat-train

pub mod timesteps;
