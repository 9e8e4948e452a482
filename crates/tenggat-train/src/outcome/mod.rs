//! What a run leaves to look at: metrics, samples, loss curves and sheets.

pub mod metrics;
pub mod painter;
pub mod report;
pub mod tensorboard;
