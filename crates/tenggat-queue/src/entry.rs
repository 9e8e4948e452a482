//! What is known of an entry.

use serde::Serialize;

/// The command that runs an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// `tenggat train`.
    #[default]
    Train,
    /// `tenggat drive`.
    Drive,
}

impl Program {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Program::Train => "train",
            Program::Drive => "drive",
        }
    }

    pub(crate) fn from_name(name: &str) -> Program {
        if name == "drive" { Program::Drive } else { Program::Train }
    }
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for its turn.
    Waiting,
    /// It was claimed; its process works, or will be started again.
    Running,
    /// It came to its end.
    Done,
    /// Its run was asked to stop, by somebody other than the queue.
    Stopped,
    /// It ended with an error.
    Failed,
    /// It was taken out of the queue.
    Cancelled,
}

impl State {
    const ALL: [State; 6] =
        [State::Waiting, State::Running, State::Done, State::Stopped, State::Failed, State::Cancelled];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Running => "running",
            State::Done => "done",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    pub(crate) fn from_name(name: &str) -> State {
        // A name that nobody wrote is no reason to lose the entry.
        State::ALL.into_iter().find(|state| state.name() == name).unwrap_or(State::Failed)
    }

    /// Whether nothing more will happen to it.
    pub fn has_ended(self) -> bool {
        !matches!(self, State::Waiting | State::Running)
    }
}

/// What is put into the queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewEntry {
    /// Path of the job file, absolute.
    pub job: String,
    /// The command that runs it.
    pub program: Program,
    /// Name of the run in place of the job's.
    pub name: Option<String>,
    /// Folder in which the command is started: relative paths of the job start there.
    pub working_folder: String,
    /// Folder of the run, absolute.
    pub run: String,
    /// Entries of one lane run one after another.
    pub lane: String,
    /// What `--device` was given.
    pub device: String,
    /// Seconds that it may take.
    pub budget_s: Option<f64>,
    /// When it must have ended, in seconds since 1970.
    pub by_unix_s: Option<f64>,
    /// Seconds that it would take if nobody hurried it, as far as is known.
    pub expected_s: Option<f64>,
}

/// An entry of the queue. Moments are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its number, which is never used again.
    pub id: i64,
    /// Where it stands.
    pub state: State,
    /// Path of the job file.
    pub job: String,
    /// The command that runs it.
    pub program: Program,
    /// Name of the run in place of the job's.
    pub name: Option<String>,
    /// Folder in which the command is started.
    pub working_folder: String,
    /// Folder of the run.
    pub run: String,
    /// Entries of one lane run one after another.
    pub lane: String,
    /// What `--device` was given.
    pub device: String,
    /// Seconds that it may take.
    pub budget_s: Option<f64>,
    /// When it must have ended.
    pub by_unix_s: Option<f64>,
    /// Seconds that it would take if nobody hurried it.
    pub expected_s: Option<f64>,
    /// The deadline that it was started with, if others need time after it.
    pub deadline_unix_s: Option<f64>,
    /// Its process, while it runs.
    pub process: Option<u32>,
    /// How often its process was killed.
    pub crashes: u32,
    /// Whether it is to end.
    pub is_cancelled: bool,
    /// When it was added.
    pub added_unix_s: f64,
    /// When it was claimed last.
    pub began_unix_s: Option<f64>,
    /// When it ended.
    pub ended_unix_s: Option<f64>,
    /// Why it ended as it did, where that is not plain.
    pub reason: Option<String>,
}
