//! `tenggat sample`: pictures from prompts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use tenggat_models::qwen_image::geometry::TOKEN_PX;
use tenggat_models::qwen_image::{PromptEncoder, Scheduler};
use tenggat_models::transformer::{Precision, Transformer};
use tenggat_models::vae::Vae;
use tenggat_tensor::DType;
use tenggat_train::outcome::generator::{Generator, Request};

use super::model::{load_lora, locate};
use super::run_folder::{self, Given};
use crate::assets;
use crate::cli;
use crate::device::{self, Choice};
use crate::output::{self, Bar, note, say};
use crate::when::span;

/// An image that takes longer is worth a word where no bar is shown.
const SLOW: Duration = Duration::from_secs(5);

/// Makes the pictures.
pub fn sample(args: &cli::Sample, choice: Choice) -> anyhow::Result<()> {
    let lora = args.lora.as_deref().map(Given::find).transpose()?;
    let model_name = run_folder::model(args.model.as_deref(), lora.as_ref())?;
    let asked = prompts(args, lora.as_ref())?;
    let (width, height) = match &args.size {
        Some(size) => parse_size(size)?,
        None => usual_size(model_name, lora.as_ref()),
    };
    let folder = locate(model_name)?;
    let device = device::open(choice)?;
    let precision = Precision::on(&device, false);
    let guided = args.guidance > 1.0;

    // The text encoder is dropped before the transformer comes.
    let (prompts, negative) = {
        let text = PromptEncoder::load(&folder, &device, precision)?;
        let prompts = asked.iter().map(|p| text.encode(&[p])).collect::<Result<Vec<_>, _>>()?;
        (prompts, guided.then(|| text.encode(&[&args.negative])).transpose()?)
    };
    let model = Transformer::load(&folder.join("transformer"), &device, precision)?;
    let scheduler = Scheduler::load(&folder.join("scheduler"))?;
    let file = lora.as_ref().map(|lora| lora.file.as_path());
    let lora = file.map(|path| load_lora(path, &model, args.strength)).transpose()?;
    let vae = Vae::load(&folder.join("vae"), &device, DType::F32)?;
    let generator = Generator { model: &model, vae: &vae, scheduler: &scheduler };
    for (i, prompt) in prompts.iter().enumerate() {
        let guidance = negative.as_ref().map(|text| (text, args.guidance));
        let seed = args.seed.wrapping_add(i as u64);
        let request = Request { prompt, guidance, width, height, seed, steps: args.steps };
        let bar = Bar::new(args.steps as u64, "{wide_bar} {pos}/{len}");
        let began = Instant::now();
        let (mut done, mut is_told) = (0, false);
        let mut tick = || {
            bar.inc(1);
            done += 1;
            if !output::shows_bars() && !is_told && began.elapsed() >= SLOW {
                is_told = true;
                let left_s = began.elapsed().as_secs_f64() / done as f64 * (args.steps - done) as f64;
                note!("image {} of {}: about {} more", i + 1, prompts.len(), span(left_s));
            }
            ControlFlow::Continue(())
        };
        let picture = generator.generate(lora.as_ref(), request, &mut tick)?;
        drop(bar);
        let path = numbered(&args.out, i, prompts.len());
        if let Some(picture) = picture {
            let mut parameters =
                request.parameters(asked[i], guided.then_some(args.negative.as_str()), model_name);
            if let Some(file) = file {
                let name = file.file_stem().unwrap_or_default().to_string_lossy();
                parameters += &format!(", LoRA: {name}, strength {}", args.strength);
            }
            tenggat_train::outcome::report::save_picture_with(&picture, 0, &path, &parameters)?;
            say!("{}", path.display());
        }
    }
    Ok(())
}

/// The prompts given, else those of the run's samples.
fn prompts<'a>(args: &'a cli::Sample, lora: Option<&'a Given>) -> anyhow::Result<Vec<&'a str>> {
    if !args.prompt.is_empty() {
        return Ok(args.prompt.iter().map(String::as_str).collect());
    }
    let job = lora.and_then(|lora| lora.job.as_ref());
    let of_run: Vec<&str> =
        job.map_or_else(Vec::new, |job| job.sample.prompts.iter().map(|p| p.text.as_str()).collect());
    anyhow::ensure!(!of_run.is_empty(), "give a --prompt; no run with sample prompts lies beside a --lora");
    Ok(of_run)
}

/// The size of the run's samples, else what suits the model.
fn usual_size(model: &str, lora: Option<&Given>) -> (usize, usize) {
    let first = lora.and_then(|lora| lora.job.as_ref()?.sample.prompts.first());
    let side = if model == assets::MINI { 128 } else { 1024 };
    first.map_or((side, side), |prompt| (prompt.width, prompt.height))
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
