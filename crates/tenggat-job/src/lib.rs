#![doc = include_str!("../README.md")]

mod compare;
mod compat;
mod config;
mod de;
mod document;
mod error;
mod file;
mod given;
mod keys;
mod moment;
mod raw;
mod read;
mod repository;
mod resolve;
mod source;
mod substitute;
mod suggest;
mod tree;
mod types;
mod values;
mod weights;

#[cfg(test)]
mod tests;

pub use compare::{Change, changes};
pub use compat::Compat;
pub use document::Document;
pub use error::{Error, Result, Warning};
pub use given::{Given, given};
pub use keys::Range;
pub use moment::{parse_local_moment, parse_moment, parse_past_moment};
pub use read::range;
pub use repository::is_repository;
pub use source::{Mark, Place};
pub use types::{
    ARCH, Dataset, Job, Limits, Masks, Model, Network, OptimiserConfig, OptimiserParams, Prompt, Push,
    Sample, Save, Train, Validation,
};
pub use values::{
    Balance, Bell, Deliver, FirstRound, Loss, LrScheduler, NetworkKind, Optimiser, PictureFormat, Qtype,
    Recompute, SaveType, TimestepType,
};
pub use weights::ErrorWeights;
