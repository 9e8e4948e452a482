#![doc = include_str!("../README.md")]

mod entry;
mod error;
mod folder;
mod order;
mod queue;
mod share;
mod turn;

pub use entry::{Entry, NewEntry, Program, State};
pub use error::{Error, Result};
pub use folder::{Folder, USUAL};
pub use order::Move;
pub use queue::Queue;
pub use share::{Claim, share};
