//! What a run does when a GPU has no room for a step: it makes room and takes the step again.
//!
//! First more blocks compute their activations again, half as many keeping them each time; then batches are cut into
//! micro-batches, whose gradients add up to the same; then there is nothing left to do but say so. What was found stays
//! for the rest of the run.

use tenggat_tensor::Device;

use super::event::Event;
use super::{Error, Result};
use crate::step::{Batch, Outcome, Part, Trainer};

/// How a run has made room so far.
#[derive(Debug)]
pub(super) struct Room {
    device: Device,
    /// Most samples that go through the model at once; `None`: whole batches.
    at_once: Option<usize>,
}

impl Room {
    pub fn new(device: &Device) -> Self {
        Room { device: device.clone(), at_once: None }
    }

    /// One update; `ended` is called at the end of each part. A step that failed for want of memory has changed nothing but gradients, which the next try writes
    /// anew.
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
                other => return Ok(other?),
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
        let kept = trainer.full_blocks();
        if kept > 0 {
            trainer.keep_blocks(kept / 2);
            return Ok(format!(
                "the GPU has no room for a step; {} blocks keep their activations from now on, not {kept}",
                kept / 2
            ));
        }
        let samples = batches.iter().map(|batch| batch.levels.len()).max().unwrap_or(1);
        let now = self.at_once.unwrap_or(samples).min(samples);
        if now > 1 {
            let next = now / 2;
            self.at_once = Some(next);
            return Ok(format!(
                "the GPU has no room for a step; at most {next} pictures go through the model at once from now on, not \
                 {now}"
            ));
        }
        Err(Error::Job(format!(
            "{error}; one picture at a time with every block computed again is the least that a step can be cut to. \
             Lower the resolution or the rank, or choose a smaller `qtype`; `tenggat plan` names the nearest job that \
             fits a GPU"
        )))
    }
}

#[cfg(test)]
mod tests {
    use tenggat_models::qwen_image::transformer::Config;
    use tenggat_tensor::DType;

    use super::*;
    use crate::adapter;
    use crate::optimiser::{AdamWConfig, Method, Optimiser};
    use crate::step_bench::StepBench;

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
            kept_blocks: 0,
            steps_ahead: None,
        }
    }

    struct Taken {
        loss: f64,
        norm: f64,
        said: Vec<String>,
        peak_bytes: usize,
    }

    /// One step on a device, with all activations kept at first.
    fn take(device: &Device, (kept, at_once): (usize, Option<usize>)) -> Result<Taken> {
        let bench = bench();
        let model = bench.random_model(device)?;
        let lora = adapter::initialise(model.lora_layout(bench.rank, |_| true), 1, device, DType::F32)?;
        let optimiser = Optimiser::new(Method::AdamW(AdamWConfig::default()), Some(1.0), &lora)?;
        let mut trainer = Trainer::new(&model, lora, optimiser, kept)?;
        let batch = bench.batch(&model, &bench.fixed(&model)?, 0)?;
        let mut room = Room { at_once, ..Room::new(device) };
        let mut said = Vec::new();
        let mut show = |event| match event {
            Event::Warning(text) => said.push(text),
            other => panic!("{other:?}"),
        };
        let outcome = room.step(&mut trainer, &[batch], 1e-3, &mut |_| {}, &mut show)?;
        let (loss, norm) = (outcome.loss, outcome.gradient_norm);
        Ok(Taken { loss, norm, said, peak_bytes: device.peak_bytes() })
    }

    /// The limits are what a step takes that begins in the state that is to be reached.
    #[test]
    fn room_is_made_and_the_step_stays_the_same() {
        if Device::emulated().is_err() {
            assert!(std::env::var_os("TENGGAT_REQUIRE_CXX").is_none(), "no C++ compiler");
            eprintln!("skipped: no C++ compiler");
            return;
        }
        let unlimited = |state| take(&Device::emulated().unwrap(), state).unwrap();
        let whole = unlimited((usize::MAX, None));
        assert!(whole.said.is_empty());
        let limited = |bytes: usize| take(&Device::emulated_with(bytes).unwrap(), (usize::MAX, None));

        let again = limited(unlimited((0, None)).peak_bytes).unwrap();
        assert!(
            !again.said.is_empty() && again.said.iter().all(|text| text.contains("keep their activations"))
        );
        assert_eq!((again.loss, again.norm), (whole.loss, whole.norm));

        let one = limited(unlimited((0, Some(1))).peak_bytes).unwrap();
        assert!(one.said.last().unwrap().contains("at most 1 pictures"), "{:?}", one.said);
        // Gradients of single pictures are rounded to 8 bits before they are added up in 32.
        assert!((one.loss / whole.loss - 1.0).abs() < 1e-5, "{} {}", one.loss, whole.loss);
        assert!((one.norm / whole.norm - 1.0).abs() < 1e-2, "{} {}", one.norm, whole.norm);

        let Err(error) = limited(unlimited((0, Some(1))).peak_bytes * 3 / 4) else { panic!("it fits") };
        assert!(error.to_string().contains("out of GPU memory"), "{error}");
    }
}
