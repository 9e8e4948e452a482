//! The news of a run for programs: lines of JSON, always in the folder of the run, and on standard output if
//! wanted. Their schema is in `docs/events.md`.

use std::path::Path;

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;
use tenggat_plan::{Clock, WallClock};
use tenggat_runs::{EVENTS, EventLog, VERSION, Worth, is_locked};
use tenggat_tensor::Device;
use tenggat_train::run::{Event, LOCK};

use crate::output;
use crate::process;

/// Seconds between two measurements of memory.
const MEMORY_EVERY_S: f64 = 5.0;

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
    fn print(&mut self, event: &Event) {
        let (seq, time) = (self.count, Timestamp::now().to_string());
        self.count += 1;
        // No event has anything that JSON cannot say; a test holds them to that.
        let _ = output::event(&Line { v: VERSION, seq, time, at_s: self.clock.now_s(), event });
    }
}

/// Tells the events of one run to programs: on standard output and in its folder.
pub struct News {
    clock: WallClock,
    printed: Option<EventLines>,
    log: EventLog,
    device: Option<Device>,
    memory_due_s: f64,
}

impl News {
    /// For a run in this folder, which begins now.
    pub fn new(
        clock: WallClock,
        printed: Option<EventLines>,
        folder: &Path,
        program: &'static str,
        deadline_s: Option<f64>,
    ) -> Self {
        let mut news = News { clock, printed, log: EventLog::new(folder), device: None, memory_due_s: 0.0 };
        let (process, version) = (std::process::id(), env!("CARGO_PKG_VERSION"));
        news.tell(&Event::Started { program, process, version, deadline_s });
        news
    }

    /// From now on the memory of this device is measured, too.
    pub fn watch(&mut self, device: &Device) {
        self.device = Some(device.clone());
    }

    /// Tells an event, and now and then how much memory is in use.
    pub fn tell(&mut self, event: &Event) {
        self.put(event);
        let now_s = self.clock.now_s();
        let is_moment =
            matches!(event, Event::Step(_) | Event::PhaseFinished { .. } | Event::Progress { .. });
        if is_moment && now_s >= self.memory_due_s {
            self.memory_due_s = now_s + MEMORY_EVERY_S;
            self.put(&memory(self.device.as_ref()));
        }
    }

    fn put(&mut self, event: &Event) {
        let worth = match event {
            Event::Started { .. } | Event::Warning(_) => Worth::Early,
            Event::Step(_) | Event::Progress { .. } | Event::Quantised { .. } | Event::Memory { .. } => {
                Worth::Frequent
            }
            _ => Worth::Usual,
        };
        self.log.add(self.clock.now_s(), event.name(), worth, event);
        if let Some(printed) = &mut self.printed {
            printed.print(event);
        }
    }

    /// Adds a line for people to the log in the folder.
    pub fn note(&mut self, text: &str) {
        #[derive(Serialize)]
        struct Note<'a> {
            event: &'static str,
            text: &'a str,
        }
        self.log.add(self.clock.now_s(), "note", Worth::Early, &Note { event: "note", text });
    }

    /// Tells how the run ended.
    pub fn end(&mut self, outcome: &'static str, steps: u64) {
        let ended = Event::Ended { outcome, steps, error: None };
        if self.log.is_open() {
            self.put(&ended);
        } else if let Some(printed) = &mut self.printed {
            // The run never had its folder.
            printed.print(&ended);
        }
    }

    /// Tells that the run failed. The log of a folder that this process never opened belongs to the run that
    /// wrote it, be it under way or finished: a start that failed says nothing there.
    pub fn fail(&mut self, folder: &Path, error: &anyhow::Error) {
        let is_new = folder.join(LOCK).is_file() && !folder.join(EVENTS).exists() && !is_locked(folder);
        let ended = Event::Ended { outcome: "failed", steps: 0, error: Some(format!("{error:#}")) };
        if self.log.is_open() || is_new {
            self.put(&ended);
        } else if let Some(printed) = &mut self.printed {
            printed.print(&ended);
        }
    }
}

/// Memory in use now.
pub fn memory(device: Option<&Device>) -> Event {
    let device_bytes = device.and_then(|device| {
        let (free, total) = device.memory().ok()??;
        Some(total.saturating_sub(free) as u64)
    });
    Event::Memory { host_bytes: process::resident_bytes(), device_bytes }
}
