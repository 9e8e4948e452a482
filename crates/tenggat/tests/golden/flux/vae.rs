//! VAE: encode and decode against the reference, with every intermediate activation that the file has.

use std::collections::BTreeSet;

use tenggat_models::vae::Vae;
use tenggat_tensor::{DType, Device};

use super::{folder, open};
use crate::vae::{compare, images, tensor};

/// Limit of latents and pictures.
const LIMIT: f64 = 1e-4;
/// Limit of an intermediate activation, relative to its largest value.
const INTERMEDIATE: f64 = 1e-4;

/// In f64, what is left is the rounding of the golden f32 run.
#[test]
fn encodes_and_decodes() {
    let golden = open("vae.safetensors");
    for dtype in [DType::F32, DType::F64] {
        let vae = Vae::load(&folder().join("model/vae"), &Device::cpu_poisoned(), dtype).unwrap();
        let mut compared = BTreeSet::new();
        for prefix in images(&golden) {
            let mut check = |name: &str, x: &tenggat_tensor::Tensor, limit: f64, relative: bool| {
                let name = format!("{prefix}{name}");
                if golden.contains(&name) {
                    compare(&golden, &name, x, limit, relative);
                    compared.insert(name);
                }
            };
            let of = |name: &str| tensor(&golden, &format!("{prefix}{name}"), dtype);
            let mut seen = |name: &str, x: &tenggat_tensor::Tensor| check(name, x, INTERMEDIATE, true);
            let posterior = vae.encode_traced(&of("image"), &mut seen).unwrap();
            let latents = vae.normalise(&posterior.mode().unwrap()).unwrap();
            let sampled = vae.normalise(&posterior.sample(&of("eps")).unwrap()).unwrap();
            let picture = vae.decode_traced(&of("latents"), &mut seen).unwrap();
            check("mean", &posterior.mean, LIMIT, false);
            check("logvar", &posterior.logvar, LIMIT, false);
            check("latents", &latents, LIMIT, false);
            check("sampled_latents", &sampled, LIMIT, false);
            check("decoded", &picture, LIMIT, false);
        }
        let inputs = |name: &String| name.ends_with(".image") || name.ends_with(".eps");
        let all: BTreeSet<String> = golden.names().into_iter().filter(|n| !inputs(n)).collect();
        assert_eq!(compared, all, "every tensor of the file is compared");
    }
}
