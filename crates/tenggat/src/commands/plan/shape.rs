//! What the command line says of a job, in place of its file or without one.

use std::path::Path;

use anyhow::{Context, ensure};
use tenggat_plan::{BucketShape, ControlImage, ModelProfile, PlanJob, Precision};
use tenggat_train::job::Job;
use tenggat_train::plan::job::{Planned, plan_job};

use super::args::ShapeArgs;
use super::facts::facts;
use super::outline;
use crate::commands::train::show_warnings;

/// A job to plan, from a file, the command line, or both.
pub struct Shaped {
    /// The job.
    pub job: PlanJob,
    /// Its name, for headings.
    pub name: String,
    /// What was guessed or left out.
    pub notes: Vec<String>,
    /// The job as tenggat would run it; `None` if it is of another model, or there is no file.
    pub own: Option<Job>,
}

/// Reads a job file as tenggat does, or, if it is of a model that tenggat does not train, as far as planning
/// needs.
///
/// # Errors
/// The file cannot be read or is no job; the command line is out of range.
pub fn shaped(path: Option<&Path>, args: &ShapeArgs) -> anyhow::Result<Shaped> {
    let mut shaped = match path {
        Some(path) => from_file(path)?,
        None => {
            let job = PlanJob { steps: None, text_tokens: 128, ..PlanJob::qwen_image() };
            Shaped { job, name: String::new(), notes: Vec::new(), own: None }
        }
    };
    override_by(&mut shaped, args)?;
    if shaped.name.is_empty() {
        shaped.name = shaped.job.model.name.clone().into_owned();
    }
    Ok(shaped)
}

fn from_file(path: &Path) -> anyhow::Result<Shaped> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the job {}", path.display()))?;
    if let Some((job, name, notes)) = outline::of_another_model(&text) {
        return Ok(Shaped { job, name, notes, own: None });
    }
    let variable = |name: &str| std::env::var(name).ok();
    let (own, warnings) = Job::from_file(path, None, &variable)?;
    show_warnings(&warnings);
    let (facts, model) = facts(&own.model.name_or_path)?;
    let Planned { mut job, mut notes } = plan_job(&own, &facts, Precision::Bf16);
    notes.extend(model);
    outline::for_others(&text, &mut job);
    Ok(Shaped { job, name: own.name.clone(), notes, own: Some(own) })
}

fn override_by(shaped: &mut Shaped, args: &ShapeArgs) -> anyhow::Result<()> {
    ensure!(args.rank != Some(0), "--rank 0: expected 1 or more");
    ensure!(args.steps != Some(0), "--steps 0: expected 1 or more");
    ensure!(args.batch != Some(0), "--batch 0: expected 1 or more");
    ensure!(args.accumulation != Some(0), "--accumulation 0: expected 1 or more");
    if let Some(name) = &args.model {
        shaped.job.model = ModelProfile::find(name)?.clone();
        if !shaped.job.model.is_trained_here() {
            shaped.own = None;
        }
    }
    let job = &mut shaped.job;
    job.rank = args.rank.unwrap_or(job.rank);
    job.steps = args.steps.or(job.steps);
    job.batch = args.batch.unwrap_or(job.batch);
    job.accumulation = args.accumulation.unwrap_or(job.accumulation);
    if let Some(precision) = args.precision {
        job.ara_rank = job.ara_rank.filter(|_| precision == job.precision);
        job.precision = precision;
    }
    if let Some(controls) = args.controls {
        ensure!(controls <= 10, "--controls {controls}: expected 0 to 10 images");
        job.controls = vec![ControlImage::AsImage; controls];
    }
    let elsewhere = &mut job.elsewhere;
    elsewhere.targets = args.targets.or(elsewhere.targets);
    elsewhere.compiled = if args.compile { Some(true) } else { elsewhere.compiled };
    elsewhere.checkpointed = if args.no_checkpointing { Some(false) } else { elsewhere.checkpointed };
    elsewhere.swapped_blocks = args.swap.unwrap_or(elsewhere.swapped_blocks);
    elsewhere.on_windows |= args.windows;
    let layers = job.model.layers();
    ensure!(
        job.elsewhere.swapped_blocks <= layers,
        "--swap {}: {} has {layers} blocks",
        job.elsewhere.swapped_blocks,
        job.model.name
    );
    resize(shaped, &args.resolution)
}

/// The sizes of `--resolution`: squares, or the job's pictures in buckets of those squares' areas where they
/// are known.
fn resize(shaped: &mut Shaped, resolution: &[[u64; 2]]) -> anyhow::Result<()> {
    if resolution.is_empty() {
        return Ok(());
    }
    let sizes = resolution.to_vec();
    let squares = sizes.iter().all(|[width, height]| width == height);
    if let (true, Some(own)) = (squares, &mut shaped.own) {
        let sides: Vec<usize> = sizes.iter().map(|[side, _]| *side as usize).collect();
        own.datasets.iter_mut().for_each(|set| set.resolutions.clone_from(&sides));
        let (facts, _) = facts(&own.model.name_or_path)?;
        let planned = plan_job(own, &facts, Precision::Bf16).job;
        (shaped.job.buckets, shaped.job.text_tokens) = (planned.buckets, planned.text_tokens);
        return Ok(());
    }
    let pictures = shaped.job.buckets.iter().map(|bucket| bucket.pictures).max().unwrap_or(20);
    let bucket = |[width_px, height_px]: [u64; 2]| BucketShape { width_px, height_px, share: 1.0, pictures };
    shaped.job.buckets = sizes.into_iter().map(bucket).collect();
    Ok(())
}
