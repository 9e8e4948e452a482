#![doc = include_str!("../README.md")]

mod event_log;
mod files;
mod find;
mod history;
mod lines;
mod lock;
mod metrics;
mod overview;
mod request;
mod run;
mod samples;
mod tail;
mod thin;
mod words;

pub use event_log::{EVENTS, EventLog, VERSION, Worth};
pub use files::{Checkpoint, checkpoints, config, file_in};
pub use find::find;
pub use history::{Ended, Expected, History, LogLine, Memory, Outcome, PhaseSpan, Save, StepNow};
pub use lock::is_locked;
pub use metrics::{METRICS, Series};
pub use overview::{Overview, State};
pub use request::{Request, ask, ask_move, takes};
pub use run::Run;
pub use samples::{Sample, samples};
pub use thin::{Curve, thin};
