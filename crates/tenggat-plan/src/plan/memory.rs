//! Whether a job fits a card: the likely range of its peak beside what there is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::{Fit, Machine, Precision, StepConfig};
use crate::job::PlanJob;
use crate::program::Program;
use crate::range::Range;

/// Whether a job fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Even the upper end of its memory is less than there is.
    Fits,
    /// The lower end is less than there is, the upper end is not.
    MayFit,
    /// Even the lower end is more than there is.
    TooLarge,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fits => "yes",
            Self::MayFit => "maybe",
            Self::TooLarge => "no",
        })
    }
}

/// Ends of the peak of programs on PyTorch, as factors of the forecast, and bytes on top of the upper one:
/// their allocator keeps more the more there is.
const ELSEWHERE: [f64; 2] = [0.87, 1.15];
const ELSEWHERE_MORE_BYTES: f64 = 2.5e9;
/// The same of tenggat on a GPU, which no card has confirmed, and on a processor, where it was.
const OWN: [f64; 2] = [1.0, 1.1];
const OWN_MORE_BYTES: f64 = 0.5e9;
const PROCESSOR: [f64; 2] = [0.95, 1.05];
/// Bytes more per modulation weight where 4-bit weights are published with modulation in bf16.
const WIDE_MODULATION_BYTES: f64 = 1.5;

/// The likely range of the peak, bytes, and whether it fits. tenggat computes more again where memory turns
/// out to be short, so that its verdict is that of the job that keeps least.
pub(super) fn verdict(job: &PlanJob, machine: &Machine, program: Program, fit: &Fit) -> (Range, Verdict) {
    let likely = fit.memory.device_bytes();
    if program != Program::Tenggat {
        let modulation: f64 = job.model.blocks.iter().map(|g| g.count as f64 * g.modulation_weights()).sum();
        let wide = if job.precision == Precision::Nf4 { WIDE_MODULATION_BYTES * modulation } else { 0.0 };
        let mut range = Range::around(likely, ELSEWHERE);
        range.high += ELSEWHERE_MORE_BYTES + wide;
        return (range, of(range.low, range.high, fit.usable_bytes));
    }
    let (ends, more) = if machine.shares_host_memory { (PROCESSOR, 0.0) } else { (OWN, OWN_MORE_BYTES) };
    let mut range = Range::around(likely, ends);
    range.high += more;
    let least = StepConfig { keep_all: 0, keep_results: 0, ..fit.config }.memory(machine);
    let host_bytes = if machine.shares_host_memory { least.host_bytes } else { 0.0 };
    let least_bytes = least.device_bytes() + host_bytes;
    let verdict = match fit.fits {
        true => of(least_bytes * ends[0], least_bytes * ends[1] + more, fit.usable_bytes),
        // With less kept it would have been fitted.
        false => Verdict::TooLarge,
    };
    (range, verdict)
}

fn of(low_bytes: f64, high_bytes: f64, usable_bytes: f64) -> Verdict {
    if high_bytes <= usable_bytes {
        Verdict::Fits
    } else if low_bytes <= usable_bytes {
        Verdict::MayFit
    } else {
        Verdict::TooLarge
    }
}
