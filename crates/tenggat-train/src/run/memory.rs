//! How many blocks keep their activations, so that a run stays inside its memory limit.

use tenggat_models::qwen_image::transformer::Transformer;
use tenggat_models::qwen_image::vae::VaeConfig;
use tenggat_plan::{Machine, Modulation, Precision, StepConfig, StepShape, fit};
use tenggat_tensor::DType;

use super::data::Prepared;
use super::event::Event;
use crate::job::Job;
use crate::planned;

/// Blocks that keep everything for the backward pass; the others compute it again. All of them without a limit.
pub(super) fn kept_blocks(
    job: &Job,
    model: &Transformer,
    data: &Prepared,
    show: &mut dyn FnMut(Event),
) -> usize {
    let Some(limit_bytes) = job.limits.memory_bytes else {
        return usize::MAX;
    };
    let (width_px, height_px) = data.largest_size();
    let dims = planned::dims(model.config(), VaeConfig::default().spatial_factor());
    let precision = model.precision();
    let step = StepConfig {
        dims,
        shape: StepShape {
            batch: job.datasets.iter().map(|set| set.batch_size as u64).max().unwrap_or(1),
            image_tokens: dims.image_tokens(width_px as u64, height_px as u64),
            text_tokens: data.longest_prompt() as u64,
        },
        rank: job.network.rank as u64,
        precision: match job.model.quantisation {
            Some(format) => planned::precision(format),
            None if precision.weights == DType::BF16 => Precision::Bf16,
            None => Precision::F32,
        },
        ara_rank: job.model.recovery_adapter.as_ref().map(|_| planned::RECOVERY_RANK),
        activation_bytes: precision.compute.bytes() as f64,
        fp8_products: false,
        kept_blocks: 0,
        modulation: Modulation::EveryStep,
        optimiser: planned::optimiser(job.train.optimiser.kind),
        accumulation: 1,
    };
    let machine = Machine::uncalibrated_cpu("cpu", 1, limit_bytes);
    let fit = fit(&step, &machine, None);
    if !fit.fits {
        show(Event::Warning(format!(
            "about {:.1} GB are needed with every block computed again, more than the memory_limit of {:.1} GB; \
             lower the rank, the resolution or the batch size",
            (fit.memory.device_bytes() + fit.memory.host_bytes) / 1e9,
            limit_bytes / 1e9
        )));
    }
    fit.config.kept_blocks as usize
}
