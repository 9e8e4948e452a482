//! `sampling`: the denoising loop against the diffusers pipeline, with and without guidance.

use std::ops::ControlFlow;

use tenggat_models::qwen_image::{Conditioning, Guidance, Scheduler, TextBatch, denoise, patchify};
use tenggat_models::vae::{self, Vae};
use tenggat_tensor::ops::guidance::Norm;
use tenggat_tensor::{DType, Device, Tensor};

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
    let guidance = Guidance { negative: &negative, scale, norm: Norm::Conditional };
    for (case, guidance) in [("cfg", Some(guidance)), ("plain", None)] {
        let latents = rows(&model, &golden, "initial_latents");
        let per_step = latents.len();
        let expected = golden.f64(&format!("{case}.latents"));
        let steps = expected.len() / per_step;
        let sigmas = scheduler.sigmas(steps, grid.0 * grid.1);
        assert_close(&format!("{case}.sigmas"), &sigmas, &golden.f64(&format!("{case}.sigmas")), 1e-6);
        let conditioning = Conditioning { prompt: &prompt, guidance, embedded_guidance: 1.0 };
        let mut seen = 0;
        let last = denoise(&model, None, latents, &sigmas, grid, conditioning, &mut |step, latents| {
            let expected = &expected[step * per_step..(step + 1) * per_step];
            assert_close(&format!("{case}.latents[{step}]"), &latents.to_f64().unwrap(), expected, 2e-3);
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, steps);
        check_picture(&golden, case, last, grid, model.config().in_channels);
    }
}

/// Decodes the final latents and compares the picture, raw, in 0..1 and in bytes.
fn check_picture(golden: &Golden, case: &str, latents: Tensor, grid: (usize, usize), channels: usize) {
    let vae = Vae::load(&folder().join("qwen_image/vae"), &latents.device(), DType::F32).unwrap();
    let latents = latents.reshape(&[1, grid.0 * grid.1, channels]).unwrap();
    let mut picture = vae.decode(&patchify::unpack(&latents, grid.0, grid.1).unwrap()).unwrap();
    let planes = |picture: &Tensor| {
        let (values, pixels) = (picture.to_f64().unwrap(), picture.len() / 3);
        (0..picture.len()).map(|i| values[i % pixels * 3 + i / pixels]).collect::<Vec<f64>>()
    };
    // The tolerance of the latents, through a decoder whose gain is about one.
    let raw = format!("{case}.decoded_raw");
    assert_close(&raw, &planes(&picture), &golden.f64(&raw), 2e-3);
    vae::clamp(&mut picture).unwrap();
    let unit: Vec<f64> = planes(&picture).iter().map(|x| (x / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
    assert_close(&format!("{case}.image"), &unit, &golden.f64(&format!("{case}.image")), 1e-3);
    let bytes: Vec<f64> = unit.iter().map(|x| (x * 255.0).round()).collect();
    assert_close(&format!("{case}.image_u8"), &bytes, &golden.f64(&format!("{case}.image_u8")), 1.0);
}
