//! `sampling`: the denoising loop against the diffusers pipelines, packing, and the picture.

use std::ops::ControlFlow;

use tenggat_models::qwen_image::{Conditioning, Guidance, Scheduler, TextBatch, denoise, patchify};
use tenggat_models::vae::{self, Vae};
use tenggat_tensor::ops::guidance::Norm;
use tenggat_tensor::{DType, Device, Tensor};

use super::transformer::load;
use super::{folder, open};
use crate::fixture::{Golden, assert_close};
use crate::transformer::rows;
use crate::vae::tensor;

#[test]
fn latents_are_packed_as_by_the_pipeline() {
    let golden = open("sampling.safetensors");
    let latents = tensor(&golden, "pack.latents", DType::F32);
    let packed = patchify::pack(&latents).unwrap();
    assert_eq!(packed.shape(), golden.shape("pack.packed"));
    assert_eq!(packed.to_f64().unwrap(), golden.f64("pack.packed"));
    let [_, height, width, _] = *latents.shape() else { panic!("four axes") };
    let back = patchify::unpack(&packed, height / 2, width / 2).unwrap();
    assert_eq!(back.to_f64().unwrap(), latents.to_f64().unwrap());
}

/// Guidance that the model was distilled from, true guidance besides, none, and from an image.
#[test]
fn latents_after_every_step() {
    let golden = open("sampling.safetensors");
    let metadata = golden.metadata();
    let number = |key: &str| -> f64 { metadata[key].parse().unwrap() };
    for case in ["plain", "cfg", "schnell", "img2img"] {
        let model = load(case, &Device::cpu_poisoned(), DType::F32);
        let variant = if case == "schnell" { "schnell" } else { "model" };
        let scheduler = Scheduler::load(&folder().join(variant).join("scheduler")).unwrap();
        let image = golden.shape(&format!("{case}.image_u8"));
        let (height, width) = (image[image.len() - 2], image[image.len() - 1]);
        let grid = (height / 16, width / 16);
        let texts = |name: &str| {
            let mut texts =
                TextBatch::new(&[&rows(&model, &golden, &format!("{name}.prompt_embeds"))]).unwrap();
            texts.pooled = Some(rows(&model, &golden, &format!("{name}.pooled_projections")));
            texts
        };
        let (prompt, negative) = (texts("prompt"), texts("negative"));
        let guidance = (case == "cfg").then(|| Guidance {
            negative: &negative,
            scale: number("true_cfg"),
            norm: Norm::Guided,
        });
        let start = format!("{case}.start_latents");
        let start = if golden.contains(&start) { start } else { "initial_latents".into() };
        let latents = rows(&model, &golden, &start);
        let (per_step, expected) = (latents.len(), golden.f64(&format!("{case}.latents")));
        let all = golden.f64(&format!("{case}.sigmas"));
        let sigmas = scheduler.sigmas(all.len() - 1, grid.0 * grid.1);
        assert_close(&format!("{case}.sigmas"), &sigmas, &all, 1e-6);
        // From an image, the first levels are left out.
        let sigmas = &sigmas[all.len() - 1 - expected.len() / per_step..];
        let embedded_guidance = number("guidance");
        let conditioning = Conditioning { prompt: &prompt, guidance, embedded_guidance };
        let mut seen = 0;
        let last = denoise(&model, None, latents, sigmas, grid, conditioning, &mut |step, latents| {
            let expected = &expected[step * per_step..(step + 1) * per_step];
            assert_close(&format!("{case}.latents[{step}]"), &latents.to_f64().unwrap(), expected, 2e-3);
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, expected.len() / per_step);
        check_picture(&golden, case, last, grid, model.config().in_channels);
    }
}

/// Decodes the final latents and compares the picture, raw and in bytes.
fn check_picture(golden: &Golden, case: &str, latents: Tensor, grid: (usize, usize), channels: usize) {
    let vae = Vae::load(&folder().join("model/vae"), &latents.device(), DType::F32).unwrap();
    let latents = latents.reshape(&[1, grid.0 * grid.1, channels]).unwrap();
    let mut picture = vae.decode(&patchify::unpack(&latents, grid.0, grid.1).unwrap()).unwrap();
    let planes = |picture: &Tensor| {
        let (values, pixels) = (picture.to_f64().unwrap(), picture.len() / 3);
        (0..picture.len()).map(|i| values[i % pixels * 3 + i / pixels]).collect::<Vec<f64>>()
    };
    // The tolerance of the latents, through a decoder whose gain is about one, and the scale of the latents.
    let raw = format!("{case}.decoded_raw");
    assert_close(&raw, &planes(&picture), &golden.f64(&raw), 5e-3);
    vae::clamp(&mut picture).unwrap();
    let bytes: Vec<f64> =
        planes(&picture).iter().map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round()).collect();
    assert_close(&format!("{case}.image_u8"), &bytes, &golden.f64(&format!("{case}.image_u8")), 1.0);
}

/// From an image: its latents are a sample of the posterior, mixed with noise at the first level.
#[test]
fn an_image_to_start_from_is_encoded_and_noised() {
    let golden = open("sampling.safetensors");
    let vae = Vae::load(&folder().join("model/vae"), &Device::cpu_poisoned(), DType::F32).unwrap();
    let of = |name: &str| tensor(&golden, &format!("img2img.{name}"), DType::F32);
    let posterior = vae.encode(&of("image_in")).unwrap();
    let latents = vae.normalise(&posterior.sample(&of("vae_eps")).unwrap()).unwrap();
    let expected = of("image_latents").to_f64().unwrap();
    assert_close("img2img.image_latents", &latents.to_f64().unwrap(), &expected, 1e-4);
    let s = golden.f64("img2img.start_sigma")[0];
    let noise = of("noise").to_f64().unwrap();
    let noised: Vec<f64> =
        latents.to_f64().unwrap().iter().zip(&noise).map(|(x, e)| (1.0 - s) * x + s * e).collect();
    let noised = Tensor::from_f64(&latents.device(), DType::F32, &noised, latents.shape()).unwrap();
    let packed = patchify::pack(&noised).unwrap().to_f64().unwrap();
    assert_close("img2img.start_latents", &packed, &golden.f64("img2img.start_latents"), 1e-4);
}
