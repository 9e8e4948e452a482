//! What the pilot needs of a trainer, so that it can fly real ones, a stand-in and a simulation alike.

use std::path::PathBuf;

use crate::disk::Room;
use crate::error::Result;

/// What a trainer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Started, nothing heard of it yet.
    Starting,
    /// Reading weights.
    Loading,
    /// Quantising them.
    Quantising,
    /// Encoding pictures and captions.
    Caching,
    /// Drawing sample pictures.
    Sampling,
    /// Taking steps.
    Training,
    /// Writing a LoRA.
    Saving,
}

/// One look at a trainer.
#[derive(Debug, Clone)]
pub struct Look {
    /// What it is doing.
    pub stage: Stage,
    /// Updates done; `None` before the training begins.
    pub step: Option<u64>,
    /// Whether a save was asked for that it has not begun.
    pub save_pending: bool,
    /// The newest loss shown.
    pub loss: Option<f64>,
    /// The newest learning rate shown.
    pub lr: Option<f64>,
    /// Set once the process is gone.
    pub exit: Option<Exit>,
}

/// How a trainer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Whether it says that it did all of its steps.
    pub completed: bool,
    /// What went wrong, as far as its words and its exit tell.
    pub trouble: Trouble,
    /// Its own words, or the exit code.
    pub words: String,
}

/// A kind of trouble that a trainer got into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// None is known.
    None,
    /// Not enough memory on the GPU.
    OutOfMemory,
    /// The system had no memory left, or somebody sent the process a kill signal.
    Killed,
    /// No room on the disk.
    DiskFull,
    /// The GPU's driver failed.
    Driver,
    /// Numbers that are none.
    NotFinite,
    /// Any other error of the program.
    Error,
}

impl Trouble {
    /// What is seen and the likely cause, in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Trouble::None => "the trainer ended by itself",
            Trouble::OutOfMemory => {
                "the trainer ran out of GPU memory; a smaller batch, a smaller resolution or a quantised \
                 model needs less (`on_out_of_memory` in the job says what may be tried)"
            }
            Trouble::Killed => {
                "the trainer was killed from outside; most often the machine ran out of main memory (see \
                 `dmesg`)"
            }
            Trouble::DiskFull => "the disk is full; remove old saves or give `training_folder` another disk",
            Trouble::Driver => {
                "the GPU's driver reported an error; if it happens again, the card or its driver is at fault"
            }
            Trouble::NotFinite => "the training reached NaN; a lower learning rate usually helps",
            Trouble::Error => "the trainer stopped with an error",
        }
    }
}

/// What a session is to do. A session is one life of the trainer's process; a drive has one or a few.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// Counts from 1.
    pub number: u32,
    /// Updates in the LoRA that it resumes from; 0 for a fresh start.
    pub from: u64,
    /// Steps that the trainer is told to do, those of `from` included.
    pub steps: u64,
    /// Whether sample pictures are left out.
    pub no_samples: bool,
    /// How many entries of `on_out_of_memory` apply.
    pub shrink: usize,
}

/// What is asked of a running trainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Write a LoRA after the present step.
    Save,
    /// End between steps.
    Stop,
    /// End now, as Ctrl-C asks for it.
    Interrupt,
    /// End it whatever it does.
    Kill,
}

/// What became of the newest file that the trainer wrote.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// No whole file holds more than the last one.
    Nothing,
    /// A newer one was published.
    Delivered {
        /// The published file.
        path: PathBuf,
        /// Updates in it.
        steps: u64,
        /// Seconds that checking and publishing took.
        seconds: f64,
    },
    /// A file is complete but must not be used.
    Spoilt {
        /// The trainer's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A trainer that a pilot can start, watch, ask and stop.
pub trait Trainer {
    /// Seconds on the run's clock.
    fn now_s(&self) -> f64;

    /// Waits for this many seconds.
    fn wait(&mut self, seconds: f64);

    /// Starts the process.
    ///
    /// # Errors
    /// Its job cannot be written or the program cannot be started.
    fn start(&mut self, session: &Session) -> Result<()>;

    /// What it is doing now.
    fn look(&mut self) -> Look;

    /// Asks for something. Asking a process that is gone does nothing.
    fn ask(&mut self, ask: Ask);

    /// Checks the newest file that the trainer has written and publishes it if it is whole and holds more
    /// than `beyond` updates. Returns [`Delivery::Nothing`] at `until_s` if that is not done by then: a
    /// disk may take its time, and a deadline gives none.
    fn deliver(&mut self, beyond: u64, until_s: f64) -> Delivery;

    /// Room on the disk for its next save, if that is known.
    fn room(&mut self) -> Option<Room> {
        None
    }

    /// Removes saves that the job does not ask to keep, and returns their bytes.
    fn make_room(&mut self) -> u64 {
        0
    }

    /// What the machine shows that may explain a slow or silent trainer.
    fn clues(&mut self) -> Vec<String>;
}
