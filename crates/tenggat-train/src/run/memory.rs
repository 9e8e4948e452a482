//! What a run keeps in memory: activations block by block, and the modulation matrices.

use tenggat_models::qwen_image::TextBatch;
use tenggat_models::transformer::{Config, Precision as Stored, Recompute, Transformer};
use tenggat_models::vae::VaeConfig;
use tenggat_plan::{Machine, Modulation, Precision, StepConfig, StepShape, fit};
use tenggat_tensor::{DType, Device};

use super::event::Event;
use super::options::Options;
use super::{Result, out_of_memory};
use crate::data::batch::Prepared;
use crate::job::{self, Job};
use crate::plan::job as planned;

/// Steps whose modulation is prepared together, so that its matrices need not stay in memory; `None` where
/// keeping them costs little.
pub(super) fn modulation_steps(
    job: &Job,
    model: &Config,
    stored: Stored,
    options: &Options<'_>,
) -> Result<Option<u64>> {
    let step = step(job, model, stored, options.device, (0, 0));
    let limit_bytes = job.limits.memory_bytes.or(options.memory_bytes);
    let live_bytes = options.device.live_bytes() as f64;
    let machine = machine(options.device, limit_bytes.unwrap_or(f64::INFINITY), live_bytes)?;
    Ok(match step.advised_modulation(&machine, limit_bytes) {
        Modulation::Table { every_steps } => Some(every_steps),
        Modulation::EveryStep => job.model.low_vram.then(|| step.modulation_steps()),
    })
}

/// The device for the planner. A GPU's usable memory is what is free plus what the plan counts and is already
/// allocated.
fn machine(device: &Device, limit_bytes: f64, there_bytes: f64) -> Result<Machine> {
    Ok(match (device.description(), device.memory()?) {
        (Some(name), Some((free, _))) if free < usize::MAX => Machine::gpu(&name, free as f64 + there_bytes),
        _ => Machine::uncalibrated_cpu("cpu", 1, limit_bytes),
    })
}

/// What the blocks recompute: nothing in as many as fit into memory. Without a limit from the job,
/// `memory_bytes` may be used; nothing is recomputed if nobody knows a limit.
pub(super) fn recompute(
    job: &Job,
    model: &Transformer,
    modulation_steps: Option<u64>,
    data: &Prepared,
    options: &Options<'_>,
    show: &mut dyn FnMut(Event),
) -> Result<Recompute> {
    let own_limit_bytes = job.limits.memory_bytes.or(options.memory_bytes);
    let knows_own = options.device.memory()?.is_some();
    match job.train.recompute {
        job::Recompute::Always => return Ok(Recompute::EVERYTHING),
        job::Recompute::Never => return Ok(Recompute::NOTHING),
        job::Recompute::Auto if own_limit_bytes.is_none() && !knows_own => return Ok(Recompute::NOTHING),
        job::Recompute::Auto => {}
    }
    let mut step = step(job, model.config(), model.precision(), options.device, data.largest_size());
    step.shape.text_tokens = TextBatch::padded(options.device, data.longest_prompt()) as u64;
    if let Some(every_steps) = modulation_steps {
        step.modulation = Modulation::Table { every_steps };
    }
    let limit_bytes = own_limit_bytes.unwrap_or(f64::INFINITY);
    let fitted = loop {
        step.offloaded_blocks = model.offloaded_blocks() as u64;
        // Memory that encoders and scores left in the pool is free.
        options.device.trim();
        let there_bytes = step.memory(&machine(options.device, limit_bytes, 0.0)?).standing_bytes();
        let machine = machine(options.device, limit_bytes, there_bytes)?;
        let fitted = fit(&step, &machine, own_limit_bytes);
        if fitted.fits {
            break fitted;
        }
        let Some(said) = out_of_memory::offload(model) else {
            let host_bytes = if machine.shares_host_memory { fitted.memory.host_bytes } else { 0.0 };
            show(Event::Warning(format!(
                "even with every block recomputed, about {:.1} GB are needed, more than the {:.1} GB that \
                 may be used; raise `memory_limit`, or lower the rank, the resolution or the batch size",
                (fitted.memory.device_bytes() + host_bytes) / 1e9,
                machine.memory_bytes.min(limit_bytes) / 1e9
            )));
            break fitted;
        };
        show(Event::Warning(format!("the GPU is unlikely to have room for a step; {said}")));
    };
    let StepConfig { keep_all, keep_results, .. } = fitted.config;
    Ok(Recompute { keep_all: keep_all as usize, keep_results: keep_results as usize })
}

/// The job's step for the planner: images of this size, no text, all modulation matrices resident.
fn step(
    job: &Job,
    model: &Config,
    stored: Stored,
    device: &Device,
    (width_px, height_px): (usize, usize),
) -> StepConfig {
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
            Some(qtype) => planned::precision(planned::format(qtype)),
            None if stored.weights == DType::BF16 => Precision::Bf16,
            None => Precision::F32,
        },
        ara_rank: job.model.recovery_adapter.as_ref().map(|_| planned::RECOVERY_RANK),
        activation_bytes: stored.compute.bytes() as f64,
        fp8_products: job.model.fp8_products && job.model.recovery_adapter.is_none() && device.fp8_products(),
        keep_all: 0,
        keep_results: 0,
        offloaded_blocks: (job.model.offloaded_share * model.num_layers as f64).ceil() as u64,
        modulation: Modulation::EveryStep,
        optimiser: planned::optimiser(job.train.optimiser.kind),
        accumulation: job.train.gradient_accumulation.max(1) as u64,
    }
}
