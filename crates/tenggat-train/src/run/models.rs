//! The frozen models of a run, stored as the job says.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use tenggat_models::qwen_image::{PromptEncoder, Scheduler};
use tenggat_models::transformer::{Config, LoadOptions, ModulationStorage, Precision, Transformer};
use tenggat_models::vae::Vae;
use tenggat_models::weights::Quantisation;
use tenggat_tensor::{DType, weight};

use super::event::Event;
use super::options::Options;
use super::{Error, Result, memory, out_of_memory};
use crate::job::{Job, Qtype};
use crate::measure::score::Judge;
use crate::outcome::generator::Generator;
use crate::plan::job as planned;

/// What a run needs of the frozen models from start to end.
pub(super) struct Models {
    pub transformer: Transformer,
    pub vae: Vae,
    pub scheduler: Scheduler,
    /// Steps whose modulation is prepared together; `None` if it is part of the step.
    pub modulation_steps: Option<u64>,
}

impl Models {
    /// What measures on held-out images.
    pub fn judge(&self) -> Judge<'_> {
        Judge { model: &self.transformer, vae: &self.vae, scheduler: &self.scheduler }
    }

    /// What generates samples.
    pub fn generator(&self) -> Generator<'_> {
        Generator { model: &self.transformer, vae: &self.vae, scheduler: &self.scheduler }
    }
}

/// Loads all parts, the text encoder apart, which is needed only to encode; quantises those that the job
/// wants quantised, or takes them from the folder that keeps quantised models.
///
/// # Errors
/// A part cannot be read, or the recovery adapter is missing.
pub(super) fn load(
    job: &Job,
    options: &Options<'_>,
    show: &mut dyn FnMut(Event),
) -> Result<(Models, PromptEncoder)> {
    let (folder, device) = (options.model, options.device);
    let interrupt = options.stop.interrupt();
    let stored = |format, recovery| quantisation(format, recovery, options.quantised);
    let recovery = job.model.recovery_adapter.as_deref().map(adapter).transpose()?;
    let base = job.model.quantisation.map(|format| stored(format, recovery));
    // Beside quantised matrices the others stay in bf16: they are small or keep what a recovery adapter was
    // made for. Elsewhere 32-bit products are the faster ones.
    let bf16_products = job.train.bf16 && weight::packs(DType::BF16);
    let text = job.model.text_quantisation.map(|format| stored(format, None));
    let weights = folder.join("transformer");
    let precision = Precision::on(device, base.is_some() || bf16_products);
    let config = Config::read(&weights)?;
    let modulation_steps = memory::modulation_steps(job, &config, precision, options)?;
    let modulation = match modulation_steps {
        Some(_) => ModulationStorage::Streamed,
        None => ModulationStorage::Resident,
    };
    let offloaded = job.model.offloaded_share * config.blocks() as f64;
    let from_files = base.is_some() && options.quantised.is_some();
    if offloaded > 0.0 && !from_files {
        let text = "`layer_offloading` has no effect: only quantised weights can be read from their file \
            block by block";
        show(Event::Warning(text.into()));
    }
    if job.model.fp8_products && !device.fp8_products() {
        let text = "`fp8_products` has no effect: this device does not multiply 8-bit floats";
        show(Event::Warning(text.into()));
    }
    let show = RefCell::new(show);
    let progress = |done, total| (show.borrow_mut())(Event::Quantised { done, total });
    let load = |offloaded_blocks| {
        let options = LoadOptions {
            quantisation: base.as_ref(),
            modulation,
            bf16_products,
            fp8_products: job.model.fp8_products,
            offloaded_blocks,
            progress: Some(&progress),
            interrupt: Some(interrupt),
        };
        Transformer::load_with(&weights, device, precision, options)
    };
    let warn = |text: String| (show.borrow_mut())(Event::Warning(text));
    let mut offloaded_blocks = offloaded.ceil() as usize;
    let transformer = loop {
        match load(offloaded_blocks) {
            Err(e) if e.is_out_of_memory() && from_files && offloaded_blocks < config.blocks() => {
                offloaded_blocks += out_of_memory::some_blocks(config.num_layers);
                offloaded_blocks = offloaded_blocks.min(config.num_layers);
                device.trim();
                warn(format!(
                    "the GPU has no room for the model; {}",
                    out_of_memory::offloaded(offloaded_blocks)
                ));
            }
            result => break result?,
        }
    };
    let mut tell = |event| (show.borrow_mut())(event);
    let vae = out_of_memory::beside(&transformer, device, &mut tell, || {
        Vae::load(&folder.join("vae"), device, DType::F32)
    })?;
    let vae = vae.interrupted_by(interrupt);
    let text_precision = Precision::on(device, text.is_some());
    let text = out_of_memory::beside(&transformer, device, &mut tell, || {
        PromptEncoder::load_with(folder, device, text_precision, text.as_ref(), &progress, interrupt)
    })?;
    let scheduler = Scheduler::load(&folder.join("scheduler"))?;
    Ok((Models { transformer, vae, scheduler, modulation_steps }, text))
}

fn quantisation(qtype: Qtype, recovery: Option<PathBuf>, cache: Option<&Path>) -> Quantisation {
    Quantisation { format: planned::format(qtype), recovery, cache: cache.map(Path::to_path_buf) }
}

fn adapter(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Job(format!(
        "the accuracy recovery adapter `{name}` is not on this machine; fetch the file and write its path \
         after the `|` of `qtype`"
    )))
}
