//! What a run leaves to look at: metrics, samples, loss curves and sheets.

pub mod generator;
pub mod metrics;
pub mod report;
pub mod tensorboard;
