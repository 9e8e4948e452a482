//! From a job to what is trained, how, and what is minimised.

use std::path::Path;

use tenggat_models::dropout::Dropout;
use tenggat_models::lora::Lora;
use tenggat_models::transformer::Config;
use tenggat_plan::{Schedule, Shape, Warmup};
use tenggat_tensor::ops::loss;
use tenggat_tensor::{DType, Device};

use super::event::Event;
use super::{Error, Result};
use crate::job::{self, Job, Loss, LrScheduler};
use crate::lora::file as lora_file;
use crate::lora::initial;
use crate::step::Objective;

/// The adapter that a run begins with, made from the dimensions of the model alone.
pub(super) fn first_lora(
    job: &Job,
    model: &Path,
    device: &Device,
    show: &mut dyn FnMut(Event),
) -> Result<Lora> {
    let config = Config::read(&model.join("transformer"))?;
    let layout = initial::layout(&job.network, &config).map_err(|reason| Error::Job(reason.into()))?;
    let mut lora = initial::initialise(layout, job.seed, device, DType::F32)?;
    if let Some(path) = &job.network.pretrained {
        let lacking = lora_file::start_from(&lora_file::load(path)?, &mut lora)?;
        if lacking > 0 {
            let text =
                format!("{} lacks {lacking} of the trained modules; those start afresh", path.display());
            show(Event::Warning(text));
        }
    }
    Ok(lora)
}

/// Largest norm of the gradient. Adafactor bounds its updates itself; ai-toolkit does not clip for it either.
pub(super) fn max_grad_norm(job: &Job) -> Option<f64> {
    (job.train.optimiser.kind != job::Optimiser::Adafactor).then_some(job.train.max_grad_norm)
}

/// Where the pseudo-Huber loss turns from quadratic to linear. Source: ai-toolkit
/// `extensions_built_in/sd_trainer`.
const PSEUDO_HUBER_C: f64 = 0.01;

/// What the job minimises.
pub(super) fn objective(job: &Job) -> Objective {
    let loss = match job.train.loss {
        Loss::MeanSquared => loss::Loss::Squared,
        Loss::MeanAbsolute => loss::Loss::Absolute,
        Loss::PseudoHuber => loss::Loss::PseudoHuber { c: PSEUDO_HUBER_C },
    };
    let network = &job.network;
    let (elements, ranks, modules) = (network.dropout, network.rank_dropout, network.module_dropout);
    let dropout = [elements, ranks, modules].iter().any(|&rate| rate > 0.0).then_some(Dropout {
        elements,
        ranks,
        modules,
        seed: job.seed,
        pass: 0,
        samples: 1,
    });
    Objective { loss, summed: job.compat.summed_gradients, max_loss: job.train.max_loss, dropout }
}

/// The job's schedule; where it names none, the budget anneals and a fixed number of steps keeps the rate.
pub(super) fn schedule(job: &Job, budgeted: bool) -> Schedule {
    let train = &job.train;
    let floor = if train.lr > 0.0 { train.lr_min / train.lr } else { 0.0 };
    let steps = train.warmup_steps.map_or(Warmup::None, Warmup::Steps);
    let shaped = |shape| Schedule { shape, floor, warmup: steps };
    match train.lr_scheduler {
        None if budgeted => Schedule::default(),
        None | Some(LrScheduler::Constant | LrScheduler::ConstantWithWarmup) => shaped(Shape::Constant),
        Some(LrScheduler::Linear) if job.compat.linear_ramp => shaped(Shape::LinearRamp),
        Some(LrScheduler::Linear) => shaped(Shape::Linear),
        Some(LrScheduler::Cosine) => shaped(Shape::Cosine),
        Some(LrScheduler::CosineWithRestarts) => {
            shaped(Shape::CosineWithRestarts { cycles: train.lr_cycles.clamp(1, u64::from(u32::MAX)) as u32 })
        }
        Some(LrScheduler::WarmupStableDecay) => {
            let default = Schedule::default();
            Schedule {
                floor,
                warmup: if train.warmup_steps.is_some() { steps } else { default.warmup },
                ..default
            }
        }
    }
}
