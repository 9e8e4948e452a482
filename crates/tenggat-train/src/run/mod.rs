//! A run from job to LoRA: load → cache → score → train → save → score → report, each a method in `phases.rs`
//! or `finish.rs`.
#![warn(clippy::too_many_lines)]

mod board;
mod checkpoint;
mod choice;
mod costs;
pub mod deadline;
mod error;
mod event;
mod finish;
mod folder;
mod found;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod live_curve;
mod lock;
mod memory;
mod models;
mod names;
mod opening;
mod options;
mod out_of_memory;
mod phases;
mod recipe;
mod report;
mod resume;
mod sampling;
mod saving;
mod state_file;
mod stop;
mod summary;
mod timeline;
mod trained;
mod training;

pub use crate::measure::score::{Extent, LEVELS, Scored, Scores, Weighed};
pub use error::{Error, Result};
pub use event::{Contender, Event, Step};
pub use lock::{LOCK, RunLock};
pub use names::LAST;
pub use opening::deliver_untrained;
pub use options::Options;
pub use phases::run;
pub use state_file::{PREVIOUS, STATE};
pub use stop::Stop;
pub use summary::Summary;
