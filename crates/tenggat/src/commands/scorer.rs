//! A model with test pictures, on which LoRAs are measured.

use std::path::Path;

use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::{PromptEncoder, Scheduler};
use tenggat_models::transformer::{Precision, Transformer};
use tenggat_models::vae::Vae;
use tenggat_tensor::{DType, Device};
use tenggat_train::contest::evaluate::{Evaluation, Measures, evaluate};
use tenggat_train::measure::score::{HeldOut, Judge, Picture};

use super::model::load_lora;

/// Pictures measured at once.
const AT_ONCE: usize = 4;

/// What measuring needs.
pub struct Scorer {
    model: Transformer,
    vae: Vae,
    scheduler: Scheduler,
    held: Vec<HeldOut>,
}

impl Scorer {
    /// Loads the model in a folder and encodes the pictures with it.
    ///
    /// # Errors
    /// The model cannot be loaded, or the device failed.
    pub fn load(folder: &Path, device: &Device, pictures: &[Picture]) -> anyhow::Result<Scorer> {
        let precision = Precision::on(device, false);
        let vae = Vae::load(&folder.join("vae"), device, DType::F32)?;
        let held = {
            let text = PromptEncoder::load(folder, device, precision)?;
            HeldOut::encode(pictures, AT_ONCE, device, &vae, &text)?
        };
        let model = Transformer::load(&folder.join("transformer"), device, precision)?;
        let scheduler = Scheduler::load(&folder.join("scheduler"))?;
        Ok(Scorer { model, vae, scheduler, held })
    }

    /// A LoRA file as an adapter of the model.
    ///
    /// # Errors
    /// The file cannot be read, or does not fit the model.
    pub fn lora(&self, path: &Path) -> anyhow::Result<Lora> {
        load_lora(path, &self.model, 1.0)
    }

    /// Measures a LoRA, or the bare model; `tick` as for [`evaluate()`].
    ///
    /// # Errors
    /// The device failed.
    pub fn evaluate(
        &self,
        lora: Option<&Lora>,
        measures: Measures,
        tick: &mut dyn FnMut(u64),
    ) -> anyhow::Result<Evaluation> {
        let judge = Judge { model: &self.model, vae: &self.vae, scheduler: &self.scheduler };
        Ok(evaluate(judge, &self.held, lora, measures, tick)?)
    }
}
