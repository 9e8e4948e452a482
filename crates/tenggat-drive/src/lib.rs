//! Keeps trainers other than tenggat's own inside a time budget.
//!
//! A trainer that knows no deadline is started, watched, asked to save and stopped in time, and the newest
//! whole LoRA that it wrote is always published as `last.safetensors`. Nothing here computes: the trainer
//! does.
//!
//! - [`Trainer`]: what can be flown; [`AiToolkit`]: ostris/ai-toolkit through its own control channel.
//! - [`follow()`]: any other trainer, by its command, its progress bar and its saves.
//! - [`fly`]: the pilot, with [`tenggat_plan::Budget`] as its sense of time.
//! - [`lora`]: whether a file is whole, and its publication.
//! - [`Home`] and [`State`]: what makes a drive that was cut off go on.

mod command;
mod disk;
mod drive;
mod error;
mod event;
mod gpu;
pub mod lora;
mod metrics;
mod orders;
mod pilot;
mod process;
mod state;
mod toolkit;
mod trainer;
mod words;

pub use command::{CommandOptions, Found, Pattern, Profile, follow};
pub use disk::{Room, free_bytes};
pub use drive::{Driven, Options, OtherJob, drive};
pub use error::{Error, Result};
pub use event::{Event, Step};
pub use pilot::{Known, Mark, Plan, Summary, Tower, fly};
pub use state::{FOLDER, Home, State, move_aside, unix_s};
pub use toolkit::{AiToolkit, Deliver, Installation, Save, Saves, ToolkitJob, Wishes};
pub use trainer::{Ask, Delivery, Exit, Look, Session, Stage, Trainer, Trouble};
