//! LoRAs given by their file or by the folder of their run, and the job that the folder keeps.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tenggat_train::job::Job;
use tenggat_train::run::LAST;

/// Name of the job in the folder of a run.
const JOB: &str = "config.yaml";

/// A LoRA file, and the job that it was trained by as far as that lies beside it.
pub struct Given {
    pub file: PathBuf,
    pub job: Option<Job>,
}

impl Given {
    /// A LoRA by its file, or by the folder of a run: its finished LoRA, else its newest.
    ///
    /// # Errors
    /// The folder has no LoRA.
    pub fn find(path: &Path) -> anyhow::Result<Given> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let job = job_in(folder);
        if !path.is_dir() {
            return Ok(Given { file: path.to_path_buf(), job });
        }
        let finished = job.as_ref().map(|job| folder.join(format!("{}.safetensors", job.name)));
        let newest = || Some(folder.join(&tenggat_runs::checkpoints(folder).first()?.file));
        let found = finished.into_iter().chain([folder.join(LAST)]).find(|file| file.is_file());
        match found.or_else(newest) {
            Some(file) => Ok(Given { file, job }),
            None => {
                bail!("{} has no LoRA; name a .safetensors file or the folder of a run", folder.display())
            }
        }
    }
}

/// The job of the run in this folder, if it is one of ours and can still be read.
fn job_in(folder: &Path) -> Option<Job> {
    let variable = |name: &str| std::env::var(name).ok();
    Job::from_file(&folder.join(JOB), None, &variable).ok().map(|(job, _)| job)
}

/// The model to use: the one given, else that of the LoRA's job.
///
/// # Errors
/// There is neither.
pub fn model<'a>(given: Option<&'a str>, lora: Option<&'a Given>) -> anyhow::Result<&'a str> {
    let of_run = lora.and_then(|lora| Some(lora.job.as_ref()?.model.name_or_path.as_str()));
    given.or(of_run).context("give a --model; no job of a run lies beside a --lora that names one")
}
