//! `tenggat sample`: pictures from prompts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::transformer::{Precision, Transformer};
use tenggat_models::qwen_image::vae::{self, Vae};
use tenggat_models::qwen_image::{Conditioning, PromptEncoder, Scheduler, denoise, patchify};
use tenggat_tensor::random::Mt19937;
use tenggat_tensor::{DType, Device, Tensor};
use tenggat_train::lora_file;

use super::model::locate;
use crate::cli;

/// Makes the pictures.
pub fn sample(args: &cli::Sample) -> anyhow::Result<()> {
    let (width, height) = parse_size(&args.size)?;
    let grid = (height / 16, width / 16);
    let folder = locate(&args.model)?;
    let device = Device::cpu();
    let precision = Precision { compute: DType::F32, weights: DType::F32 };
    let guided = args.guidance > 1.0;

    // The text encoder is dropped before the transformer comes.
    let (prompts, negative) = {
        let text = PromptEncoder::load(&folder, &device, precision)?;
        let prompts: Vec<&str> = args.prompt.iter().map(String::as_str).collect();
        let prompts = prompts.iter().map(|p| text.encode(&[p])).collect::<Result<Vec<_>, _>>()?;
        (prompts, guided.then(|| text.encode(&[&args.negative])).transpose()?)
    };
    let model = Transformer::load(&folder.join("transformer"), &device, precision)?;
    let scheduler = Scheduler::load(&folder.join("scheduler"))?;
    let lora = args.lora.as_deref().map(|path| load_lora(path, &model, args.strength)).transpose()?;
    let sigmas = scheduler.sigmas(args.steps.max(1), grid.0 * grid.1);
    let vae = Vae::load(&folder.join("vae"), &device, DType::F32)?;
    for (i, prompt) in prompts.iter().enumerate() {
        let channels = model.config().in_channels;
        let noise = initial_noise(args.seed + i as u64, grid, channels);
        let latents = Tensor::from_f32(&device, DType::F32, &noise, &[grid.0 * grid.1, channels])?;
        let conditioning =
            Conditioning { prompt, guidance: negative.as_ref().map(|text| (text, args.guidance)) };
        let bar = ProgressBar::new(args.steps as u64);
        let mut tick = |_: usize, _: &Tensor| {
            bar.inc(1);
            ControlFlow::Continue(())
        };
        let latents = denoise(&model, lora.as_ref(), latents, &sigmas, grid, conditioning, &mut tick)?;
        bar.finish_and_clear();
        let latents = latents.reshape(&[1, grid.0 * grid.1, channels])?;
        let mut picture = vae.decode(&patchify::unpack(&latents, grid.0, grid.1)?)?;
        vae::clamp(&mut picture)?;
        let path = numbered(&args.out, i, prompts.len());
        tenggat_train::report::save_picture(&picture, 0, &path)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Noise as the diffusers pipeline draws it with a CPU generator: `[channels/4, h, w]` latents, then packed.
fn initial_noise(seed: u64, (rows, columns): (usize, usize), channels: usize) -> Vec<f32> {
    let z = channels / 4;
    let (h, w) = (2 * rows, 2 * columns);
    let mut latents = vec![0.0; z * h * w];
    Mt19937::new(seed).randn(&mut latents);
    let mut packed = Vec::with_capacity(latents.len());
    for token in 0..rows * columns {
        let (row, column) = (token / columns, token % columns);
        for c in 0..channels {
            let (y, x) = (2 * row + c % 4 / 2, 2 * column + c % 2);
            packed.push(latents[(c / 4) * h * w + y * w + x]);
        }
    }
    packed
}

fn load_lora(path: &Path, model: &Transformer, strength: f64) -> anyhow::Result<Lora> {
    let file = lora_file::load(path)?;
    let mut lora = lora_file::into_lora(&file, model).with_context(|| path.display().to_string())?;
    lora.scale = strength;
    Ok(lora)
}

fn parse_size(text: &str) -> anyhow::Result<(usize, usize)> {
    let parsed =
        text.split_once('x').and_then(|(w, h)| Some((w.parse::<usize>().ok()?, h.parse::<usize>().ok()?)));
    match parsed {
        Some((w, h)) if w >= 16 && h >= 16 && w <= 8192 && h <= 8192 => Ok((w / 16 * 16, h / 16 * 16)),
        _ => bail!("--size {text}: expected WIDTHxHEIGHT with sides of 16 to 8192 pixels, such as 1024x768"),
    }
}

/// `out.png`, or `out-1.png`, `out-2.png`, … if there are several.
fn numbered(path: &Path, i: usize, n: usize) -> PathBuf {
    if n == 1 {
        return path.to_path_buf();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or("png".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{}.{extension}", i + 1))
}
