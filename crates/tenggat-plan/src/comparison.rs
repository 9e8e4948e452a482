//! Forecasts beside reports: how far they agree by program and by card, how many reports lie inside the
//! likely range, and whether correcting factors would help.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::cost::Machine;
use crate::plan::{Plan, PlanOptions, Verdict, aligned};
use crate::quantity::Span;
use crate::range::Range;
use crate::reported_speeds::{Agreement, MemoryAgreement, MemoryOutcome, Report, Trust};

/// A report beside its forecast.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedSpeed {
    /// Name of the report.
    pub id: String,
    /// Where it stands.
    pub source: String,
    /// Program.
    pub program: String,
    /// Card.
    pub card: String,
    /// Reported seconds per step.
    pub reported_s: Span,
    /// Forecast seconds per step.
    pub forecast_s: Range,
    /// Likely over the middle of the reported.
    pub ratio: f64,
    /// Whether the middle of the reported lies inside the forecast's range.
    pub inside: bool,
}

/// Agreement of a group of reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// Agreement.
    pub agreement: Agreement,
    /// Reports inside the range.
    pub inside: usize,
}

/// Typical error where every source is forecast from the others alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LeftOut {
    /// Without a correcting factor.
    pub plain: f64,
    /// With one factor per program, from the other sources' reports of it.
    pub by_program: f64,
    /// With one factor per card.
    pub by_card: f64,
    /// Reports inside a range whose width comes from the other sources alone.
    pub inside: usize,
}

/// Forecasts beside reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportComparison {
    /// Every compared report.
    pub speeds: Vec<ComparedSpeed>,
    /// All of them.
    pub all: Option<Group>,
    /// By program.
    pub by_program: Vec<Group>,
    /// By card.
    pub by_card: Vec<Group>,
    /// With every source left out in turn.
    pub left_out: Option<LeftOut>,
    /// Memory.
    pub memory: MemoryAgreement,
}

impl ReportComparison {
    /// Compares reports with what is forecast for the same jobs. Reports that are context, and those of
    /// models or sizes that are not known, are left out.
    pub fn new(reports: &[Report]) -> Self {
        let speeds: Vec<ComparedSpeed> = reports.iter().filter_map(compared).collect();
        Self {
            all: group("all", &speeds.iter().collect::<Vec<_>>()),
            by_program: groups(&speeds, |speed| &speed.program),
            by_card: groups(&speeds, |speed| &speed.card),
            left_out: left_out(&speeds),
            memory: memory(reports),
            speeds,
        }
    }
}

fn plan(report: &Report) -> Option<Plan> {
    let (job, gpu) = (report.job.as_ref()?, report.gpu?);
    Plan::new(job, &Machine::from(gpu), report.program, &PlanOptions::default()).ok()
}

fn compared(report: &Report) -> Option<ComparedSpeed> {
    let (reported_s, middle_s) = (report.step_s()?, report.middle_step_s()?);
    if report.row.trust == Trust::Context {
        return None;
    }
    let forecast_s = plan(report)?.mean_step_s;
    Some(ComparedSpeed {
        id: report.row.id.clone(),
        source: report.row.source.clone(),
        program: report.program.to_string(),
        card: report.gpu?.name.clone().into_owned(),
        reported_s,
        ratio: forecast_s.likely / middle_s,
        inside: forecast_s.contains(middle_s),
        forecast_s,
    })
}

fn group(name: &str, speeds: &[&ComparedSpeed]) -> Option<Group> {
    let ratios: Vec<f64> = speeds.iter().map(|speed| speed.ratio).collect();
    let inside = speeds.iter().filter(|speed| speed.inside).count();
    Some(Group { name: name.to_owned(), agreement: Agreement::of(&ratios)?, inside })
}

fn groups(speeds: &[ComparedSpeed], key: impl Fn(&ComparedSpeed) -> &String) -> Vec<Group> {
    let mut by_key: BTreeMap<&String, Vec<&ComparedSpeed>> = BTreeMap::new();
    speeds.iter().for_each(|speed| by_key.entry(key(speed)).or_default().push(speed));
    by_key.into_iter().filter_map(|(name, speeds)| group(name, &speeds)).collect()
}

/// Standard deviations of a normal distribution that hold nine in ten.
const DEVIATIONS: f64 = 1.645;

fn left_out(speeds: &[ComparedSpeed]) -> Option<LeftOut> {
    let ratios = |of: &dyn Fn(&ComparedSpeed) -> bool| -> Vec<f64> {
        speeds.iter().filter(|speed| of(speed)).map(|speed| speed.ratio).collect()
    };
    let error = |corrected: &dyn Fn(&ComparedSpeed) -> f64| {
        Agreement::of(&speeds.iter().map(corrected).collect::<Vec<_>>()).map(|all| all.typical_error)
    };
    // The geometric mean of what other sources show of the same kind; 1 if they show nothing.
    let factor = |other: &dyn Fn(&ComparedSpeed) -> bool| {
        let logs: Vec<f64> = ratios(other).iter().map(|ratio| ratio.ln()).collect();
        if logs.is_empty() { 1.0 } else { (logs.iter().sum::<f64>() / logs.len() as f64).exp() }
    };
    let inside = speeds
        .iter()
        .filter(|speed| {
            let others = Agreement::of(&ratios(&|other| other.source != speed.source));
            let width = others.map_or(1.0, |others| others.typical_error.powf(DEVIATIONS));
            (1.0 / width..=width).contains(&speed.ratio)
        })
        .count();
    Some(LeftOut {
        plain: error(&|speed| speed.ratio)?,
        by_program: error(&|speed| {
            speed.ratio / factor(&|o| o.source != speed.source && o.program == speed.program)
        })?,
        by_card: error(&|speed| speed.ratio / factor(&|o| o.source != speed.source && o.card == speed.card))?,
        inside,
    })
}

fn memory(reports: &[Report]) -> MemoryAgreement {
    let mut found = MemoryAgreement::default();
    for report in reports {
        let Some(job) = &report.job else { continue };
        // Of what a program needs the card is no part, only whether it fits there.
        let card = report.gpu.map_or_else(|| Machine::from(&crate::gpu::GPUS[0]), Machine::from);
        let Ok(plan) = Plan::new(job, &card, report.program, &PlanOptions::default()) else { continue };
        if let Some(peak) = report.memory_bytes() {
            found.peaks += 1;
            found.covered += usize::from(peak.high <= plan.memory_bytes.high);
        }
        match report.row.memory_outcome {
            Some(MemoryOutcome::Oom | MemoryOutcome::Spills) => {
                found.failures += 1;
                found.called_fitting += usize::from(plan.verdict == Verdict::Fits);
            }
            Some(MemoryOutcome::Fits) => {
                found.successes += 1;
                found.called_too_large += usize::from(plan.verdict == Verdict::TooLarge);
            }
            None => {}
        }
    }
    found
}

impl fmt::Display for ReportComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["forecast over report", "n", "median", "spread", "typical error", "inside"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for group in self.all.iter().chain(&self.by_program).chain(&self.by_card) {
            let Agreement { reports, median, typical_error, spread } = group.agreement;
            let spread = if reports > 1 { format!("×{spread:.2}") } else { "–".to_owned() };
            rows.push(vec![
                group.name.clone(),
                reports.to_string(),
                format!("{median:.2}"),
                spread,
                format!("×{typical_error:.2}"),
                format!("{} of {reports}", group.inside),
            ]);
        }
        f.write_str(&aligned(&rows))?;
        if let Some(left) = &self.left_out {
            writeln!(
                f,
                "\neach source forecast from the others: typical error ×{:.2}; with a factor per \
                 program ×{:.2}, per card ×{:.2}; {} of {} inside",
                left.plain,
                left.by_program,
                left.by_card,
                left.inside,
                self.speeds.len()
            )?;
        }
        let MemoryAgreement { peaks, covered, failures, called_fitting, successes, called_too_large } =
            self.memory;
        writeln!(
            f,
            "memory: {covered} of {peaks} reported peaks at or below the upper end; of {failures} jobs that \
             ran out of memory, {called_fitting} were expected to fit; of {successes} that ran, \
             {called_too_large} were not"
        )
    }
}
