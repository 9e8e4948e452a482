//! `tenggat sample`: pictures from prompts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::bail;
use tenggat_models::qwen_image::geometry::TOKEN_PX;
use tenggat_models::qwen_image::{PromptEncoder, Scheduler};
use tenggat_models::transformer::{Precision, Transformer};
use tenggat_models::vae::Vae;
use tenggat_tensor::DType;
use tenggat_train::outcome::generator::{Generator, Request};

use super::model::{load_lora, locate};
use crate::cli;
use crate::device::{self, Choice};
use crate::output::{Bar, say};

/// Makes the pictures.
pub fn sample(args: &cli::Sample, choice: Choice) -> anyhow::Result<()> {
    let (width, height) = parse_size(&args.size)?;
    let folder = locate(&args.model)?;
    let device = device::open(choice)?;
    let precision = Precision::on(&device, false);
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
    let vae = Vae::load(&folder.join("vae"), &device, DType::F32)?;
    let generator = Generator { model: &model, vae: &vae, scheduler: &scheduler };
    for (i, prompt) in prompts.iter().enumerate() {
        let guidance = negative.as_ref().map(|text| (text, args.guidance));
        let seed = args.seed.wrapping_add(i as u64);
        let request = Request { prompt, guidance, width, height, seed, steps: args.steps };
        let bar = Bar::new(args.steps as u64, "{wide_bar} {pos}/{len}");
        let mut tick = || {
            bar.inc(1);
            ControlFlow::Continue(())
        };
        let picture = generator.generate(lora.as_ref(), request, &mut tick)?;
        drop(bar);
        let path = numbered(&args.out, i, prompts.len());
        if let Some(picture) = picture {
            let mut parameters =
                request.parameters(&args.prompt[i], guided.then_some(args.negative.as_str()), &args.model);
            if let Some(lora) = &args.lora {
                let name = lora.file_stem().unwrap_or_default().to_string_lossy();
                parameters += &format!(", LoRA: {name}, strength {}", args.strength);
            }
            tenggat_train::outcome::report::save_picture_with(&picture, 0, &path, &parameters)?;
            say!("{}", path.display());
        }
    }
    Ok(())
}

fn parse_size(text: &str) -> anyhow::Result<(usize, usize)> {
    let parsed =
        text.split_once('x').and_then(|(w, h)| Some((w.parse::<usize>().ok()?, h.parse::<usize>().ok()?)));
    match parsed {
        Some((w, h)) if w.min(h) >= TOKEN_PX && w.max(h) <= 8192 => {
            Ok((w / TOKEN_PX * TOKEN_PX, h / TOKEN_PX * TOKEN_PX))
        }
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
