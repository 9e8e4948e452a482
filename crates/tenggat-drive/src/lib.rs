#![doc = include_str!("../README.md")]

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
pub use process::WEBHOOK_SECRET;
pub use state::{FOLDER, Home, State, move_aside, unix_s};
pub use toolkit::{AiToolkit, Deliver, Installation, Save, Saves, ToolkitJob, Wishes};
pub use trainer::{Ask, Delivery, Exit, Look, Session, Stage, Trainer, Trouble};
