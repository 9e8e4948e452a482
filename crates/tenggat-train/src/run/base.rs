//! The frozen models of a run, stored as the job says.

use std::path::{Path, PathBuf};

use tenggat_models::qwen_image::transformer::{LoadOptions, ModulationStorage, Precision, Transformer};
use tenggat_models::qwen_image::vae::Vae;
use tenggat_models::qwen_image::{PromptEncoder, Scheduler};
use tenggat_models::weights::Quantisation;
use tenggat_tensor::DType;
use tenggat_tensor::ops::quantise::Format;

use super::{Error, Options, Result};
use crate::job::Job;

/// What is loaded from the model's folder.
pub(super) struct Base {
    pub model: Transformer,
    pub vae: Vae,
    pub text: PromptEncoder,
    pub scheduler: Scheduler,
}

/// Loads all parts; quantises those that the job wants quantised, or takes them from the folder that keeps quantised
/// models.
///
/// # Errors
/// A part cannot be read, or the recovery adapter is not there.
pub(super) fn load(job: &Job, options: &Options<'_>) -> Result<Base> {
    let (folder, device) = (options.model, options.device);
    let stored = |format, recovery| quantisation(format, recovery, options.quantised);
    let recovery = job.model.recovery_adapter.as_deref().map(adapter).transpose()?;
    let base = job.model.quantisation.map(|format| stored(format, recovery));
    let text = job.model.text_quantisation.map(|format| stored(format, None));
    Ok(Base {
        model: Transformer::load_with(
            &folder.join("transformer"),
            device,
            precision(base.is_some()),
            LoadOptions {
                quantisation: base.as_ref(),
                modulation: ModulationStorage::Resident,
                narrow_products: false,
                progress: None,
            },
        )?,
        vae: Vae::load(&folder.join("vae"), device, DType::F32)?,
        text: PromptEncoder::load_with(folder, device, precision(text.is_some()), text.as_ref())?,
        scheduler: Scheduler::load(&folder.join("scheduler"))?,
    })
}

/// Beside quantised matrices the others stay in bf16: they are small or keep what a recovery adapter was made for.
fn precision(quantised: bool) -> Precision {
    Precision { compute: DType::F32, weights: if quantised { DType::BF16 } else { DType::F32 } }
}

fn quantisation(format: Format, recovery: Option<PathBuf>, cache: Option<&Path>) -> Quantisation {
    Quantisation { format, recovery, cache: cache.map(Path::to_path_buf) }
}

fn adapter(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Job(format!(
        "the accuracy recovery adapter `{name}` is not on this machine; fetch the file and write its path after the \
         `|` of `qtype`"
    )))
}
