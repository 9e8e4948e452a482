//! From a job file to a LoRA: job, data set, caches, adapter, optimiser, training step, run, scores and reports.
//!
//! [`run::run`] is the whole way in one function. Nothing here knows a terminal: news of a run leaves through
//! [`run::Event`].

pub mod adapter;
pub mod atomic;
pub mod cache;
pub mod calibrate;
pub mod contest;
pub mod dataset;
pub mod device_check;
pub mod draws;
pub mod ema;
mod from_job;
pub mod lora_file;
pub mod metrics;
mod noise;
pub mod optimiser;
pub mod painter;
pub mod planned;
mod python_json;
pub mod report;
pub mod run;
pub mod score;
pub mod step;
pub mod step_bench;
mod tensor_file;
pub mod tensorboard;
pub mod timesteps;

/// Job files, a crate of their own.
pub use tenggat_job as job;
