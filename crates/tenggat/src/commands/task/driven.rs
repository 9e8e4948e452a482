//! A task of a kind of model that our engine does not train: ai-toolkit does, inside the task's hours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use tenggat_drive::lora::{self, ModelKeys};
use tenggat_drive::{Installation, Options, OtherJob, ToolkitJob};
use tenggat_plan::WallClock;
use tenggat_train::contest::work::Work;
use tenggat_train::contest::{HoldOut, ModelType, Split};
use tenggat_train::run::{LAST, Stop};

use super::setup::{Setup, delivered_rank, keys, prepare};
use crate::commands::drive::{Told, conclude, listen, shown};
use crate::hooks::Hooks;
use crate::output::{say, warning};

/// The job, unless another is given.
const PRESET: &str = include_str!("../../../../../assets/contest/driven.yaml");
/// Rank and learning rate of the contest's own jobs; not measured.
const RANK: usize = 32;
const LR: f64 = 1e-4;

/// Trains until shortly before the end.
///
/// # Errors
/// The model, the trainer or the pictures are not there, or no LoRA came of it.
pub fn train(setup: &Setup<'_>, clock: WallClock, hooks: &mut Hooks) -> anyhow::Result<()> {
    let signals = listen()?;
    let model = Arc::new(keys(setup)?);
    deliver_unchanging(&setup.output, &model)?;
    missing(setup)?;
    let installation = installation(setup)?;
    let work = Work::open(setup.args.work_root.as_deref(), setup.task)?;
    work.remark.iter().for_each(|remark| warning!("{remark}"));
    let pictures = prepare(setup, &work, HoldOut::None, &Stop::default())?;
    anyhow::ensure!(!signals.stop.load(Ordering::Relaxed), "interrupted before the training began");
    let job = job(setup, &work, &pictures)?;
    let limited = setup.limited(clock, setup.hours(pictures.pictures.0));
    let deadline_s = limited.deadline_s.context("a task has an end")?;
    let options = Options {
        installation,
        clock: &limited.clock,
        deadline_s,
        deadline_is_moment: true,
        fill: true,
        margin_s: None,
        start_over: false,
        other_job: OtherJob::GoOn,
        model: Some(model),
        stop: &signals.stop,
        save: Some(&signals.save),
    };
    hooks.moved(deadline_s);
    let told = Told { program: "task", folder: &job.folder, limited: &limited, stop: &signals.stop };
    let driven = shown(&told, hooks, |show| Ok(tenggat_drive::drive(&job, &options, show)?))?;
    conclude(&driven);
    // What is uploaded at the end is the LoRA; a task that was interrupted may be started again.
    if !signals.stop.load(Ordering::Relaxed) {
        tidy(&job)?;
    }
    Ok(())
}

/// The trainer.
///
/// # Errors
/// It is in none of the usual places.
pub fn installation(setup: &Setup<'_>) -> anyhow::Result<Installation> {
    Installation::find(setup.args.trainer_dir.as_deref(), setup.args.python.as_deref())
        .map_err(|text| anyhow::anyhow!("{} is trained by ai-toolkit: {text}", setup.kind.name()))
}

/// Names the first part of the model that is not there.
///
/// # Errors
/// There is one.
fn missing(setup: &Setup<'_>) -> anyhow::Result<()> {
    for part in setup.kind.parts(&setup.model, setup.roots) {
        anyhow::ensure!(
            part.path.exists(),
            "the {} of {} is not in {}; the container's cache should hold it",
            part.what,
            setup.kind.name(),
            part.path.display()
        );
    }
    Ok(())
}

/// Before anything is opened that may be broken: whatever happens from here on, there is a LoRA, which the
/// scorer takes for the bare model. One that is there already stays.
fn deliver_unchanging(output: &Path, model: &ModelKeys) -> anyhow::Result<()> {
    let last = output.join(LAST);
    if lora::check(&last).is_ok() {
        return Ok(());
    }
    let bytes = model.unchanging().context("the model has no layer of attention that a LoRA could be for")?;
    fs::create_dir_all(output).with_context(|| format!("cannot make the folder {}", output.display()))?;
    let file = tempfile::NamedTempFile::new_in(output)
        .with_context(|| format!("cannot write to {}", output.display()))?;
    fs::write(file.path(), bytes).with_context(|| format!("cannot write {}", file.path().display()))?;
    lora::publish(file.path(), &last).with_context(|| format!("cannot write {}", last.display()))?;
    Ok(())
}

/// The job that ai-toolkit is given.
///
/// # Errors
/// The preset cannot be read, makes no sense or delivers elsewhere, or the work folder cannot be written to.
pub fn job(setup: &Setup<'_>, work: &Work, pictures: &Split) -> anyhow::Result<ToolkitJob> {
    let preset = match &setup.args.preset {
        Some(path) => path.clone(),
        None => {
            let path = work.path().join("driven.yaml");
            fs::write(&path, PRESET).with_context(|| format!("cannot write {}", path.display()))?;
            path
        }
    };
    let rank = setup.args.rank.unwrap_or(RANK).max(delivered_rank(&setup.output));
    let lr = setup.args.lr.unwrap_or(LR);
    say!("{:<14} rank {rank}, batch 1, learning rate {lr:.1e}, trained by ai-toolkit", "choices");
    let variable = |name: &str| value(setup, pictures, (rank, lr), name);
    let job = ToolkitJob::read(&preset, None, &variable)?;
    // What is not delivered is removed from there at the end.
    anyhow::ensure!(
        job.folder == setup.output,
        "{}: its results would go to {}, and the contest takes them from {}; write `name: ${{REPOSITORY}}` and \
         `training_folder: ${{OUT}}`",
        preset.display(),
        job.folder.display(),
        setup.output.display()
    );
    Ok(job)
}

/// Values of the preset's variables, quoted as YAML.
fn value(setup: &Setup<'_>, pictures: &Split, (rank, lr): (usize, f64), name: &str) -> Option<String> {
    let text = |text: &str| serde_json::to_string(text).ok();
    let path = |path: PathBuf| text(&path.display().to_string());
    let Setup { args, task, roots, kind, model, .. } = setup;
    let trigger = args.trigger_word.as_deref().filter(|_| pictures.trigger_in_captions);
    match name {
        "REPOSITORY" => text(&task.repository),
        "OUT" => path(roots.checkpoints.join(&task.id)),
        "DATA" => path(pictures.train.clone()),
        "TRIGGER" => text(trigger.unwrap_or_default()),
        "SIDE" => Some(setup.side.to_string()),
        "RANK" => Some(rank.to_string()),
        "LR" => Some(format!("{lr:.1e}")),
        "EMPTY" => Some(args.weights.empty().to_string()),
        "MODEL" => path(model.clone()),
        "ARCH" => text(kind.arch()),
        "ASSISTANT" => kind.training_adapter(roots, task).map_or(Some("null".into()), path),
        "MODEL_KWARGS" => serde_json::to_string(&model_kwargs(setup)).ok(),
        other => std::env::var(other).ok(),
    }
}

/// Where ai-toolkit finds what does not lie in the model's folder. Source: its
/// `extensions_built_in/diffusion_models/{krea2/krea2,ideogram4/ideogram4}.py`.
fn model_kwargs(setup: &Setup<'_>) -> serde_json::Map<String, serde_json::Value> {
    let mut kwargs = serde_json::Map::new();
    let mut put = |key: &str, path: &Path| kwargs.insert(key.into(), path.display().to_string().into());
    if let Some(encoder) = setup.kind.text_encoder(setup.roots) {
        put("text_encoder_path", &encoder);
    }
    if setup.kind == ModelType::Krea2 {
        put("vae_path", &setup.model);
        let weights = setup.kind.weights(&setup.model, setup.task);
        if let Some(name) = weights.as_deref().and_then(Path::file_name) {
            put("checkpoint_filename", Path::new(name));
        }
    }
    kwargs
}

/// Leaves what is uploaded: the LoRA and the job.
fn tidy(job: &ToolkitJob) -> anyhow::Result<()> {
    let keep = [LAST, "config.yaml", "metrics.jsonl"];
    for entry in fs::read_dir(&job.folder)?.flatten() {
        let name = entry.file_name();
        if keep.iter().any(|kept| name == *kept) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
