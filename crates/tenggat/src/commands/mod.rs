//! One file per command.

mod demo;
mod doctor;
mod model;
mod sample;
mod train;

pub use demo::demo;
pub use doctor::doctor;
pub use sample::sample;
pub use train::train;
