//! `sampling`: the denoising loop against the diffusers pipeline, with and without guidance.

use std::ops::ControlFlow;

use tenggat_models::qwen_image::{Conditioning, Scheduler, TextBatch, denoise};
use tenggat_tensor::{DType, Device};

use crate::fixture::{Golden, assert_close, folder};
use crate::transformer::{load, rows};

#[test]
fn latents_after_every_step() {
    let golden = Golden::open("sampling.safetensors");
    let image = golden.shape("cfg.image"); // [1, 3, height, width]
    let grid = (image[2] / 16, image[3] / 16);
    let model = load(&Device::cpu_poisoned(), DType::F32);
    let scheduler = Scheduler::load(&folder().join("qwen_image/scheduler")).unwrap();
    let embeds = |name: &str| TextBatch::new(&[&rows(&model, &golden, name)]).unwrap();
    let (prompt, negative) = (embeds("prompt_embeds"), embeds("negative_prompt_embeds"));
    let scale: f64 = golden.metadata()["cfg"].parse().unwrap();
    for (case, guidance) in [("cfg", Some((&negative, scale))), ("plain", None)] {
        let latents = rows(&model, &golden, "initial_latents");
        let per_step = latents.len();
        let expected = golden.f64(&format!("{case}.latents"));
        let steps = expected.len() / per_step;
        let sigmas = scheduler.sigmas(steps, grid.0 * grid.1);
        assert_close(&format!("{case}.sigmas"), &sigmas, &golden.f64(&format!("{case}.sigmas")), 1e-6);
        let conditioning = Conditioning { prompt: &prompt, guidance };
        let mut seen = 0;
        denoise(&model, None, latents, &sigmas, grid, conditioning, &mut |step, latents| {
            let expected = &expected[step * per_step..(step + 1) * per_step];
            assert_close(&format!("{case}.latents[{step}]"), &latents.to_f64().unwrap(), expected, 2e-3);
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, steps);
    }
}
