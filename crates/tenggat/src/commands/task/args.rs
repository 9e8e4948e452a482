//! What the container is told.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tenggat_train::contest::ModelType;
use tenggat_train::contest::container::{Roots, Task};
use tenggat_train::job::ErrorWeights;

use crate::events;
use crate::number::{MOST_RANK, learning_rate, number, whole};
use crate::terms::Terms;

#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Name of the task.
    #[arg(long)]
    pub task_id: String,
    /// Model: org/name, looked for as `<cache-root>/models/org--name`; a folder; or `mini`.
    #[arg(long)]
    pub model: String,
    /// Archive of images; `<cache-root>/datasets/<task>_tourn.zip` is tried first.
    #[arg(long)]
    pub dataset_zip: String,
    /// Kind of model: flux, z-image, qwen-image, ideogram4 or krea2. qwen-image is trained by tenggat, the
    /// others by ai-toolkit, which tenggat drives.
    #[arg(long)]
    pub model_type: ModelType,
    /// Folder of the results: `<checkpoints-root>/<task>/<this>`.
    #[arg(long)]
    pub expected_repo_name: String,
    /// Hours from the start of the container to its end; 0 means what the contest's rule gives for that many
    /// images.
    #[arg(long, value_name = "HOURS", allow_negative_numbers = true, value_parser = number(0.0, 1000.0))]
    pub hours_to_complete: f64,
    /// Word that stands for the new concept.
    #[arg(long)]
    pub trigger_word: Option<String>,
    /// Try everything that the task needs and train nothing: model, images, output folder, disk, trainer,
    /// hours. Says what would go wrong; the exit code is 1 if something would.
    #[arg(long)]
    pub rehearse: bool,
    /// What was downloaded beforehand; read only.
    #[arg(long, default_value = "/cache")]
    pub cache_root: PathBuf,
    /// What is uploaded at the end.
    #[arg(long, default_value = "/app/checkpoints")]
    pub checkpoints_root: PathBuf,
    /// Folder for unpacked images (default: one of this user's among the system's temporary files).
    #[arg(long)]
    pub work_root: Option<PathBuf>,
    /// Job file with ${...}, in place of the built-in one: a file of assets/contest in the sources.
    #[arg(long, value_name = "FILE")]
    pub preset: Option<PathBuf>,
    /// Long side of the pictures in pixels (default: the scorer's 1024; 128 for `mini`).
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..=8192))]
    pub long_side: Option<u16>,
    /// Rank, instead of the one worked out.
    #[arg(long, value_parser = whole::<usize>(1, MOST_RANK as u64))]
    pub rank: Option<usize>,
    /// Peak learning rate, instead of the one worked out.
    #[arg(long, allow_negative_numbers = true, value_parser = learning_rate)]
    pub lr: Option<f64>,
    /// Weights of the scorer's errors with captions and with the empty prompt: G.O.D d72aed9 (2025-12-12) has
    /// 0.25:0.75, notes on its rule of 2026-09-23 have 0.5:0.5.
    #[arg(long, value_name = "CAPTIONED:EMPTY", default_value_t)]
    pub weights: ErrorWeights,
    /// ai-toolkit's folder (default: AI_TOOLKIT, or the usual places).
    #[arg(long, value_name = "FOLDER")]
    pub trainer_dir: Option<PathBuf>,
    /// The Python that has ai-toolkit's packages (default: the one of its own `venv` or `.venv`, or python3).
    #[arg(long, value_name = "PROGRAM")]
    pub python: Option<PathBuf>,
    #[command(flatten)]
    pub terms: Terms,
    /// Print the events of the run to standard output, for programs; text for people goes to standard error.
    /// Of a driven trainer there are none.
    #[arg(long, value_name = "FORMAT")]
    pub events: Option<events::Format>,
}

impl TaskArgs {
    /// The task, its names checked.
    ///
    /// # Errors
    /// A name would lead out of its folder.
    pub fn task(&self) -> anyhow::Result<Task> {
        let task = Task {
            id: self.task_id.clone(),
            model: self.model.clone(),
            dataset: self.dataset_zip.clone(),
            repository: self.expected_repo_name.clone(),
        };
        task.check()?;
        Ok(task)
    }

    /// The folders of the container.
    ///
    /// # Errors
    /// There is no current folder to begin a path with.
    pub fn roots(&self) -> anyhow::Result<Roots> {
        Ok(Roots {
            cache: self.cache_root.clone(),
            checkpoints: std::path::absolute(&self.checkpoints_root).context("--checkpoints-root")?,
        })
    }
}
