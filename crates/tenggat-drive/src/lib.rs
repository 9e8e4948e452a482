//! Keeps trainers other than tenggat's own inside a time budget.
//!
//! A trainer that knows no deadline is started, watched, asked to save and stopped in time, and the newest whole LoRA
//! that it wrote is always published as `last.safetensors`. Nothing here computes: the trainer does.
//!
//! - [`Trainer`]: what can be flown.
//! - [`fly`]: the pilot, with [`tenggat_plan::Budget`] as its sense of time.

mod error;
mod event;
pub mod lora;
mod pilot;
mod trainer;

pub use error::{Error, Result};
pub use event::{Event, Step};
pub use pilot::{Known, Mark, Plan, Summary, Tower, fly};
pub use trainer::{Ask, Delivery, Exit, Look, Session, Stage, Trainer, Trouble};
