//! One public report of a training speed or of a peak of memory, as the table of reports has it.

use serde::{Deserialize, Serialize};

use crate::cost::{Machine, Precision};
use crate::forecast::{mean_step_s, peak_bytes};
use crate::gpu::{GPUS, Gpu};
use crate::job::{BucketShape, ControlImage, Elsewhere, PlanJob};
use crate::model::ModelProfile;
use crate::program::Program;
use crate::quantity::Span;

/// How far a report can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Speed not compared: too little is said, or it is of a case that is not forecast. The note says why.
    Context,
    /// Some settings are assumed.
    Low,
    /// A document or a post, settings known.
    Med,
    /// Measured with its settings beside it.
    High,
}

/// What is said of memory beside, or in place of, a peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryOutcome {
    /// It ran.
    Fits,
    /// It ran by way of the host's memory, many times slower.
    Spills,
    /// It did not run.
    Oom,
}

/// A line of the table. Empty cells are unknown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// A name for it.
    pub id: String,
    /// Where it stands.
    pub source: String,
    /// When it was written.
    pub date: String,
    /// Program, as `Program` reads it.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Model, as `ModelProfile::find` knows it.
    pub model: String,
    /// Card, as `Gpu::find` knows it.
    pub gpu: String,
    /// Operating system.
    pub os: String,
    /// Sizes of the images, `512x512;1024x1024`, each in equal shares of the steps.
    pub sizes: String,
    /// Sizes of the control images, all of them in every step.
    pub controls: String,
    /// Images per batch.
    pub batch: Option<u64>,
    /// Batches per step.
    pub accumulation: Option<u64>,
    /// Rank.
    pub rank: Option<u64>,
    /// Storage of the frozen weights.
    pub precision: String,
    /// Layers that carry an adapter, as `Targets` reads them.
    pub targets: String,
    /// Text tokens, where they are not as the model usually has them.
    pub text_tokens: Option<u64>,
    /// Whether it was compiled: `yes` or `no`.
    pub compiled: String,
    /// Whether blocks were recomputed: `yes` or `no`.
    pub checkpointed: String,
    /// Blocks fetched from the host.
    pub swapped_blocks: Option<u64>,
    /// Seconds per step, lower end.
    pub step_s_low: Option<f64>,
    /// Seconds per step, upper end.
    pub step_s_high: Option<f64>,
    /// Peak of memory in GB, lower end.
    pub memory_gb_low: Option<f64>,
    /// Peak of memory in GB, upper end.
    pub memory_gb_high: Option<f64>,
    /// What is said of memory.
    pub memory_outcome: Option<MemoryOutcome>,
    /// How far to trust it.
    pub trust: Trust,
    /// What was assumed, and what is unusual.
    pub note: String,
}

/// A table of reports that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the reports: {problem}")]
pub struct ReportError {
    /// Line of the file, the heading being the first.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// A report.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The line as it stands.
    pub row: Row,
    /// Who trained.
    pub program: Program,
    /// The card, if it is said.
    pub gpu: Option<&'static Gpu>,
    /// The job, if enough is said of it to forecast it.
    pub job: Option<PlanJob>,
}

/// Rank and caption length where they are not said.
const USUAL_RANK: u64 = 16;
const USUAL_TEXT_TOKENS: u64 = 128;

impl Report {
    /// Reads a table of reports: comma-separated, with the columns of [`Row`] in its first line.
    ///
    /// # Errors
    /// [`ReportError`] at the first line that lacks a column or has a value that is not understood.
    pub fn read_all(text: &str) -> Result<Vec<Self>, ReportError> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
        let mut reports = Vec::new();
        for (at, row) in reader.deserialize::<Row>().enumerate() {
            let line = at as u64 + 2;
            let row = row.map_err(|e| ReportError { line, problem: e.to_string() })?;
            reports.push(Self::new(row).map_err(|problem| ReportError { line, problem })?);
        }
        Ok(reports)
    }

    /// Reports as a table that [`read_all`](Self::read_all) reads.
    pub fn write_all(reports: &[Self]) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for report in reports {
            // Writing to memory does not fail, and rows have no nested fields.
            let _ = writer.serialize(&report.row);
        }
        writer.into_inner().map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A report made of its row.
    ///
    /// # Errors
    /// What is not understood in the row.
    pub fn new(row: Row) -> Result<Self, String> {
        let program = row.program.parse::<Program>().map_err(|e| e.to_string())?;
        // Processors, and cards that the catalogue does not have, are known by their name alone.
        let gpu = Gpu::find(&row.gpu).ok();
        let job = job(&row)?;
        Ok(Self { row, program, gpu, job })
    }

    /// Whether it is of the card or processor of that name.
    pub fn is_of(&self, machine: &str) -> bool {
        self.gpu.map_or(self.row.gpu.as_str(), |gpu| gpu.name.as_ref()).eq_ignore_ascii_case(machine)
    }

    /// The reported seconds per step.
    pub fn step_s(&self) -> Option<Span> {
        let (low, high) = (self.row.step_s_low?, self.row.step_s_high?);
        (low > 0.0 && high >= low).then_some(Span { low, high })
    }

    /// The middle of the reported seconds per step: the geometric one.
    pub fn middle_step_s(&self) -> Option<f64> {
        self.step_s().map(|span| (span.low * span.high).sqrt())
    }

    /// The reported peak of memory in bytes. Programs print GiB and call them GB, so a GB is taken for 2³⁰
    /// bytes.
    pub fn memory_bytes(&self) -> Option<Span> {
        let (low, high) = (self.row.memory_gb_low?, self.row.memory_gb_high?);
        Some(Span { low: low * GIB, high: high * GIB })
    }

    /// Forecast seconds per step, where it is compared: size, card and model are known.
    pub fn forecast_step_s(&self) -> Option<f64> {
        let (job, gpu, _) = (self.job.as_ref()?, self.gpu?, self.step_s()?);
        (self.row.trust > Trust::Context).then(|| mean_step_s(job, &Machine::from(gpu), self.program))
    }

    /// Forecast over reported seconds per step.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.forecast_step_s()? / self.middle_step_s()?)
    }

    /// Forecast peak of memory in bytes, where one is reported or something is said of it.
    pub fn forecast_memory_bytes(&self) -> Option<f64> {
        let job = self.job.as_ref()?;
        if self.row.memory_gb_low.is_none() && self.row.memory_outcome.is_none() {
            return None;
        }
        let machine = Machine::from(self.gpu.unwrap_or(&GPUS[0]));
        Some(peak_bytes(job, &machine, self.program))
    }
}

const GIB: f64 = 1_073_741_824.0;

/// `512x768;1024x1024`.
fn sizes(text: &str) -> Result<Vec<[u64; 2]>, String> {
    text.split(';').map(str::trim).filter(|size| !size.is_empty()).map(size).collect()
}

fn size(text: &str) -> Result<[u64; 2], String> {
    let wrong = || format!("`{text}` is not a size; write 1024x1024");
    let (width, height) = text.split_once(['x', '×']).ok_or_else(wrong)?;
    let side = |text: &str| text.trim().parse::<u64>().ok().filter(|side| (16..=8192).contains(side));
    Ok([side(width).ok_or_else(wrong)?, side(height).ok_or_else(wrong)?])
}

fn answer(text: &str) -> Result<Option<bool>, String> {
    match text {
        "" => Ok(None),
        "yes" => Ok(Some(true)),
        "no" => Ok(Some(false)),
        other => Err(format!("`{other}`: expected yes, no or nothing")),
    }
}

fn job(row: &Row) -> Result<Option<PlanJob>, String> {
    let (sizes, controls) = (sizes(&row.sizes)?, sizes(&row.controls)?);
    let Ok(model) = ModelProfile::find(&row.model) else { return Ok(None) };
    if sizes.is_empty() || row.precision.is_empty() {
        return Ok(None);
    }
    let bucket = |[width_px, height_px]: &[u64; 2]| BucketShape {
        width_px: *width_px,
        height_px: *height_px,
        share: 1.0,
        pictures: 20,
    };
    let mut model = model.clone();
    if row.text_tokens.is_some() {
        model.padded_text_tokens = None;
    }
    let precision = row.precision.parse::<Precision>().map_err(|e| e.to_string())?;
    let sized =
        |[width_px, height_px]: &[u64; 2]| ControlImage::Sized { width_px: *width_px, height_px: *height_px };
    let targets = match row.targets.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|e: crate::model::UnknownTargets| e.to_string())?),
    };
    Ok(Some(PlanJob {
        model,
        buckets: sizes.iter().map(bucket).collect(),
        controls: controls.iter().map(sized).collect(),
        batch: row.batch.unwrap_or(1),
        accumulation: row.accumulation.unwrap_or(1),
        rank: row.rank.unwrap_or(USUAL_RANK),
        text_tokens: row.text_tokens.unwrap_or(USUAL_TEXT_TOKENS),
        precision,
        ara_rank: matches!(precision, Precision::Uint(..4)).then_some(16),
        elsewhere: Elsewhere {
            targets,
            compiled: answer(&row.compiled)?,
            checkpointed: answer(&row.checkpointed)?,
            swapped_blocks: row.swapped_blocks.unwrap_or(0),
            captions_encoded: false,
            on_windows: row.os.eq_ignore_ascii_case("windows"),
        },
        ..PlanJob::qwen_image()
    }))
}
