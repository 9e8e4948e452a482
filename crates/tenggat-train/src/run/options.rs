//! What a run is given besides its job.

use std::path::Path;

use tenggat_plan::Clock;
use tenggat_tensor::Device;

use super::stop::Stop;

/// What a run is given besides its job.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The device that computes.
    pub device: &'a Device,
    /// Where the present comes from; reads 0 when the budget begins to run.
    pub clock: &'a dyn Clock,
    /// Time on the clock by which the process must have ended, in seconds.
    pub deadline_s: Option<f64>,
    /// True for a point in time (`--deadline`); false for a duration (`--budget`), from which time spent
    /// before an interruption is subtracted.
    pub deadline_is_moment: bool,
    /// Folder of the model.
    pub model: &'a Path,
    /// Folder that keeps quantised models for later runs; without one they are quantised every time.
    pub quantised: Option<&'a Path>,
    /// Memory that may be used where the job sets no limit; `None` if unknown.
    pub memory_bytes: Option<f64>,
    /// Folder of held-out images to score before and after.
    pub held_out: Option<&'a Path>,
    /// Whether the loss curve, and with held-out images their sheet, are rendered at the end.
    pub report: bool,
    /// Moves aside what an earlier run left, instead of resuming it.
    pub start_over: bool,
    /// Interrupts the run, or requests a save, from outside.
    pub stop: &'a Stop,
}

impl<'a> Options<'a> {
    /// A run of the model in a folder, without a deadline, held-out images or report. Other fields are set
    /// as those of any structure: `Options { report: true, ..Options::new(…) }`.
    pub fn new(device: &'a Device, clock: &'a dyn Clock, model: &'a Path, stop: &'a Stop) -> Self {
        Options {
            device,
            clock,
            deadline_s: None,
            deadline_is_moment: false,
            model,
            quantised: None,
            memory_bytes: None,
            held_out: None,
            report: false,
            start_over: false,
            stop,
        }
    }

    /// Gives the run this many seconds, from the start of its clock on.
    #[must_use]
    pub fn with_budget(self, seconds: f64) -> Self {
        Options { deadline_s: Some(seconds), deadline_is_moment: false, ..self }
    }

    /// Scores these images before and after training.
    #[must_use]
    pub fn with_held_out(self, folder: &'a Path) -> Self {
        Options { held_out: Some(folder), ..self }
    }
}
