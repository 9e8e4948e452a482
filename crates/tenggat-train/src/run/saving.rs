//! From an adapter on the device to a LoRA file.

use std::path::Path;

use tenggat_models::lora::Lora;

use super::Result;
use crate::job::Job;
use crate::lora_file::{self, Info, Module};

/// Writes LoRA files of one run.
pub(super) struct Saver<'a> {
    job: &'a Job,
}

impl<'a> Saver<'a> {
    pub fn new(job: &'a Job) -> Self {
        Saver { job }
    }

    /// Writes the adapter beside `path` and renames it, so that `path` is whole at every moment.
    pub fn save(&self, lora: &Lora, path: &Path, steps: u64) -> Result<()> {
        let values = lora.parameters.to_f32()?;
        let rank = lora.layout.rank();
        let modules: Vec<Module<'_>> = lora
            .layout
            .modules()
            .iter()
            .map(|m| Module {
                name: &m.name,
                rank,
                input: m.input,
                output: m.output,
                a: &values[m.a..m.a + rank * m.input],
                b: &values[m.b..m.b + m.output * rank],
            })
            .collect();
        let info = Info { job: self.job, steps };
        Ok(lora_file::save(path, &modules, &info)?)
    }
}
