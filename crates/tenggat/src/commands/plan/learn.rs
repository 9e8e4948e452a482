//! `tenggat plan learn`: the speed that logs show, stored for later plans.

use std::path::Path;

use anyhow::{Context, bail};
use jiff::Zoned;
use tenggat_plan::{BucketShape, ControlImage, Gpu, PlanJob, Program, Report, Row, Span, Trust, two_digits};

use super::args::LearnArgs;
use super::observed::Observed;
use super::shape::{Shaped, shaped};
use super::{machines, measured};
use crate::output::{self, say};
use crate::processor;

/// Fewest steps that a speed is learnt from.
const FEWEST_STEPS: u64 = 5;

/// Reads logs, keeps their speeds, and prints rows that can be sent to us.
pub fn learn(args: &LearnArgs) -> anyhow::Result<()> {
    let mut learnt = Vec::new();
    for log in &args.logs {
        let report = report(log, args).with_context(|| log.display().to_string())?;
        say!("{}", told(log, &report));
        learnt.push(report);
    }
    let path = measured::keep(&learnt)?;
    say!("stored in {}; plans for the same card and program use it", path.display());
    say!("");
    say!("A row for the table of reports, if you want to share it (it names none of your paths):");
    say!("");
    output::product(&Report::write_all(&learnt))
}

fn report(log: &Path, args: &LearnArgs) -> anyhow::Result<Report> {
    let observed = Observed::read(log)?;
    if observed.done < FEWEST_STEPS {
        bail!("the log shows only {} steps; at least {FEWEST_STEPS} are needed", observed.done);
    }
    let (program, version) = program(args.trainer.as_deref(), observed.program)?;
    let config = if log.is_dir() { log.join("config.yaml") } else { log.with_file_name("config.yaml") };
    let beside = config.is_file().then_some(config);
    let job = args.job.clone().or(beside);
    if job.is_none() && args.shape.resolution.is_empty() {
        bail!("nothing says what was trained; give --job, or --resolution, --rank and --precision");
    }
    let Shaped { job, .. } = shaped(job.as_deref(), &args.shape)?;
    let card = card(args.gpu.as_deref(), &observed)?;
    let row = row(&job, program, version, &card, &observed);
    Report::new(row).map_err(anyhow::Error::msg)
}

/// The program that ran, by the command line or the look of its log, and its version.
fn program(given: Option<&str>, seen: Option<Program>) -> anyhow::Result<(Program, String)> {
    let version = given.and_then(|text| text.split_once('@')).map_or("", |(_, version)| version).to_owned();
    match (given, seen) {
        (Some(text), _) => Ok((text.parse()?, version)),
        (None, Some(program)) => Ok((program, version)),
        (None, None) => bail!("the log does not show which program wrote it; give --trainer"),
    }
}

/// Name of the card that it ran on: given, or named in the log.
fn card(given: Option<&str>, observed: &Observed) -> anyhow::Result<String> {
    match given {
        Some(machines::CPU) => Ok(processor::name()),
        Some(text) if Gpu::is_description(text) => Ok(Gpu::described(text)?.name.into_owned()),
        Some(name) => Ok(Gpu::find(name)?.name.clone().into_owned()),
        None => observed.card.clone().context("the log does not name the card it ran on; give --gpu"),
    }
}

fn row(job: &PlanJob, program: Program, version: String, card: &str, observed: &Observed) -> Row {
    let size = |bucket: &BucketShape| format!("{}x{}", bucket.width_px, bucket.height_px);
    let mut sizes: Vec<String> = job.buckets.iter().map(size).collect();
    sizes.dedup();
    let control = |control: &ControlImage| match *control {
        ControlImage::AsImage => job.buckets.first().map(size).unwrap_or_default(),
        ControlImage::Sized { width_px, height_px } => format!("{width_px}x{height_px}"),
    };
    let step = program.profile().zip(job.buckets.first()).map(|(profile, b)| job.program_step(profile, b));
    let answer = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let sizes = sizes.join(";");
    let Span { low, high } = Span::exactly(round(observed.steady_s));
    Row {
        id: format!(
            "measured {program} {} {card} {sizes} rank {} {}",
            job.model.name, job.rank, job.precision
        )
        .replace(' ', "-"),
        source: "measured by a user".to_owned(),
        date: Zoned::now().date().to_string(),
        program: program.to_string(),
        version,
        model: job.model.name.clone().into_owned(),
        gpu: card.to_owned(),
        os: if job.elsewhere.on_windows { "Windows" } else { std::env::consts::OS }.to_owned(),
        sizes,
        controls: job.controls.iter().map(control).collect::<Vec<_>>().join(";"),
        batch: Some(job.batch),
        accumulation: Some(job.accumulation),
        rank: Some(job.rank),
        precision: job.precision.to_string(),
        targets: step.map_or(String::new(), |step| step.targets.to_string()),
        text_tokens: None,
        compiled: step.map_or(String::new(), |step| answer(step.compiled)),
        checkpointed: step.map_or(String::new(), |step| answer(step.checkpointed)),
        swapped_blocks: Some(job.elsewhere.swapped_blocks).filter(|blocks| *blocks > 0),
        step_s_low: Some(low),
        step_s_high: Some(high),
        memory_gb_low: None,
        memory_gb_high: None,
        memory_outcome: None,
        trust: Trust::High,
        note: format!("{} steps", observed.done),
    }
}

/// Three digits: what a clock of whole seconds can tell.
fn round(seconds: f64) -> f64 {
    let scale = 10f64.powi(2 - seconds.log10().floor() as i32);
    (seconds * scale).round() / scale
}

fn told(log: &Path, report: &Report) -> String {
    let row = &report.row;
    let step_s = report.middle_step_s().unwrap_or(0.0);
    let forecast = report.forecast_step_s().map_or(String::new(), |forecast_s| {
        format!(", forecast {} s: {:.2} of it", two_digits(forecast_s), forecast_s / step_s)
    });
    format!(
        "{}: {} by {} on {}, {} rank {}, {}: {step_s} s a step{forecast}",
        log.display(),
        row.model,
        row.program,
        row.gpu,
        row.sizes,
        row.rank.unwrap_or(0),
        row.precision
    )
}
