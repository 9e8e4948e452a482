//! What of a run stays in memory: activations block by block, and the modulation matrices.

use tenggat_models::qwen_image::transformer::{Config, Precision as Stored, Transformer};
use tenggat_models::qwen_image::vae::VaeConfig;
use tenggat_plan::{Machine, Modulation, Precision, StepConfig, StepShape, fit};
use tenggat_tensor::DType;

use super::data::Prepared;
use super::event::Event;
use crate::job::{Checkpointing, Job};
use crate::planned;

/// Steps whose modulation is worked out together, so that its matrices need not stay; `None` where keeping them costs
/// little.
pub(super) fn steps_ahead(job: &Job, model: &Config, stored: Stored) -> Option<u64> {
    let step = step(job, model, stored, (0, 0));
    match step.advised_modulation() {
        Modulation::Table { every_steps } => Some(every_steps),
        Modulation::EveryStep => job.model.low_vram.then(|| step.steps_ahead()),
    }
}

/// Blocks that keep everything for the backward pass; the others compute it again. Without a limit from the job,
/// `memory_bytes` may be used; all blocks keep everything if nobody knows a limit.
pub(super) fn kept_blocks(
    job: &Job,
    model: &Transformer,
    steps_ahead: Option<u64>,
    data: &Prepared,
    memory_bytes: Option<f64>,
    show: &mut dyn FnMut(Event),
) -> usize {
    let limit_bytes = match (job.train.checkpointing, job.limits.memory_bytes.or(memory_bytes)) {
        (Checkpointing::Always, _) => return 0,
        (Checkpointing::Never, _) | (Checkpointing::Auto, None) => return usize::MAX,
        (Checkpointing::Auto, Some(limit_bytes)) => limit_bytes,
    };
    let mut step = step(job, model.config(), model.precision(), data.largest_size());
    step.shape.text_tokens = data.longest_prompt() as u64;
    if let Some(every_steps) = steps_ahead {
        step.modulation = Modulation::Table { every_steps };
    }
    let machine = Machine::uncalibrated_cpu("cpu", 1, limit_bytes);
    let fit = fit(&step, &machine, None);
    if !fit.fits {
        show(Event::Warning(format!(
            "about {:.1} GB are needed with every block computed again, more than the {:.1} GB that may be used; \
             raise `memory_limit`, or lower the rank, the resolution or the batch size",
            (fit.memory.device_bytes() + fit.memory.host_bytes) / 1e9,
            limit_bytes / 1e9
        )));
    }
    fit.config.kept_blocks as usize
}

/// The job's step as planning sees it, of pictures of this size, without text, all modulation matrices resident.
fn step(job: &Job, model: &Config, stored: Stored, (width_px, height_px): (usize, usize)) -> StepConfig {
    let dims = planned::dims(model, VaeConfig::default().spatial_factor());
    StepConfig {
        dims,
        shape: StepShape {
            batch: job.datasets.iter().map(|set| set.batch_size as u64).max().unwrap_or(1),
            image_tokens: dims.image_tokens(width_px as u64, height_px as u64),
            text_tokens: 0,
        },
        rank: job.network.rank as u64,
        precision: match job.model.quantisation {
            Some(format) => planned::precision(format),
            None if stored.weights == DType::BF16 => Precision::Bf16,
            None => Precision::F32,
        },
        ara_rank: job.model.recovery_adapter.as_ref().map(|_| planned::RECOVERY_RANK),
        activation_bytes: stored.compute.bytes() as f64,
        fp8_products: false,
        kept_blocks: 0,
        modulation: Modulation::EveryStep,
        optimiser: planned::optimiser(job.train.optimiser.kind),
        accumulation: job.train.gradient_accumulation.max(1) as u64,
    }
}
