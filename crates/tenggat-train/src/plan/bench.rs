//! A whole training step of a model of any size, with weights that need no file: what it takes in time and
//! memory.
//!
//! The step is the one that runs take ([`Trainer`]); weights are generated tensor by tensor in their stored
//! form, so that a model of 20 billion weights is ready within seconds and never larger than its stored form.

use std::sync::Arc;

use tenggat_models::Result;
use tenggat_models::qwen_image::TextBatch;
use tenggat_models::transformer::{
    Config, LoadOptions, ModulationStorage, Positions, Precision, Recompute, Transformer,
};
use tenggat_models::vae::VaeConfig;
use tenggat_models::weights::Random;
use tenggat_plan::{
    Clock, Modulation, Optimiser as PlannedOptimiser, Precision as Planned, StepConfig, StepShape,
};
use tenggat_tensor::ops::gemm;
use tenggat_tensor::random::Philox;
use tenggat_tensor::weight::Format;
use tenggat_tensor::{DType, Device, Tensor};

use crate::lora::initial;
use crate::plan::job as planned;
use crate::step::optimiser::{AdamW8bitConfig, AdamWConfig, Method, Optimiser};
use crate::step::random::Level;
use crate::step::{Batch, Part, Trainer};

/// Learning rate of the steps: they should change the adapter, not wreck it.
const LR: f64 = 1e-4;
/// Rows, columns and inner extent of the product that tells how fast products can be.
const PRODUCT: [usize; 3] = [512, 3072, 3072];
/// Rows of the same on a GPU, which needs more work to show its rate. Columns and inner extent are those of
/// the model's widest linear.
const GPU_ROWS: usize = 4096;
/// How often that product is timed, after a first one; the fastest counts.
const PRODUCT_RUNS: usize = 5;

/// A training step to be measured.
#[derive(Debug, Clone)]
pub struct StepBench {
    /// The transformer's dimensions.
    pub model: Config,
    /// Format of its matrices; `None` for bf16.
    pub format: Option<Format>,
    /// Whether its frozen linears are multiplied in 8-bit floats; the device does that.
    pub fp8_products: bool,
    /// Rank of the LoRA, on all 14 linears of every block.
    pub rank: usize,
    /// Rows and columns of patches; a patch is 16 × 16 pixels.
    pub grid: (usize, usize),
    /// Text tokens of each caption.
    pub text_tokens: usize,
    /// Pictures per step.
    pub batch: usize,
    /// AdamW's moments in 8 bits.
    pub adam_8bit: bool,
    /// Type of activations; of frozen matrices too, unless they are quantised or kept in bf16 on a CPU.
    pub compute: DType,
    /// Blocks that keep their activations, or some of them.
    pub recompute: Recompute,
    /// Steps whose modulation is worked out together, its matrices not being kept; `None`: they are.
    pub modulation_steps: Option<usize>,
    /// Whether a GPU is asked for every kernel by itself, instead of for captured passes.
    pub direct: bool,
}

/// Seconds of a step, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTime {
    /// Noisy latents, forward pass, loss.
    pub forward_s: f64,
    /// Backward pass, with what it computes again.
    pub backward_s: f64,
    /// Clipping and optimiser.
    pub update_s: f64,
    /// Loss of the step.
    pub loss: f64,
    /// Norm of its gradients before clipping.
    pub gradient_norm: f64,
}

impl StepTime {
    /// The step without its share of the modulation.
    pub fn total_s(&self) -> f64 {
        self.forward_s + self.backward_s + self.update_s
    }
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Seconds of making all noise levels of the steps drawn ahead, each time; empty if modulation is part
    /// of the steps.
    pub modulation_s: Vec<f64>,
    /// Steps that warmed up caches and buffers.
    pub warm_up: Vec<StepTime>,
    /// The steps that count.
    pub steps: Vec<StepTime>,
    /// Kinds of passes that were captured.
    pub captured_passes: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// News of a measurement on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum News {
    /// The modulation of the next steps was computed: number of steps, seconds.
    Modulation(usize, f64),
    /// A part of step n (from 1, warm-up included) is done: seconds.
    Part(usize, Part, f64),
    /// Step number n is over; whether it went through the model as captured CUDA graphs.
    Step(usize, StepTime, bool),
}

impl StepBench {
    /// The step as planning sees it.
    pub fn step_config(&self) -> StepConfig {
        let recompute = self.recompute.of(self.model.blocks());
        StepConfig {
            dims: planned::dims(&self.model, VaeConfig::default().spatial_factor()),
            shape: StepShape {
                batch: self.batch as u64,
                image_tokens: (self.grid.0 * self.grid.1) as u64,
                text_tokens: self.text_tokens as u64,
            },
            rank: self.rank as u64,
            precision: self.format.map_or(Planned::Bf16, planned::precision),
            ara_rank: None,
            activation_bytes: self.compute.bytes() as f64,
            fp8_products: self.fp8_products,
            keep_all: recompute.keep_all as u64,
            keep_results: recompute.keep_results as u64,
            offloaded_blocks: 0,
            modulation: match self.modulation_steps {
                Some(steps) => Modulation::Table { every_steps: steps as u64 },
                None => Modulation::EveryStep,
            },
            optimiser: if self.adam_8bit { PlannedOptimiser::AdamW8bit } else { PlannedOptimiser::AdamW },
            accumulation: 1,
        }
    }

    /// The transformer with random weights.
    ///
    /// # Errors
    /// Out of memory.
    pub fn random_model(&self, device: &Device) -> Result<Transformer> {
        let source =
            Random { device: device.clone(), compute: self.compute, dense: DType::BF16, format: self.format };
        let modulation = match self.modulation_steps {
            Some(_) => ModulationStorage::Streamed,
            None => ModulationStorage::Resident,
        };
        let precision = Precision { compute: self.compute, weights: DType::BF16 };
        let options = LoadOptions { modulation, fp8_products: self.fp8_products, ..LoadOptions::default() };
        Transformer::from_source(self.model.clone(), device, precision, Arc::new(source), None, options)
    }

    /// What all batches share: a caption and position tables.
    pub(crate) fn fixed(&self, model: &Transformer) -> Result<(Tensor, Arc<Positions>)> {
        let caption = normal(model.device(), &[self.text_tokens, self.model.joint_attention_dim], 2)?;
        let tokens = TextBatch::padded(model.device(), self.text_tokens);
        Ok((caption, Arc::new(model.positions(self.grid, tokens)?)))
    }

    /// A batch of random pictures.
    pub(crate) fn batch(
        &self,
        model: &Transformer,
        (caption, positions): &(Tensor, Arc<Positions>),
        step: usize,
    ) -> Result<Batch> {
        let device = model.device();
        let shape = [self.batch * self.grid.0 * self.grid.1, self.model.in_channels];
        let levels = (0..self.batch).map(|sample| Level { sigma: level(step, sample), weight: 1.0 });
        Ok(Batch {
            latents: normal(device, &shape, 3)?,
            noise: normal(device, &shape, 5 + step as u64)?,
            levels: levels.collect(),
            mask: None,
            share: 1.0,
            strength: 1.0,
            number: step as u64,
            text: TextBatch::new(&vec![caption; self.batch])?,
            positions: Arc::clone(positions),
        })
    }

    /// Takes `warm_up` steps and then `steps` that count, and tells each part as it ends. No step but the
    /// first begins once the clock has come to `until_s`, if there is one; if none was to count by then,
    /// the last one does.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn measure(
        &self,
        model: &Transformer,
        clock: &dyn Clock,
        (warm_up, steps): (usize, usize),
        until_s: Option<f64>,
        show: &mut dyn FnMut(News),
    ) -> Result<Measured> {
        let device = model.device();
        let lora = initial::initialise(model.lora_layout(self.rank, |_| true), 1, device, DType::F32)?;
        let adamw = AdamWConfig::default();
        let method = match self.adam_8bit {
            true => Method::AdamW8bit(AdamW8bitConfig { adamw, ..AdamW8bitConfig::default() }),
            false => Method::AdamW(adamw),
        };
        let optimiser = Optimiser::new(method, Some(1.0), &lora)?;
        let mut trainer = Trainer::new(model, lora, optimiser, self.recompute)?;
        if self.direct {
            trainer.launch_each_kernel();
        }
        let fixed = self.fixed(model)?;
        let mut measured = Measured::default();
        for step in 0..warm_up + steps {
            // Steps that warm up are what is left out where time is short.
            if until_s.is_some_and(|until_s| clock.now_s() >= until_s) && step > 0 {
                if measured.steps.is_empty() {
                    measured.steps.extend(measured.warm_up.pop());
                }
                break;
            }
            let sigmas: Vec<f64> = (0..self.batch).map(|sample| level(step, sample)).collect();
            if let Some(together) = self.modulation_steps
                && !model.is_prepared(&sigmas)
            {
                let began_s = clock.now_s();
                let next = (step..step + together).flat_map(|step| (0..self.batch).map(move |i| (step, i)));
                model.prepare(&next.map(|(step, sample)| level(step, sample)).collect::<Vec<_>>())?;
                let seconds = clock.now_s() - began_s;
                measured.modulation_s.push(seconds);
                show(News::Modulation(together, seconds));
            }
            let batch = self.batch(model, &fixed, step)?;
            let (mut time, mut began_s) = (StepTime::default(), clock.now_s());
            let mut ended = |part| {
                // Work is queued on a GPU; a failure shows itself in what is read next.
                let _ = device.synchronise();
                let now_s = clock.now_s();
                let seconds = now_s - std::mem::replace(&mut began_s, now_s);
                match part {
                    Part::Forward => time.forward_s += seconds,
                    Part::Backward => time.backward_s += seconds,
                    Part::Update => time.update_s += seconds,
                }
                show(News::Part(step + 1, part, seconds));
            };
            let outcome = trainer.step_watched(&[batch], LR, &mut ended)?;
            let list = if step < warm_up { &mut measured.warm_up } else { &mut measured.steps };
            let time = StepTime { loss: outcome.loss, gradient_norm: outcome.gradient_norm, ..time };
            list.push(time);
            show(News::Step(step + 1, time, trainer.captured_passes() > 0));
        }
        (measured.captured_passes, measured.notes) = (trainer.captured_passes(), trainer.take_notes());
        Ok(measured)
    }
}

/// Noise level of a sample.
fn level(step: usize, sample: usize) -> f64 {
    Philox::new(4).uniform(step as u64, sample as u64)
}

/// FLOP/s of a large product of dense matrices of the device's own type, now: what other rates are compared
/// with. On a GPU it is that of `channels` by four times as many, as in a model of that width.
///
/// # Errors
/// The device failed.
pub fn product_flops_per_s(device: &Device, clock: &dyn Clock, channels: usize) -> Result<f64> {
    let [m, n, k] = match device {
        Device::Cpu(_) => PRODUCT,
        Device::Cuda(_) => [GPU_ROWS, 4 * channels, channels],
    };
    let dtype = device.activations();
    let number =
        |shape: &[usize], seed| -> Result<Tensor> { Ok(normal(device, shape, seed)?.to_dtype(dtype)?) };
    let (x, w) = (number(&[m, k], 1)?, number(&[n, k], 2)?);
    let mut y = x.empty_like(&[m, n])?;
    let mut fastest_s = f64::INFINITY;
    for run in 0..=PRODUCT_RUNS {
        let began_s = clock.now_s();
        gemm::nt(1.0, x.view(), w.view(), 0.0, y.view_mut())?;
        device.synchronise()?;
        if run > 0 {
            fastest_s = fastest_s.min(clock.now_s() - began_s);
        }
    }
    drop((x, w, y));
    device.trim();
    Ok(2.0 * (m * n * k) as f64 / fastest_s)
}

fn normal(device: &Device, shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(seed).normal(0, &mut values);
    Ok(Tensor::from_f32(device, DType::F32, &values, shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_plan::WallClock;

    fn bench(modulation_steps: Option<usize>, recompute: Recompute) -> StepBench {
        let mut model = Config::qwen_image();
        (model.num_layers, model.num_attention_heads, model.attention_head_dim) = (2, 2, 32);
        (model.joint_attention_dim, model.axes_dims_rope) = (64, [8, 12, 12]);
        StepBench {
            model,
            format: Some(Format::Uint(3)),
            fp8_products: false,
            rank: 4,
            grid: (3, 4),
            text_tokens: 5,
            batch: 2,
            adam_8bit: true,
            compute: DType::F32,
            recompute,
            modulation_steps,
            direct: false,
        }
    }

    /// What is kept and what is recomputed, inside the step or before it, does not change what a step
    /// computes.
    #[test]
    fn losses_do_not_depend_on_what_is_kept() {
        let losses = |modulation_steps, recompute| {
            let bench = bench(modulation_steps, recompute);
            let model = bench.random_model(&Device::cpu()).unwrap();
            let mut news = Vec::new();
            let clock = WallClock::start();
            let measured = bench.measure(&model, &clock, (1, 2), None, &mut |n| news.push(n)).unwrap();
            let parts = news.iter().filter(|n| matches!(n, News::Part(..))).count();
            assert_eq!((parts, measured.warm_up.len(), measured.steps.len()), (9, 1, 2));
            // Three steps, two of which are prepared together.
            assert_eq!(
                measured.modulation_s.len(),
                modulation_steps.map_or(0, |together| 3usize.div_ceil(together))
            );
            let all = measured.warm_up.into_iter().chain(measured.steps);
            all.map(|step| step.loss).collect::<Vec<_>>()
        };
        let keep = |keep_all, keep_results| Recompute { keep_all, keep_results };
        let direct = losses(None, keep(2, 0));
        assert!(direct.iter().all(|loss| loss.is_finite() && *loss > 0.1), "{direct:?}");
        for some in [keep(0, 0), keep(0, 2), keep(1, 1), keep(0, 1)] {
            assert_eq!(losses(None, some), direct, "{some:?}");
        }
        for (loss, direct) in losses(Some(2), keep(1, 0)).into_iter().zip(direct) {
            // Products of several rows at once add up in another order.
            assert!((loss / direct - 1.0).abs() < 1e-5, "{loss} {direct}");
        }
    }

    /// Time that is over ends the steps, and one counts in any case.
    #[test]
    fn steps_end_with_their_time() {
        let bench = bench(None, Recompute::EVERYTHING);
        let model = bench.random_model(&Device::cpu()).unwrap();
        let mut over = Vec::new();
        let mut show = |news| {
            if let News::Step(step, time, captured) = news {
                over.push((step, time, captured));
            }
        };
        let measured = bench.measure(&model, &WallClock::start(), (2, 9), Some(0.0), &mut show).unwrap();
        assert_eq!((measured.warm_up.len(), measured.steps.len()), (0, 1));
        assert_eq!(over, [(1, measured.steps[0], false)]);
        assert!(measured.steps[0].total_s() > 0.0);
    }

    /// A GPU takes the CPU's steps: losses of three steps, rounded to bf16 on the way.
    #[test]
    fn gpus_take_the_same_steps() {
        let Ok(gpu) = Device::emulated() else {
            tenggat_skip::skipped_without_cxx("no C++ compiler");
            return;
        };
        let losses = |device: &Device, compute, adam_8bit| {
            let bench = StepBench {
                compute,
                adam_8bit,
                ..bench(Some(2), Recompute { keep_all: 1, keep_results: 0 })
            };
            let model = bench.random_model(device).unwrap();
            let measured = bench.measure(&model, &WallClock::start(), (1, 2), None, &mut |_| {}).unwrap();
            let all = measured.warm_up.into_iter().chain(measured.steps);
            all.map(|step| step.loss).collect::<Vec<_>>()
        };
        // 8-bit products err by a few percent; the prediction of random weights is a part of what the loss
        // squares.
        let bench_8bit = StepBench {
            compute: DType::BF16,
            fp8_products: true,
            ..bench(Some(2), Recompute { keep_all: 1, keep_results: 0 })
        };
        let model = bench_8bit.random_model(&gpu).unwrap();
        let measured = bench_8bit.measure(&model, &WallClock::start(), (0, 1), None, &mut |_| {}).unwrap();
        let (in_8bit, wide) = (measured.steps[0].loss, losses(&gpu, DType::BF16, true)[0]);
        assert!(in_8bit != wide && (in_8bit / wide - 1.0).abs() < 2e-2, "{in_8bit} {wide}");
        for adam_8bit in [false, true] {
            let expected = losses(&Device::cpu(), DType::F32, adam_8bit);
            for (compute, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 5e-3)] {
                for (loss, expected) in losses(&gpu, compute, adam_8bit).into_iter().zip(&expected) {
                    assert!((loss / expected - 1.0).abs() < tolerance, "{compute:?}: {loss} {expected}");
                }
            }
        }
    }
}
