//! What a forecast of step times stands on, and how wide its likely range is therefore.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::cost::Machine;
use crate::forecast::mean_step_s;
use crate::job::PlanJob;
use crate::program::Program;
use crate::range::{Range, two_digits};
use crate::reported_speeds::{Agreement, Report, reports};

/// What a forecast stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Steps of this job's shape, measured with this program on this card.
    MeasuredHere,
    /// Steps of other shapes, measured with this program on this card.
    MeasuredSimilar,
    /// Rates of this machine that `plan calibrate` measured.
    Calibrated,
    /// Public reports of this program.
    Reports,
    /// Public reports of other programs alone.
    OtherPrograms,
    /// Nothing: the vendor's peaks and assumed efficiencies.
    NoReport,
}

/// What a forecast of step times stands on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The kind.
    pub basis: Basis,
    /// Reports or measurements that the range comes from.
    pub reports: usize,
    /// Of these, on this card.
    pub on_this_card: usize,
    /// Median of forecast over report.
    pub median: Option<f64>,
    /// Typical factor between forecast and report.
    pub typical_error: Option<f64>,
    /// How many in a hundred such jobs are expected inside the range.
    pub confidence_percent: u64,
}

/// Share of jobs expected inside a range, and the standard deviations of a normal distribution that hold as
/// many.
const CONFIDENCE_PERCENT: u64 = 90;
const DEVIATIONS: f64 = 1.645;
/// Ends of the range once a step of this shape was measured.
const MEASURED: [f64; 2] = [0.9, 1.1];
/// Ends once steps of another shape were.
const MEASURED_SIMILAR: [f64; 2] = [0.8, 1.25];
/// Ends of tenggat's own steps on a GPU. Its rates are at or above the best that any report shows, so that
/// nothing below the forecast is likely; above it, the best public rate is 1.2 to 1.4 times away, and
/// machines differ by 1.1 to 1.2.
const OWN: [f64; 2] = [1.0, 1.6];
/// Ends of a processor that nothing was measured on: other programs run beside, and its vector units are not
/// known.
const UNCALIBRATED: [f64; 2] = [0.7, 4.0];
/// More width, as a factor of either end, where no report is of this program, and where none is of this card.
const UNKNOWN_PROGRAM: f64 = 1.2;
const UNKNOWN_CARD: f64 = 1.05;
/// The same where blocks come from the host: it depends on pinned memory, the driver and the board.
const SWAPPING: f64 = 1.2;

/// A forecast over a report, with what it is of.
struct Ratio {
    program: Program,
    gpu: String,
    ratio: f64,
}

/// Ratios of forecast over report of all comparable public reports, computed once.
fn ratios() -> &'static [Ratio] {
    static RATIOS: OnceLock<Vec<Ratio>> = OnceLock::new();
    RATIOS.get_or_init(|| {
        let ratio = |report: &Report| {
            let gpu = report.gpu?.name.clone().into_owned();
            Some(Ratio { program: report.program, gpu, ratio: report.ratio()? })
        };
        reports().iter().filter_map(ratio).collect()
    })
}

/// Likely seconds per step with their range, and what it stands on. `measured` are speeds that were measured
/// by the user, in the form of reports.
pub(crate) fn step_range(
    job: &PlanJob,
    machine: &Machine,
    program: Program,
    likely_s: f64,
    measured: &[Report],
) -> (Range, Evidence) {
    if let Some(found) = from_measurements(job, machine, program, likely_s, measured) {
        return found;
    }
    let of = |basis| Evidence {
        basis,
        reports: 0,
        on_this_card: 0,
        median: None,
        typical_error: None,
        confidence_percent: CONFIDENCE_PERCENT,
    };
    match (program, machine.shares_host_memory, machine.assumed) {
        (Program::Tenggat, true, false) => (Range::around(likely_s, MEASURED), of(Basis::Calibrated)),
        (Program::Tenggat, true, true) => (Range::around(likely_s, UNCALIBRATED), of(Basis::NoReport)),
        (Program::Tenggat, false, _) => (Range::around(likely_s, OWN), of(Basis::NoReport)),
        _ => from_reports(job, machine, program, likely_s),
    }
}

/// The range that public reports allow: the typical factor of error of all of them, which is more than any
/// one program's few reports could tell.
fn from_reports(job: &PlanJob, machine: &Machine, program: Program, likely_s: f64) -> (Range, Evidence) {
    let all: Vec<f64> = ratios().iter().map(|ratio| ratio.ratio).collect();
    let typical = Agreement::of(&all).map_or(2.0, |agreement| agreement.typical_error);
    let own: Vec<&Ratio> =
        ratios().iter().filter(|ratio| ratio.program.newest() == program.newest()).collect();
    let same_card = |ratio: &&Ratio| ratio.gpu == machine.name;
    let card_is_known = ratios().iter().any(|ratio| same_card(&ratio));
    let width = typical.powf(DEVIATIONS)
        * if own.is_empty() { UNKNOWN_PROGRAM } else { 1.0 }
        * if card_is_known { 1.0 } else { UNKNOWN_CARD }
        * if job.elsewhere.swapped_blocks > 0 { SWAPPING } else { 1.0 };
    let values: Vec<f64> = own.iter().map(|ratio| ratio.ratio).collect();
    let agreement = Agreement::of(&values);
    let evidence = Evidence {
        basis: if own.is_empty() { Basis::OtherPrograms } else { Basis::Reports },
        reports: if own.is_empty() { all.len() } else { own.len() },
        on_this_card: own.iter().filter(|ratio| same_card(ratio)).count(),
        median: agreement.map(|agreement| agreement.median),
        typical_error: Some(agreement.map_or(typical, |agreement| agreement.typical_error)),
        confidence_percent: CONFIDENCE_PERCENT,
    };
    (Range::around(likely_s, [1.0 / width, width]), evidence)
}

/// What was measured with this program on this card: the forecast is corrected by the middle of measured over
/// forecast.
fn from_measurements(
    job: &PlanJob,
    machine: &Machine,
    program: Program,
    likely_s: f64,
    measured: &[Report],
) -> Option<(Range, Evidence)> {
    let here: Vec<(&Report, &PlanJob, f64)> = measured
        .iter()
        .filter(|report| report.program == program && report.is_of(&machine.name))
        .filter_map(|report| Some((report, report.job.as_ref()?, report.middle_step_s()?)))
        .collect();
    let same: Vec<f64> = here
        .iter()
        .filter(|(_, of, _)| is_same_step(program, of, job))
        .map(|(_, _, step_s)| *step_s)
        .collect();
    let evidence = |basis, reports, agreement: Option<Agreement>| Evidence {
        basis,
        reports,
        on_this_card: reports,
        median: agreement.map(|agreement| agreement.median),
        typical_error: agreement.map(|agreement| agreement.typical_error),
        confidence_percent: CONFIDENCE_PERCENT,
    };
    if let Some(step_s) = middle(&same) {
        let agreement = Agreement::of(&same.iter().map(|s| likely_s / s).collect::<Vec<_>>());
        let evidence = evidence(Basis::MeasuredHere, same.len(), agreement);
        return Some((Range::around(step_s, MEASURED), evidence));
    }
    let ratios: Vec<f64> =
        here.iter().map(|(_, of, step_s)| mean_step_s(of, machine, program) / step_s).collect();
    let ratio = middle(&ratios)?;
    let evidence = evidence(Basis::MeasuredSimilar, ratios.len(), Agreement::of(&ratios));
    Some((Range::around(likely_s / ratio, MEASURED_SIMILAR), evidence))
}

/// Whether two jobs ask a program for the same step: sizes, batch, rank, type of the weights, and how it goes
/// about it. The length of the captions is left aside.
fn is_same_step(program: Program, a: &PlanJob, b: &PlanJob) -> bool {
    let sizes = |job: &PlanJob| {
        let mut sizes: Vec<[u64; 2]> = job.buckets.iter().map(|b| [b.width_px, b.height_px]).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let of = |job: &PlanJob| (job.model.name.clone(), [job.batch, job.accumulation, job.rank], job.precision);
    let how = |job: &PlanJob| {
        let bucket = job.largest_bucket()?;
        let step = job.program_step(program.profile()?, bucket);
        let flags = [step.compiled, step.checkpointed, step.on_windows];
        Some((step.targets, flags, step.swapped_blocks, step.sequence.control_tokens))
    };
    sizes(a) == sizes(b) && of(a) == of(b) && how(a) == how(b)
}

/// The geometric mean of positive numbers; `None` if there are none.
fn middle(values: &[f64]) -> Option<f64> {
    let logs: Vec<f64> =
        values.iter().filter(|value| **value > 0.0 && value.is_finite()).map(|value| value.ln()).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let agreement = match (self.median, self.typical_error) {
            (Some(median), Some(error)) => {
                format!(": median {median:.2} of the report, typical error ×{error:.2}")
            }
            (None, Some(error)) => format!(", typical error ×{error:.2}"),
            _ => String::new(),
        };
        match self.basis {
            Basis::MeasuredHere => write!(f, "measured here ({})", plural(self.reports, "run"))?,
            Basis::MeasuredSimilar => {
                write!(f, "measured here with other sizes ({})", plural(self.reports, "run"))?;
            }
            Basis::Calibrated => write!(f, "calibrated here")?,
            Basis::Reports => {
                let cards = if self.on_this_card > 0 {
                    format!(", {} on this card", self.on_this_card)
                } else {
                    String::new()
                };
                write!(f, "{}{cards}{agreement}", plural(self.reports, "public report"))?;
            }
            Basis::OtherPrograms => {
                write!(f, "no report of this program; {} of others{agreement}", self.reports)?;
            }
            Basis::NoReport => write!(f, "no report; vendor's peaks and assumed efficiencies")?,
        }
        write!(f, "; {} in 100 are expected inside", two_digits(self.confidence_percent as f64))
    }
}
