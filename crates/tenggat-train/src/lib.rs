//! From a job file to a LoRA: job, data set, caches, adapter, optimiser, training step, run, scores and
//! reports.
//!
//! [`run::run`] is the whole way in one call. Nothing here knows a terminal: news of a run leaves through
//! [`run::Event`].
//!
//! The doors, lowest first; what lies behind one imports from those above it in this list alone:
//!
//! - [`files`]: files that are whole or not there
//! - [`lora`]: the adapter's first values, its average, its file
//! - [`step`]: one training step, the optimisers, and everything random in it
//! - [`data`]: images, captions, caches, batches
//! - [`measure`]: errors on held-out images
//! - [`plan`]: what a job will cost
//! - [`outcome`]: metrics, samples and reports
//! - [`device_check`]: whether a card computes what the CPU does, and how fast
//! - [`run`]: a run from start to end
//! - [`contest`]: the timed contest

pub mod contest;
pub mod data;
pub mod device_check;
pub mod files;
pub mod lora;
pub mod measure;
pub mod outcome;
pub mod plan;
pub mod run;
pub mod step;

/// Job files, a crate of their own.
pub use tenggat_job as job;
