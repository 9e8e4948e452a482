//! From an adapter on the device to a LoRA file.

use std::io;
use std::path::{Path, PathBuf};

use tenggat_models::lora::{Kind, Lora};

use tenggat_plan::Budget;

use super::Result;
use super::data::Prepared;
use super::resume::unix_s;
use super::state_file::{self, End, Progress, Tensors};
use super::training::State;
use crate::job::Job;
use crate::lora_file::{self, Info, Module};

/// Writes LoRA files of one run, and the state that it is gone on with.
pub(super) struct Saver<'a> {
    job: &'a Job,
    /// File of the state, if it is kept.
    state: Option<PathBuf>,
    /// What is trained on.
    data: String,
    /// Batches in an epoch.
    per_epoch: usize,
}

impl<'a> Saver<'a> {
    pub fn new(job: &'a Job, state: Option<PathBuf>, data: Option<&Prepared>) -> Self {
        let per_epoch = data.map_or(0, Prepared::per_epoch);
        Saver { job, state, data: data.map_or_else(String::new, Prepared::fingerprint), per_epoch }
    }

    /// Writes the state if it is kept. `end` is why the run is finished, if it is.
    ///
    /// # Errors
    /// The file cannot be written; the run need not end for that.
    pub fn save_state(
        &self,
        state: &State<'_>,
        budget: &Budget,
        now_s: f64,
        end: Option<End>,
    ) -> io::Result<()> {
        let Some(path) = &self.state else { return Ok(()) };
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
        state_file::write(path, &progress, &Tensors { parameters, optimiser, ema: state.ema.as_ref() })
    }

    /// Writes the adapter beside `path` and renames it, so that `path` is whole at every moment.
    pub fn save(&self, lora: &Lora, path: &Path, steps: u64) -> Result<()> {
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
        let info = Info { job: self.job, steps, epoch: batches / self.per_epoch.max(1) as u64 };
        Ok(lora_file::save(path, &modules, &info)?)
    }
}
