//! What came of the checks.

use serde::Serialize;

use super::rates::MeasuredRates;

/// What came of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The device does what it should.
    Passed,
    /// It does not.
    Failed,
    /// It was not asked: the device lacks it, or time was over.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was checked, such as `ops: attention bf16`.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// By how much it was off, or why it failed or was left out.
    pub detail: String,
    /// What it took.
    pub seconds: f64,
}

/// All checks of one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The device, as its driver names it.
    pub device: String,
    /// What it is used with.
    pub libraries: String,
    /// What makes it slower than it could be.
    pub notes: Vec<String>,
    /// In the order in which they ran.
    pub checks: Vec<Check>,
    /// How fast it is; absent on an emulated device, and where time was over.
    pub rates: Option<MeasuredRates>,
}

impl Report {
    /// Names of the checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.name.as_str())
    }
}
