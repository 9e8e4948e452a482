//! What the program that serves the page does for it: it knows jobs, the page does not.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

/// What was found out about a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Whether it can run.
    pub ok: bool,
    /// What there is to say about it.
    pub lines: Vec<String>,
}

/// A job as it was typed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NewJob {
    /// Text of the job file.
    pub job: String,
    /// `2h`, or nothing.
    #[serde(default)]
    pub budget: String,
    /// `07:00`, or nothing.
    #[serde(default)]
    pub by: String,
}

/// Checks jobs and puts them into the queue.
pub trait Desk: Debug + Send + Sync {
    /// What there is to say about the text of a job file.
    fn check(&self, job: &str) -> Checked;

    /// Puts a job into the queue; returns the number of its entry.
    ///
    /// # Errors
    /// What is wrong with it.
    fn add(&self, new: &NewJob) -> Result<i64, String>;
}
