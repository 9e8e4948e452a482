//! VAE: encode and decode against the reference, with every intermediate activation that the file has.

use std::collections::BTreeSet;

use tenggat_models::qwen_image::patchify::{pack, unpack};
use tenggat_models::vae::{Vae, clamp};
use tenggat_tensor::{DType, Device, Tensor};

use super::fixture::{Golden, assert_close, assert_close_l2, folder};

/// Limit of latents and pictures, from the README of the golden set.
const LIMIT: f64 = 2e-4;
/// Limit of an intermediate activation, relative to its largest value. The reference's own f32 run is up to
/// 1.1e-5 away from f64 (`dec.norm_out`, where the norm divides by the length of pixels that nearly cancel).
const INTERMEDIATE: f64 = 1e-4;

fn load(dtype: DType) -> Vae {
    Vae::load(&folder().join("qwen_image/vae"), &Device::cpu_poisoned(), dtype).unwrap()
}

/// Channels, height and width of `[1, c, h, w]` or `[1, c, 1, h, w]`.
fn size(shape: &[usize]) -> [usize; 3] {
    match *shape {
        [1, c, h, w] | [1, c, 1, h, w] => [c, h, w],
        _ => panic!("unexpected shape {shape:?}"),
    }
}

/// A tensor of the file with its channels last: shape `[1, h, w, c]` and values.
fn channels_last(golden: &Golden, name: &str) -> ([usize; 4], Vec<f64>) {
    let [c, h, w] = size(&golden.shape(name));
    let values = golden.f64(name);
    let last = (0..h * w * c).map(|i| values[i % c * h * w + i / c]).collect();
    ([1, h, w, c], last)
}

pub fn tensor(golden: &Golden, name: &str, dtype: DType) -> Tensor {
    let (shape, values) = channels_last(golden, name);
    Tensor::from_f64(&Device::cpu_poisoned(), dtype, &values, &shape).unwrap()
}

/// Compares with a tensor of the file; `limit` is relative to its largest value where `relative`.
pub fn compare(golden: &Golden, name: &str, got: &Tensor, limit: f64, relative: bool) {
    let (shape, expected) = channels_last(golden, name);
    assert_eq!(got.shape(), shape, "{name}");
    let scale = if relative { expected.iter().fold(0.0f64, |m, v| m.max(v.abs())) } else { 1.0 };
    assert_close(name, &got.to_f64().unwrap(), &expected, limit * scale);
}

/// Prefixes `img0.`, `img1.`, … of the file.
pub fn images(golden: &Golden) -> Vec<String> {
    let prefixes: Vec<String> =
        (0..).map(|i| format!("img{i}.")).take_while(|p| golden.contains(&format!("{p}image"))).collect();
    assert!(!prefixes.is_empty(), "no img0.image in the file");
    prefixes
}

fn encodes_and_decodes(dtype: DType) {
    let (golden, vae) = (Golden::open("vae.safetensors"), load(dtype));
    let mut compared = BTreeSet::new();
    for prefix in images(&golden) {
        let mut check = |name: &str, x: &Tensor, limit: f64, relative: bool| {
            let name = format!("{prefix}{name}");
            if golden.contains(&name) {
                compare(&golden, &name, x, limit, relative);
                compared.insert(name);
            }
        };
        let of = |name: &str| tensor(&golden, &format!("{prefix}{name}"), dtype);
        let mut seen = |name: &str, x: &Tensor| check(name, x, INTERMEDIATE, true);
        let posterior = vae.encode_traced(&of("image"), &mut seen).unwrap();
        let latents = vae.normalise(&posterior.mode().unwrap()).unwrap();
        let sampled = vae.normalise(&posterior.sample(&of("eps")).unwrap()).unwrap();
        let mut picture = vae.decode_traced(&of("latents"), &mut seen).unwrap();
        clamp(&mut picture).unwrap();
        check("mean", &posterior.mean, LIMIT, false);
        check("logvar", &posterior.logvar, LIMIT, false);
        check("mode", &posterior.mode().unwrap(), LIMIT, false);
        check("latents", &latents, LIMIT, false);
        check("sampled_latents", &sampled, LIMIT, false);
        check("decoded", &picture, LIMIT, false);
        let again = vae.normalise(&vae.denormalise(&latents).unwrap()).unwrap();
        assert_close(
            "normalise inverts denormalise",
            &again.to_f64().unwrap(),
            &latents.to_f64().unwrap(),
            2e-6,
        );
    }
    let inputs = |name: &String| name.ends_with(".image") || name.ends_with(".eps");
    let all: BTreeSet<String> = golden.names().into_iter().filter(|n| !inputs(n)).collect();
    assert_eq!(compared, all, "every tensor of the file is compared");
}

#[test]
fn f32_matches_the_reference() {
    encodes_and_decodes(DType::F32);
}

/// The plain reference ops in f64: what is left is the rounding of the golden f32 run.
#[test]
fn f64_matches_the_reference() {
    encodes_and_decodes(DType::F64);
}

#[test]
fn a_batch_equals_its_pictures_alone() {
    let (golden, vae) = (Golden::open("vae.safetensors"), load(DType::F32));
    let (shape, values) = channels_last(&golden, "img0.image");
    let darker: Vec<f64> = values.iter().map(|v| v * 0.5).collect();
    let make = |v: &[f64], b| {
        let shape = [b, shape[1], shape[2], shape[3]];
        Tensor::from_f64(&Device::cpu_poisoned(), DType::F32, v, &shape).unwrap()
    };
    let run = |image: &Tensor| {
        let latents = vae.normalise(&vae.encode(image).unwrap().mode().unwrap()).unwrap();
        let picture = vae.decode(&latents).unwrap().to_f32().unwrap();
        (latents.to_f32().unwrap(), picture)
    };
    // More pictures than one group takes: 2^18 pixels and a few.
    let pictures = (1 << 18) / (shape[1] * shape[2]) + 2;
    let many: Vec<f64> =
        (0..pictures).flat_map(|i| if i % 2 == 0 { &values } else { &darker }.clone()).collect();
    let (latents, decoded) = run(&make(&many, pictures));
    let alone = [run(&make(&values, 1)), run(&make(&darker, 1))];
    let repeated = |part: usize| -> Vec<f32> {
        (0..pictures)
            .flat_map(|i| if part == 0 { &alone[i % 2].0 } else { &alone[i % 2].1 }.clone())
            .collect()
    };
    // Matrix products may be cut differently for other numbers of rows.
    assert_close("latents of a batch", &latents, &repeated(0), 1e-5);
    assert_close("pictures of a batch", &decoded, &repeated(1), 1e-5);
}

/// A smooth picture of waves, `[1, height, width, channels]`.
fn waves(height: usize, width: usize, channels: usize) -> Tensor {
    let at = |i: usize| {
        let (y, x, c) = (i / channels / width, i / channels % width, i % channels);
        0.7 * ((y as f64 / 23.0).sin() + (x as f64 / 31.0 + c as f64).cos()) / 2.0
    };
    let values: Vec<f64> = (0..height * width * channels).map(at).collect();
    let shape = [1, height, width, channels];
    Tensor::from_f64(&Device::cpu_poisoned(), DType::F32, &values, &shape).unwrap()
}

#[test]
fn tiles_change_little_and_one_tile_nothing() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/mini/model/vae");
    let mut vae = Vae::load(folder.as_ref(), &Device::cpu_poisoned(), DType::F32).unwrap();
    let channels = vae.picture_channels();
    let run = |vae: &Vae, image: &Tensor| {
        let latents = vae.normalise(&vae.encode(image).unwrap().mean).unwrap();
        [latents.to_f64().unwrap(), vae.decode(&latents).unwrap().to_f64().unwrap()]
    };
    let (small, large) = (waves(256, 128, channels), waves(256, 320, channels));
    let whole = [run(&vae, &small), run(&vae, &large)];
    vae.tile_above(0);
    assert_eq!(run(&vae, &small), whole[0], "no larger than one tile");
    vae.tile_above(256 * 320);
    assert_eq!(run(&vae, &large), whole[1], "not above the threshold");
    vae.tile_above(256 * 320 - 1);
    let tiled = run(&vae, &large);
    // The first tile ends at column 256 and is faded out over the 64 columns before; left of those, what the
    // tile does not see is far away, and the rest comes from the attention, which sees less.
    for (i, (what, edge)) in [("latents", 192 / 8), ("picture", 192)].into_iter().enumerate() {
        let (rows, columns) = if i == 0 { (256 / 8, 320 / 8) } else { (256, 320) };
        let per_row = whole[1][i].len() / rows;
        let left = |v: &[f64]| -> Vec<f64> {
            v.chunks(per_row).flat_map(|row| row[..edge * per_row / columns].to_vec()).collect()
        };
        let (tiled, whole) = (&tiled[i], &whole[1][i]);
        assert_close_l2(&format!("{what}, tiled, away from seams"), &left(tiled), &left(whole), 1e-2);
        assert_close_l2(&format!("{what}, tiled"), tiled, whole, 3e-2);
    }
}

/// The packed layout of the transformer's golden inputs is checked there; here: latents survive it.
#[test]
fn packing_is_lossless() {
    let (golden, vae) = (Golden::open("vae.safetensors"), load(DType::F32));
    for prefix in images(&golden) {
        let latents = tensor(&golden, &format!("{prefix}latents"), DType::F32);
        let [_, h, w, z] = *latents.shape() else { panic!("four axes") };
        if h % 2 == 0 && w % 2 == 0 {
            let tokens = pack(&latents).unwrap();
            assert_eq!(tokens.shape(), [1, h * w / 4, 4 * z]);
            let back = unpack(&tokens, h / 2, w / 2).unwrap();
            assert_eq!(back.to_f32().unwrap(), latents.to_f32().unwrap());
        }
        assert_eq!(z, vae.latent_channels());
    }
}

#[test]
fn wrong_input_is_refused() {
    let vae = load(DType::F32);
    let zeros = |shape: &[usize]| Tensor::zeros(&Device::cpu(), DType::F32, shape).unwrap();
    for (shape, part) in [
        (&[1, 20, 16, 3][..], "20x16 pixels cannot be encoded"),
        (&[1, 16, 16, 4][..], "vae encode: image"),
        (&[16, 16, 3][..], "vae encode: image"),
        (&[0, 16, 16, 3][..], "vae encode: image"),
    ] {
        let message = vae.encode(&zeros(shape)).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert!(vae.decode(&zeros(&[1, 2, 2, 3])).unwrap_err().to_string().contains("vae decode: latents"));
}
