//! tenggat's side of `cpu_parts.py`: the autoencoder or the text encoder of a model folder, on request.
//!
//! Arguments: `part=encode|decode|text model=<folder> side=512 tokens=64 threads=2`. Prints `ready`; then for
//! every line with a number runs so many times and prints their wall-clock seconds on one line.

mod turns;

use std::collections::HashMap;
use std::path::Path;

use tenggat_models::qwen_image::text_encoder::TextEncoder;
use tenggat_models::transformer::Precision;
use tenggat_models::vae::Vae;
use tenggat_tensor::random::Philox;
use tenggat_tensor::{DType, Device, Tensor};
use turns::Error;

type Part = Box<dyn Fn() -> Result<(), Error> + Send>;

fn normal(shape: &[usize]) -> Result<Tensor, Error> {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(1).normal(0, &mut values);
    Ok(Tensor::from_f32(&Device::cpu(), DType::F32, &values, shape)?)
}

fn part(arguments: &HashMap<String, String>) -> Result<Part, Error> {
    let text = |key: &str| arguments.get(key).ok_or_else(|| format!("argument `{key}=` is missing"));
    let (model, side) = (Path::new(text("model")?), text("side")?.parse::<usize>()?);
    let vae = || Vae::load(&model.join("vae"), &Device::cpu(), DType::F32);
    match text("part")?.as_str() {
        "encode" => {
            let (vae, picture) = (vae()?, normal(&[1, side, side, 3])?);
            Ok(Box::new(move || Ok(vae.encode(&picture).map(drop)?)))
        }
        "decode" => {
            let vae = vae()?;
            let side = side / vae.spatial_factor();
            let latents = normal(&[1, side, side, vae.latent_channels()])?;
            Ok(Box::new(move || Ok(vae.decode(&latents).map(drop)?)))
        }
        "text" => {
            let precision = Precision { compute: DType::F32, weights: DType::F32 };
            let encoder = TextEncoder::load(&model.join("text_encoder"), &Device::cpu(), precision)?;
            let ids = vec![(1..=text("tokens")?.parse::<u32>()?).collect::<Vec<u32>>()];
            Ok(Box::new(move || Ok(encoder.encode(&ids).map(drop)?)))
        }
        other => Err(format!("part `{other}`: expected encode, decode or text").into()),
    }
}

fn serve(arguments: &HashMap<String, String>) -> Result<(), Error> {
    let run = part(arguments)?;
    run()?;
    turns::take(&*run)
}

fn main() -> Result<(), Error> {
    turns::with_arguments(serve)
}
