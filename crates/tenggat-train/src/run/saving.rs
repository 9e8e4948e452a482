//! From an adapter on the device to a LoRA file, even where there is little disk space left.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use tenggat_models::lora::{Kind, Lora};
use tenggat_models::transformer::layer::Family;

use tenggat_plan::Budget;

use super::error::is_disk_full;
use super::folder::{self, RunFolder};
use super::found;
use super::lock::unix_s;
use super::names::LAST;
use super::state_file::{self, End, Progress, STATE, Tensors};
use super::trained::Trained;
use super::{Error, Result};
use crate::data::batch::Prepared;
use crate::job::Job;
use crate::lora::file::{self as lora_file, Info, Module};

/// Environment variable: folder for a finished LoRA that does not fit into its own.
const RESCUE: &str = "TENGGAT_RESCUE";

/// Writes the LoRA files and the checkpoints of one run.
pub(super) struct Saver<'a> {
    job: &'a Job,
    /// Whether the state is kept.
    keeps_state: bool,
    /// What is trained on.
    data: String,
    /// Batches in an epoch.
    per_epoch: usize,
    /// What the user should know of the last save.
    told: RefCell<Vec<String>>,
}

impl<'a> Saver<'a> {
    pub fn new(job: &'a Job, keeps_state: bool, data: Option<&Prepared>) -> Self {
        let per_epoch = data.map_or(0, Prepared::per_epoch);
        let data = data.map_or_else(String::new, Prepared::fingerprint);
        Saver { job, keeps_state, data, per_epoch, told: RefCell::default() }
    }

    /// What the user should know about the saves since the last call.
    pub fn told(&self) -> Vec<String> {
        self.told.take()
    }

    /// Writes the checkpoint, if the job keeps one. `end` is why the run is finished, if it is. On a full
    /// disk the previous checkpoint is deleted.
    ///
    /// # Errors
    /// The file cannot be written; the run need not end for that.
    pub fn save_state(
        &self,
        folder: &RunFolder,
        state: &Trained<'_>,
        budget: &Budget,
        now_s: f64,
        end: Option<End>,
    ) -> io::Result<()> {
        if !self.keeps_state {
            return Ok(());
        }
        let deadline_s = budget.deadline_s();
        let optimiser = state.trainer.optimiser();
        let progress = Progress {
            version: Progress::VERSION,
            job: self.job.text.clone(),
            lr: self.job.train.lr,
            rank: self.job.network.rank,
            seed: self.job.seed,
            data: self.data.clone(),
            steps: budget.steps_done(),
            progress: budget.progress(),
            optimiser_steps: optimiser.steps(),
            ema_steps: state.ema.as_ref().map(|ema| ema.steps()),
            spent_s: now_s,
            deadline_s,
            deadline_unix_s: deadline_s.map(|s| unix_s() + s - now_s),
            end,
        };
        let parameters = &state.trainer.lora().parameters;
        let tensors = Tensors { parameters, optimiser, ema: state.ema.as_ref() };
        let path = folder.file(STATE);
        match state_file::write(&path, &progress, &tensors) {
            Err(e) if is_disk_full(&e) && folder::give_up_previous_state(folder.path()) => {
                state_file::write(&path, &progress, &tensors)
            }
            done => done,
        }
    }

    /// Writes the adapter beside `path` and renames it, so that `path` is whole at every moment. A file there
    /// that is not ours or that is further along is kept under another name. On a full disk the previous
    /// checkpoint is deleted.
    ///
    /// # Errors
    /// The file cannot be written, or the device failed.
    pub fn save(&self, lora: &Lora, path: &Path, steps: u64) -> Result<()> {
        self.protect(path, steps)?;
        match self.write(lora, path, steps) {
            Err(e) if e.is_disk_full() && path.parent().is_some_and(folder::give_up_previous_state) => {
                self.write(lora, path, steps)
            }
            done => done,
        }
    }

    /// As [`Saver::save`] for the file that is delivered: as a last resort the checkpoint is deleted, with
    /// which the run could be continued, and then the LoRA goes to another folder. Returns where it is.
    ///
    /// # Errors
    /// There is no room anywhere, or the device failed.
    pub fn save_final(&self, lora: &Lora, path: &Path, steps: u64) -> Result<PathBuf> {
        let Err(error) = self.save(lora, path, steps) else { return Ok(path.to_path_buf()) };
        if !error.is_of_a_file() {
            return Err(error);
        }
        let bytes = (lora.parameters.len() * self.job.save.dtype.bytes()) as u64;
        let folder = path.parent().unwrap_or(Path::new("."));
        if error.is_disk_full() && folder::give_up_state(folder, bytes) {
            self.tell(format!("{error}; {STATE} was removed to make room for the LoRA"));
            if self.write(lora, path, steps).is_ok() {
                return Ok(path.to_path_buf());
            }
        }
        for other in rescue_folders(folder) {
            let rescued = free_name(&other, &format!("{}_{steps:09}", self.job.name));
            if self.write(lora, &rescued, steps).is_ok() {
                self.tell(format!("{error}; the LoRA is in {} instead", rescued.display()));
                return Ok(rescued);
            }
        }
        Err(error)
    }

    /// Gives the LoRA of this many steps the name that it is delivered under.
    ///
    /// # Errors
    /// The system's reason.
    pub fn deliver(&self, from: &Path, to: &Path, steps: u64) -> Result<()> {
        self.protect(to, steps)?;
        crate::files::atomic::link(from, to).map_err(|e| Error::file("write", to, e))
    }

    /// Moves aside a file that must not be replaced.
    fn protect(&self, path: &Path, steps: u64) -> Result<()> {
        if let Some(aside) = found::set_aside(path, steps)? {
            let (path, aside) = (path.display(), aside.display());
            self.tell(format!("{path} was written by another program or is ahead; it is now {aside}"));
        }
        Ok(())
    }

    fn tell(&self, text: String) {
        self.told.borrow_mut().push(text);
    }

    fn write(&self, lora: &Lora, path: &Path, steps: u64) -> Result<()> {
        let values = lora.parameters.to_f32()?;
        let rank = lora.layout.rank();
        let is_split = matches!(lora.layout.kind(), Kind::Kronecker { .. });
        let matrix = |at: usize, [rows, columns]: [usize; 2]| &values[at..at + rows * columns];
        let modules: Vec<Module<'_>> = lora
            .layout
            .modules()
            .iter()
            .map(|m| Module {
                name: &m.name,
                rank,
                input: m.input,
                output: m.output,
                split: is_split.then_some(m.a_shape),
                a: matrix(m.a, m.a_shape),
                b: matrix(m.b, m.b_shape),
            })
            .collect();
        let batches = steps * self.job.train.gradient_accumulation.max(1) as u64;
        let epoch = batches / self.per_epoch.max(1) as u64;
        let info = Info { family: Family::QwenImage, job: self.job, steps, epoch };
        Ok(lora_file::save(path, &modules, &info)?)
    }
}

/// Makes sure that a run that is finished has its two files, from a LoRA of it.
///
/// # Errors
/// They cannot be written.
pub(super) fn complete(job: &Job, source: &Path, steps: u64) -> Result<Vec<String>> {
    let saver = Saver::new(job, false, None);
    for name in [LAST.to_owned(), format!("{}.safetensors", job.name)] {
        let path = job.folder.join(name);
        let has = lora_file::Header::read(&path).ok().and_then(|header| header.step());
        let wanted = lora_file::Header::read(source).ok().and_then(|header| header.step());
        if path != source && has != wanted {
            saver.deliver(source, &path, steps)?;
        }
    }
    Ok(saver.told())
}

/// Folders for a LoRA that does not fit into the folder of its run.
fn rescue_folders(folder: &Path) -> Vec<PathBuf> {
    let asked = std::env::var_os(RESCUE).map(PathBuf::from);
    let beside = folder.parent().map(Path::to_path_buf);
    asked.into_iter().chain(beside).chain([std::env::temp_dir()]).collect()
}

/// An unused name in a folder.
fn free_name(folder: &Path, stem: &str) -> PathBuf {
    let first = folder.join(format!("{stem}.safetensors"));
    let others = (1..).map(|n| folder.join(format!("{stem}-{n}.safetensors")));
    std::iter::once(first).chain(others).find(|path| !path.exists()).unwrap_or_default()
}
