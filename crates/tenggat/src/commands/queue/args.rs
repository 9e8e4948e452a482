//! What `tenggat queue` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use tenggat_queue::Move;
use tenggat_train::job::parse_local_moment;

/// `tenggat queue`.
#[derive(Debug, Args)]
pub struct QueueArgs {
    #[command(subcommand)]
    pub action: Action,
}

/// What is done with the queue.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Put jobs at the end of the queue.
    Add(AddArgs),
    /// Show what runs, what waits, and what ended last.
    List {
        /// Show everything that ever ended.
        #[arg(long)]
        all: bool,
        /// Print a list of objects for programs.
        #[arg(long)]
        json: bool,
    },
    /// Take entries out. One that runs saves what it has trained and ends.
    Cancel {
        /// Numbers as `queue list` shows them.
        #[arg(required = true, value_name = "ENTRY")]
        entries: Vec<i64>,
    },
    /// Move a waiting entry.
    Move {
        /// Number as `queue list` shows it.
        entry: i64,
        /// up, down, first, last, or a place: 1 is next.
        to: Move,
    },
    /// Run what waits, one entry after another on each device, until nothing is left.
    Run {
        /// Wait for more when nothing is left.
        #[arg(long)]
        stay: bool,
    },
}

/// `tenggat queue add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Job files.
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<PathBuf>,
    /// Time that each run may take: 90s, 45m, 2h, 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = tenggat_plan::parse_duration_s)]
    pub budget: Option<f64>,
    /// Time by which all of them must have ended: 07:00, '2026-12-01 07:00', or with a zone. Each gets a
    /// share.
    #[arg(long, value_name = "TIME", value_parser = parse_local_moment)]
    pub by: Option<Timestamp>,
    /// Name of the run, in place of the job's (`[name]` in the job).
    #[arg(short, long)]
    pub name: Option<String>,
    /// Run them with `drive` instead of `train`.
    #[arg(long)]
    pub drive: bool,
}
