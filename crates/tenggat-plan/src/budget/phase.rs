//! The parts of a run and what they cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::sane_s;

/// A part of a run, in the order in which runs go through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading the weights.
    Load,
    /// Quantising them.
    Quantise,
    /// Encoding pictures and captions.
    Cache,
    /// Held-out error before training.
    ScoreBefore,
    /// Sample pictures before the first step.
    FirstSample,
    /// Training steps, with the saves and samples among them.
    Train,
    /// Writing the finished LoRA.
    FinalSave,
    /// Sample pictures of the finished LoRA.
    FinalSample,
    /// Held-out error after training.
    ScoreAfter,
    /// Picture sheets, plots, closing words.
    Report,
    /// Sending the finished LoRA to the hub.
    Upload,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 11] = [
        Self::Load,
        Self::Quantise,
        Self::Cache,
        Self::ScoreBefore,
        Self::FirstSample,
        Self::Train,
        Self::FinalSave,
        Self::FinalSample,
        Self::ScoreAfter,
        Self::Report,
        Self::Upload,
    ];

    /// The phases after the last step, in order.
    pub const TAIL: [Self; 5] =
        [Self::FinalSave, Self::FinalSample, Self::ScoreAfter, Self::Report, Self::Upload];

    /// The name in tables and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Quantise => "quantise",
            Self::Cache => "cache",
            Self::ScoreBefore => "score before",
            Self::FirstSample => "first samples",
            Self::Train => "train",
            Self::FinalSave => "final save",
            Self::FinalSample => "final samples",
            Self::ScoreAfter => "score after",
            Self::Report => "report",
            Self::Upload => "upload",
        }
    }

    fn index(self) -> usize {
        self as usize
    }

    /// The earlier phase that does the same work, and so foretells this one.
    fn rehearsal(self) -> Option<Self> {
        match self {
            Self::ScoreAfter => Some(Self::ScoreBefore),
            Self::FinalSample => Some(Self::FirstSample),
            _ => None,
        }
    }
}

/// Seconds for each phase; 0 for a phase that does not occur. In JSON an object with the seconds of those
/// that do.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Phase, f64>", into = "BTreeMap<Phase, f64>")]
pub struct PhaseCosts {
    seconds: [f64; 11],
}

impl From<BTreeMap<Phase, f64>> for PhaseCosts {
    fn from(seconds: BTreeMap<Phase, f64>) -> Self {
        seconds.into_iter().fold(Self::default(), |costs, (phase, seconds)| costs.with(phase, seconds))
    }
}

impl From<PhaseCosts> for BTreeMap<Phase, f64> {
    fn from(costs: PhaseCosts) -> Self {
        Phase::ALL.into_iter().map(|phase| (phase, costs.get(phase))).filter(|(_, s)| *s > 0.0).collect()
    }
}

impl PhaseCosts {
    /// The same costs with one phase set; negative and undefined values count as 0.
    #[must_use]
    pub fn with(mut self, phase: Phase, seconds: f64) -> Self {
        self.seconds[phase.index()] = sane_s(seconds).unwrap_or(0.0);
        self
    }

    /// Seconds of one phase.
    pub fn get(&self, phase: Phase) -> f64 {
        sane_s(self.seconds[phase.index()]).unwrap_or(0.0)
    }
}

/// When a phase began and ended on the run's clock.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Which phase.
    pub phase: Phase,
    /// Start in seconds.
    pub started_s: f64,
    /// End in seconds; `None` while it runs.
    pub finished_s: Option<f64>,
}

/// Expected costs of the phases, corrected by those that have run.
#[derive(Debug, Clone)]
pub(super) struct Phases {
    predicted: PhaseCosts,
    records: Vec<PhaseRecord>,
}

/// Relative uncertainty of a phase that was rehearsed, and of one that was only predicted.
const REHEARSED_DEVIATION: f64 = 0.04;
const PREDICTED_DEVIATION: f64 = 0.20;

impl Phases {
    pub(super) fn new(predicted: PhaseCosts) -> Self {
        Self { predicted, records: Vec::new() }
    }

    pub(super) fn start(&mut self, phase: Phase, now_s: f64) {
        self.records.push(PhaseRecord { phase, started_s: now_s, finished_s: None });
    }

    /// Closes the phase and returns how long it took, if it was open.
    pub(super) fn finish(&mut self, phase: Phase, now_s: f64) -> Option<f64> {
        let open = |r: &&mut PhaseRecord| r.phase == phase && r.finished_s.is_none();
        let record = self.records.iter_mut().rev().find(open)?;
        record.finished_s = Some(now_s);
        Some(now_s - record.started_s)
    }

    pub(super) fn records(&self) -> &[PhaseRecord] {
        &self.records
    }

    /// When a phase first began.
    pub(super) fn started_s(&self, phase: Phase) -> Option<f64> {
        self.records.iter().find(|r| r.phase == phase).map(|r| r.started_s)
    }

    fn measured_s(&self, phase: Phase) -> Option<f64> {
        self.records.iter().rev().filter(|r| r.phase == phase).find_map(|r| Some(r.finished_s? - r.started_s))
    }

    /// Whether a phase has begun, finished or not.
    pub(super) fn begun(&self, phase: Phase) -> bool {
        self.records.iter().any(|r| r.phase == phase)
    }

    /// When a phase began that has not finished.
    pub(super) fn running_since_s(&self, phase: Phase) -> Option<f64> {
        let running = self.records.iter().rev().find(|r| r.phase == phase && r.finished_s.is_none());
        running.map(|r| r.started_s)
    }

    /// Expected seconds of a phase and their standard deviation.
    ///
    /// A phase whose rehearsal was measured is expected to err as the rehearsal did, `predicted · measured /
    /// predicted rehearsal`, at today's `slowdown` of the steps.
    pub(super) fn expected(&self, phase: Phase, slowdown: f64) -> (f64, f64) {
        let predicted_s = self.predicted.get(phase);
        let rehearsed = phase.rehearsal().and_then(|rehearsal| {
            let measured_s = self.measured_s(rehearsal)?;
            let planned_s = self.predicted.get(rehearsal);
            Some(if planned_s > 0.0 {
                predicted_s * measured_s / planned_s
            } else {
                predicted_s.max(measured_s)
            })
        });
        match rehearsed {
            Some(seconds) if predicted_s > 0.0 => {
                let seconds = seconds * slowdown;
                (seconds, REHEARSED_DEVIATION * seconds)
            }
            _ => {
                // What was only predicted is not known to have been predicted for a slow moment: it gets no
                // cheaper.
                let seconds = predicted_s * slowdown.max(1.0);
                (seconds, PREDICTED_DEVIATION * seconds)
            }
        }
    }
}
