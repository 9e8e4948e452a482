#![doc = include_str!("../README.md")]

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
