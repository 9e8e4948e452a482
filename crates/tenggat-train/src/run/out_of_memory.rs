//! What a run does when a GPU has no room for a step: it makes room and takes the step again.
//!
//! First, more blocks recompute their activations, half as many keeping them each time: at first with some
//! results kept, then without. Then quantised weights stay in their file, a quarter of the blocks more each
//! time; they are prefetched at first, later read when they are used. Then batches are split into
//! micro-batches, whose gradients have the same sum. After that the run ends with an error. Whatever worked
//! stays in force for the rest of the run.

use tenggat_models::transformer::{Recompute, Transformer};
use tenggat_tensor::Device;

use super::event::Event;
use super::{Error, Result};
use crate::step::{Batch, Outcome, Part, Trainer};

/// Loads something beside a model, whose weights make room as long as it does not fit.
///
/// # Errors
/// As `load`.
pub(super) fn beside<T>(
    model: &Transformer,
    device: &Device,
    show: &mut dyn FnMut(Event),
    mut load: impl FnMut() -> tenggat_models::Result<T>,
) -> tenggat_models::Result<T> {
    loop {
        match load() {
            Err(e) if e.is_out_of_memory() => {
                let Some(said) = offload(model) else { return Err(e) };
                device.trim();
                show(Event::Warning(format!("the GPU has no room for the whole model; {said}")));
            }
            result => return result,
        }
    }
}

/// Blocks of a model that are offloaded at once, where room is wanted.
pub(super) fn some_blocks(layers: usize) -> usize {
    layers.div_ceil(4)
}

/// Offloads some blocks and says so, if any can be.
pub(super) fn offload(model: &Transformer) -> Option<String> {
    (model.offload(some_blocks(model.config().blocks())) > 0).then(|| offloaded(model.offloaded_blocks()))
}

/// Tells the user that this many blocks are offloaded.
pub(super) fn offloaded(blocks: usize) -> String {
    format!("the weights of {blocks} blocks stay in their file from now on and are read for every pass")
}

/// The next smaller number of blocks that keep something: half as many keep all, and the others what is
/// expensive to recompute; where none keeps all, half as many keep that.
fn fewer(Recompute { keep_all, keep_results }: Recompute) -> Option<Recompute> {
    if keep_all > 0 {
        let fewer = keep_all / 2;
        return Some(Recompute { keep_all: fewer, keep_results: keep_results + keep_all - fewer });
    }
    (keep_results > 0).then_some(Recompute { keep_all: 0, keep_results: keep_results / 2 })
}

/// The rungs that a run has gone down so far: more recomputing, offloading, smaller batches.
#[derive(Debug)]
pub(super) struct Ladder {
    device: Device,
    /// Most samples that go through the model at once; `None`: whole batches.
    at_once: Option<usize>,
}

impl Ladder {
    pub fn new(device: &Device) -> Self {
        Ladder { device: device.clone(), at_once: None }
    }

    /// One update; `ended` is called at the end of each part. A step that ran out of memory has changed
    /// nothing but gradients, which the next try overwrites.
    ///
    /// # Errors
    /// As [`Trainer::step`]; if no room can be made, what to change.
    pub fn step(
        &mut self,
        trainer: &mut Trainer<'_>,
        batches: &[Batch],
        lr: f64,
        ended: &mut dyn FnMut(Part),
        show: &mut dyn FnMut(Event),
    ) -> Result<Outcome> {
        loop {
            let result = match self.at_once {
                None => trainer.step_watched(batches, lr, ended),
                Some(at_once) => {
                    let parts = batches.iter().map(|batch| batch.split(at_once));
                    let parts = parts.collect::<tenggat_models::Result<Vec<_>>>();
                    parts.and_then(|parts| {
                        let parts: Vec<Batch> = parts.into_iter().flatten().collect();
                        trainer.step_watched(&parts, lr, ended)
                    })
                }
            };
            match result {
                Err(e) if e.is_out_of_memory() => {
                    self.device.trim();
                    show(Event::Warning(self.make(trainer, batches, &e)?));
                }
                other => {
                    trainer.take_notes().into_iter().for_each(|note| show(Event::Warning(note)));
                    return Ok(other?);
                }
            }
        }
    }

    /// Makes room for the next try, and says how.
    fn make(
        &mut self,
        trainer: &mut Trainer<'_>,
        batches: &[Batch],
        error: &tenggat_models::Error,
    ) -> Result<String> {
        let now = trainer.recompute();
        if let Some(fewer) = fewer(now) {
            trainer.set_recompute(fewer);
            let (whole, results) = (fewer.keep_all, fewer.keep_results);
            let before = now.keep_all + now.keep_results;
            return Ok(format!(
                "the GPU has no room for a step; more is recomputed from now on (blocks that keep all \
                 activations: {whole}; some: {results}; before: {before})"
            ));
        }
        if let Some(said) = offload(trainer.model()) {
            return Ok(format!("the GPU has no room for a step; {said}"));
        }
        if trainer.model().stop_prefetching() {
            return Ok("the GPU has no room for a step; from now on weights in their file are read when \
                needed, without prefetching"
                .into());
        }
        let samples = batches.iter().map(|batch| batch.levels.len()).max().unwrap_or(1);
        let now = self.at_once.unwrap_or(samples).min(samples);
        if now > 1 {
            let next = now / 2;
            self.at_once = Some(next);
            return Ok(format!(
                "the GPU has no room for a step; images go through the model {next} at a time from now on, \
                 not {now}"
            ));
        }
        Err(Error::Job(format!(
            "{error}; the step is as small as it gets: one image at a time, every block recomputed, every \
             weight that can be offloaded left in its file. Lower the resolution or the rank, or choose a \
             smaller `qtype`; `tenggat plan` names the nearest job that fits a GPU"
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use tenggat_models::transformer::{Config, LoadOptions, Precision};
    use tenggat_models::weights::Quantisation;
    use tenggat_tensor::DType;

    use super::*;
    use crate::lora::initial;
    use crate::plan::bench::StepBench;
    use crate::step::optimiser::{AdamWConfig, Method, Optimiser};

    fn bench() -> StepBench {
        let mut model = Config::qwen_image();
        (model.num_layers, model.num_attention_heads, model.attention_head_dim) = (4, 1, 32);
        (model.joint_attention_dim, model.axes_dims_rope) = (32, [8, 12, 12]);
        StepBench {
            model,
            format: None,
            rank: 2,
            grid: (4, 4),
            text_tokens: 4,
            batch: 3,
            adam_8bit: false,
            compute: DType::BF16,
            fp8_products: false,
            recompute: Recompute::EVERYTHING,
            modulation_steps: None,
            direct: false,
        }
    }

    fn is_skipped() -> bool {
        if Device::emulated().is_ok() {
            return false;
        }
        tenggat_skip::skipped_without_cxx("no C++ compiler");
        true
    }

    struct Taken {
        loss: f64,
        norm: f64,
        said: Vec<String>,
        peak_bytes: usize,
    }

    /// One step on a device, with all activations kept at first.
    fn take(device: &Device, state: (Recompute, Option<usize>)) -> Result<Taken> {
        let bench = bench();
        take_with(device, &bench, &bench.random_model(device)?, state)
    }

    fn take_with(
        device: &Device,
        bench: &StepBench,
        model: &Transformer,
        (recompute, at_once): (Recompute, Option<usize>),
    ) -> Result<Taken> {
        let lora = initial::initialise(model.lora_layout(bench.rank, |_| true), 1, device, DType::F32)?;
        let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), Some(1.0), &lora)?;
        let mut trainer = Trainer::new(model, lora, optimiser, recompute)?;
        let batch = bench.batch(model, &bench.fixed(model)?, 0)?;
        let mut ladder = Ladder { at_once, ..Ladder::new(device) };
        let mut said = Vec::new();
        let mut show = |event| match event {
            Event::Warning(text) => said.push(text),
            other => panic!("{other:?}"),
        };
        let outcome = ladder.step(&mut trainer, &[batch], 1e-3, &mut |_| {}, &mut show)?;
        let (loss, norm) = (outcome.loss, outcome.gradient_norm);
        Ok(Taken { loss, norm, said, peak_bytes: device.peak_bytes() })
    }

    /// The limits are what a step takes that begins in the state that is to be reached.
    #[test]
    fn room_is_made_and_the_step_stays_the_same() {
        if is_skipped() {
            return;
        }
        let unlimited = |state| take(&Device::emulated().unwrap(), state).unwrap();
        let whole = unlimited((Recompute::NOTHING, None));
        assert!(whole.said.is_empty());
        let limited = |bytes: usize| take(&Device::emulated_with(bytes).unwrap(), (Recompute::NOTHING, None));

        let again = limited(unlimited((Recompute::EVERYTHING, None)).peak_bytes).unwrap();
        assert!(
            !again.said.is_empty() && again.said.iter().all(|text| text.contains("keep all activations"))
        );
        assert_eq!((again.loss, again.norm), (whole.loss, whole.norm));

        let one = limited(unlimited((Recompute::EVERYTHING, Some(1))).peak_bytes).unwrap();
        assert!(one.said.last().unwrap().contains("1 at a time"), "{:?}", one.said);
        // Gradients of single pictures are rounded to 8 bits before they are added up in 32.
        assert!((one.loss / whole.loss - 1.0).abs() < 1e-5, "{} {}", one.loss, whole.loss);
        assert!((one.norm / whole.norm - 1.0).abs() < 1e-2, "{} {}", one.norm, whole.norm);

        let Err(error) = limited(unlimited((Recompute::EVERYTHING, Some(1))).peak_bytes * 3 / 4) else {
            panic!("it fits")
        };
        assert!(error.to_string().contains("out of GPU memory"), "{error}");
    }

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen_image/transformer")
    }

    /// A model of two blocks whose weights lie in a file in 8 bits, some of them only there.
    fn stored(device: &Device, cache: &Path, offloaded_blocks: usize) -> tenggat_models::Result<Transformer> {
        let format = "float8".parse().unwrap();
        let wanted = Quantisation { format, recovery: None, cache: Some(cache.to_path_buf()) };
        let options = LoadOptions { quantisation: Some(&wanted), offloaded_blocks, ..LoadOptions::default() };
        let precision = Precision { compute: DType::BF16, weights: DType::BF16 };
        Transformer::load_with(&folder(), device, precision, options)
    }

    /// After recomputation and before smaller batches, weights leave the GPU; the step stays the same to the
    /// bit.
    #[test]
    fn weights_that_lie_in_a_file_make_room() {
        if is_skipped() {
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        let bench = StepBench { model: Config::read(&folder()).unwrap(), ..bench() };
        let take = |device: &Device, offloaded, recompute| {
            let model = stored(device, cache.path(), offloaded)?;
            model.stop_prefetching();
            let taken = take_with(device, &bench, &model, (recompute, None))?;
            Ok::<_, Error>((taken, model.offloaded_blocks()))
        };
        let (whole, _) = take(&Device::emulated().unwrap(), 0, Recompute::NOTHING).unwrap();
        let (least, _) = take(&Device::emulated().unwrap(), 2, Recompute::EVERYTHING).unwrap();
        let (recomputed, _) = take(&Device::emulated().unwrap(), 0, Recompute::EVERYTHING).unwrap();
        assert!(least.peak_bytes < recomputed.peak_bytes, "{} {}", least.peak_bytes, recomputed.peak_bytes);

        let limited = |bytes: usize| take(&Device::emulated_with(bytes).unwrap(), 0, Recompute::NOTHING);
        let same = |taken: &Taken| assert_eq!((taken.loss, taken.norm), (whole.loss, whole.norm));
        let has_said = |taken: &Taken, what: &str| taken.said.iter().any(|said| said.contains(what));
        let (got, offloaded) = limited(least.peak_bytes).unwrap();
        same(&got);
        assert!(offloaded > 0 && has_said(&got, "blocks stay in their file"), "{:?}", got.said);
        // Buffers that are given back under pressure make some more room.
        let mut less = (50..100).rev().step_by(5).map(|percent| limited(least.peak_bytes * percent / 100));
        let last =
            less.find_map(|taken| taken.ok().filter(|(taken, _)| has_said(taken, "without prefetching")));
        same(&last.expect("weights that come ahead make room at last").0);

        // Beside the model something else has to be there that leaves no room for both blocks.
        let device = Device::emulated().unwrap();
        let loaded = stored(&device, cache.path(), 0).unwrap();
        let (live, peak) = (device.live_bytes(), device.peak_bytes());
        let bytes = peak - live + loaded.weight_bytes() / 8;
        let device = Device::emulated_with(peak).unwrap();
        let model = stored(&device, cache.path(), 0).unwrap();
        let mut said = Vec::new();
        let mut show = |event| said.push(format!("{event:?}"));
        let there = beside(&model, &device, &mut show, || {
            Ok(tenggat_tensor::Tensor::zeros(&device, DType::U8, &[bytes])?)
        });
        assert!(there.is_ok() && model.offloaded_blocks() > 0 && !said.is_empty(), "{said:?}");
    }
}
