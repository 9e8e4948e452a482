//! `tenggat queue`: runs one after another.

mod add;
mod args;
mod child;
mod command;
mod desk;
mod list;
mod runner;
mod verdict;
mod whereabouts;

pub use args::QueueArgs;
pub use command::queue;
pub use desk::Desk;
pub use runner::{Stopping, run};
pub use whereabouts::folder;
