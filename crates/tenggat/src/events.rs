//! The news of a run for programs: lines of JSON, whose schema is in `docs/events.md`.

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;
use tenggat_plan::{Clock, WallClock};
use tenggat_train::run::Event;

use crate::output;

/// Version of the schema.
const VERSION: u32 = 1;

/// How the news of a run is printed for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object per line and nothing else: see docs/events.md.
    Jsonl,
}

/// Prints the events of one run.
pub struct EventLines {
    clock: WallClock,
    /// Lines so far.
    count: u64,
}

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    v: u32,
    seq: u64,
    time: String,
    at_s: f64,
    #[serde(flatten)]
    event: &'a Event,
}

impl EventLines {
    /// For a run on this clock. From here on standard output has nothing but events.
    pub fn new(clock: WallClock, Format::Jsonl: Format) -> Self {
        output::leave_stdout_to_events();
        EventLines { clock, count: 0 }
    }

    /// Prints an event.
    pub fn print(&mut self, event: &Event) {
        let (seq, time) = (self.count, Timestamp::now().to_string());
        self.count += 1;
        // No event has anything that JSON cannot say; a test holds them to that.
        let _ = output::event(&Line { v: VERSION, seq, time, at_s: self.clock.now_s(), event });
    }
}
