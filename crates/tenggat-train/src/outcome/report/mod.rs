//! Pictures of a run, drawn without system fonts: the loss curve ([`plot`]), a sheet of pictures ([`sheet`]),
//! curves over budgets ([`chart`]), several runs in one picture ([`panels`]).

mod axis;
pub mod chart;
pub mod panels;
mod picture;
pub mod plot;
pub mod sheet;
mod svg;

pub use picture::{Error, save_picture, save_picture_with, save_rgb, to_rgb};

/// Loss and learning rate of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Steps done, this one included.
    pub step: u64,
    /// Loss.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
}
