//! `transformer_forward`, `lora_grad*` and `lora_file_check`: the transformer against diffusers and peft.

use std::collections::HashMap;

use tenggat_models::lora::{Gradients, Lora};
use tenggat_models::transformer::{
    Global, Inputs, LoadOptions, Positions, Precision, Recompute, Transformer,
};
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::{DType, Device, Tensor};

use super::{folder, open};
use crate::fixture::{Golden, assert_close, assert_close_l2};
use crate::transformer::{adapter, rows};

/// The dev model, or for `schnell` the other one.
pub fn load(case: &str, device: &Device, dtype: DType) -> Transformer {
    load_with(case, device, Precision { compute: dtype, weights: dtype }, LoadOptions::default())
}

/// The same, loaded in another way.
pub fn load_with(case: &str, device: &Device, precision: Precision, options: LoadOptions<'_>) -> Transformer {
    let variant = if case.contains("schnell") { "schnell" } else { "model" };
    Transformer::load_with(&folder().join(variant).join("transformer"), device, precision, options).unwrap()
}

/// The batch of one golden case.
pub struct Case {
    pub latents: Tensor,
    pub sigmas: Vec<f64>,
    text: Tensor,
    text_lens: Vec<usize>,
    positions: Positions,
    pooled: Tensor,
    guidance: Vec<f64>,
}

impl Case {
    /// Reads `<prefix><latents>`, `<prefix><sigma>` and what else conditions a case.
    pub fn read(model: &Transformer, golden: &Golden, prefix: &str, [latents, sigma]: [&str; 2]) -> Self {
        let name = |n: &str| format!("{prefix}{n}");
        let ids = |n: &str| -> Vec<[f64; 3]> {
            golden.f64(&name(n)).chunks(3).map(|id| [id[0], id[1], id[2]]).collect()
        };
        let sigmas = golden.f64(&name(sigma));
        let guidance = match golden.contains(&name("guidance")) {
            true => golden.f64(&name("guidance")),
            false => Vec::new(),
        };
        let text_tokens = golden.shape(&name("txt_ids"))[0];
        Case {
            latents: rows(model, golden, &name(latents)),
            text: rows(model, golden, &name("encoder_hidden_states")),
            text_lens: vec![text_tokens; sigmas.len()],
            positions: model.positions_at(&ids("img_ids"), &ids("txt_ids")).unwrap(),
            pooled: rows(model, golden, &name("pooled_projections")),
            sigmas,
            guidance,
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            latents: &self.latents,
            sigmas: &self.sigmas,
            text: &self.text,
            text_lens: &self.text_lens,
            positions: &self.positions,
            global: Some(Global { pooled: &self.pooled, guidance: &self.guidance }),
        }
    }

    /// Rows of the joint stream, whose samples have their image first, as the reference has them: text first.
    fn text_first(&self, joint: &[f64]) -> Vec<f64> {
        let (image, text) = (self.positions.image.shape()[0], self.text_lens[0]);
        let columns = joint.len() / (self.sigmas.len() * (image + text));
        let mut reordered = Vec::with_capacity(joint.len());
        for sample in joint.chunks((image + text) * columns) {
            let (image, text) = sample.split_at(image * columns);
            reordered.extend(text.iter().chain(image));
        }
        reordered
    }

    /// Image and text rows of the joint stream.
    fn split(&self, joint: &[f64]) -> [Vec<f64>; 2] {
        let (image, text) = (self.positions.image.shape()[0], self.text_lens[0]);
        let columns = joint.len() / (self.sigmas.len() * (image + text));
        let samples = || joint.chunks((image + text) * columns);
        let part = |at: &dyn Fn(&[f64]) -> Vec<f64>| samples().flat_map(at).collect();
        [part(&|s| s[..image * columns].to_vec()), part(&|s| s[image * columns..].to_vec())]
    }
}

const CASES: [&str; 4] = ["one", "batch", "ids", "schnell"];

/// Columns `from..to` of rows of `width`.
fn columns(values: &[f64], width: usize, from: usize, to: usize) -> Vec<f64> {
    values.chunks(width).flat_map(|row| row[from..to].to_vec()).collect()
}

/// Traced activations by the names of the golden data.
fn named(model: &Transformer, case: &Case, seen: &HashMap<String, Vec<f64>>) -> HashMap<String, Vec<f64>> {
    let (doubles, c) = (model.config().num_layers, model.config().inner());
    let mut named = HashMap::new();
    for (name, values) in seen {
        let mut put = |name: String, values: Vec<f64>| drop(named.insert(name, values));
        match name.as_str() {
            "img_in" => put("x_embedder".into(), values.clone()),
            "txt_in" => put("context_embedder".into(), values.clone()),
            _ => {}
        }
        let Some((block, what)) = name.strip_prefix("block").and_then(|rest| rest.split_once('.')) else {
            put(name.clone(), values.clone());
            continue;
        };
        let block: usize = block.parse().unwrap();
        if block < doubles {
            let own = match what {
                "img_mod" => "norm1.linear",
                "txt_mod" => "norm1_context.linear",
                "img_mlp.net.0" => "ff.net.0",
                "img_mlp" => "ff",
                "txt_mlp" => "ff_context",
                "img_qkv" => {
                    put(format!("double{block}.attn.to_q"), columns(values, 3 * c, 0, c));
                    continue;
                }
                other => other,
            };
            put(format!("double{block}.{own}"), values.clone());
            continue;
        }
        let block = block - doubles;
        let wide = values.len() / (case.sigmas.len() * (case.positions.image.shape()[0] + case.text_lens[0]));
        let joint = |own: &str, values: &[f64]| (format!("single{block}.{own}"), case.text_first(values));
        let (name, values) = match what {
            "joint" => {
                let [image, text] = case.split(values);
                put(format!("single{block}.hidden_states"), image);
                (format!("single{block}.encoder_hidden_states"), text)
            }
            "mod" => (format!("single{block}.norm.linear"), values.clone()),
            "normed" => joint("norm.out", values),
            "attn" => joint("attn", values),
            "fused" => joint("proj_mlp", &columns(values, wide, 3 * c, wide)),
            "joined" => joint("act_mlp", &columns(values, wide, c, wide)),
            "out" => joint("proj_out", values),
            other => panic!("{other}"),
        };
        put(name, values);
    }
    named
}

#[test]
fn forward_in_f32() {
    let golden = open("transformer_forward.safetensors");
    for prefix in CASES {
        let model = load(prefix, &Device::cpu_poisoned(), DType::F32);
        let case = Case::read(&model, &golden, &format!("{prefix}."), ["hidden_states", "timestep"]);
        check_positions(&golden, prefix, &case);
        let mut seen = HashMap::new();
        let out = model.forward_traced(case.inputs(), None, &mut |name, tensor| {
            seen.insert(name.to_string(), tensor.to_f64().unwrap());
        });
        let named = named(&model, &case, &seen);
        let inputs = ["hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections"];
        for name in golden.names() {
            let Some(own) = name.strip_prefix(&format!("{prefix}.")) else { continue };
            // Norms that are fused with what follows or precedes them are inside of what is compared.
            let fused = ["double0.norm1.norm", "double0.norm1.out", "double0.norm2"].contains(&own)
                || own.starts_with("double0.attn.norm_");
            let other = own.ends_with("_ids") || own.starts_with("rope.") || own.starts_with("output");
            if inputs.contains(&own) || fused || other {
                continue;
            }
            let got = named.get(own).unwrap_or_else(|| panic!("{own} is not traced: {:?}", named.keys()));
            let limit = if own == "time_proj" { 1e-4 } else { 6e-4 };
            assert_close(&name, got, &golden.f64(&name), limit);
        }
        let out = out.unwrap().to_f64().unwrap();
        for (reference, limit) in [("output", 6e-4), ("output_f64", 4e-4)] {
            let name = format!("{prefix}.{reference}");
            assert_close(&name, &out, &golden.f64(&name), limit);
        }
    }
}

fn check_positions(golden: &Golden, prefix: &str, case: &Case) {
    let joint = case.positions.joint.as_ref().unwrap();
    let (d, image) = (joint.shape()[1], case.positions.image.shape()[0]);
    let values = joint.to_f64().unwrap();
    let tables = [&case.positions.image, &case.positions.text].map(|t| t.to_f64().unwrap());
    assert_eq!(values, tables.concat(), "the joint table is both others");
    let (image, text) = values.split_at(image * d);
    let text_first = [text, image].concat();
    for (half, name) in ["cos", "sin"].into_iter().enumerate() {
        // Each value is repeated for its pair of channels.
        let got: Vec<f64> = columns(&text_first, d, half * d / 2, (half + 1) * d / 2)
            .into_iter()
            .flat_map(|v| [v, v])
            .collect();
        let name = format!("{prefix}.rope.{name}");
        assert_close(&name, &got, &golden.f64(&name), 1e-5);
    }
}

/// The positions of an image without others beside it are those of the pipeline.
#[test]
fn positions_count_from_the_corner() {
    let golden = open("sampling.safetensors");
    let model = load("dev", &Device::cpu_poisoned(), DType::F64);
    let latents = golden.shape("pack.latents");
    let ids: Vec<[f64; 3]> = golden.f64("pack.img_ids").chunks(3).map(|id| [id[0], id[1], id[2]]).collect();
    let expected = model.positions_at(&ids, &[[0.0; 3]; 5]).unwrap();
    let got = model.positions((latents[2] / 2, latents[3] / 2), 5).unwrap();
    for (got, expected) in [
        (&got.image, &expected.image),
        (&got.text, &expected.text),
        (got.joint.as_ref().unwrap(), expected.joint.as_ref().unwrap()),
    ] {
        assert_eq!(got.to_f64().unwrap(), expected.to_f64().unwrap());
    }
}

/// The whole model in f64 is exact to the last digits of the reference in f64.
#[test]
fn forward_in_f64() {
    let golden = open("transformer_forward.safetensors");
    for prefix in CASES {
        let model = load(prefix, &Device::cpu_poisoned(), DType::F64);
        let case = Case::read(&model, &golden, &format!("{prefix}."), ["hidden_states", "timestep"]);
        let out = model.forward(case.inputs(), None).unwrap().to_f64().unwrap();
        let name = format!("{prefix}.output_f64");
        assert_close(&name, &out, &golden.f64(&name), 1e-9);
    }
}

#[test]
fn what_the_model_needs_is_named() {
    let golden = open("transformer_forward.safetensors");
    let model = load("dev", &Device::cpu_poisoned(), DType::F32);
    let mut case = Case::read(&model, &golden, "one.", ["hidden_states", "timestep"]);
    let message = |inputs: Inputs<'_>| model.forward(inputs, None).unwrap_err().to_string();
    assert!(message(Inputs { global: None, ..case.inputs() }).contains("guidance scale"));
    case.guidance.clear();
    assert!(message(case.inputs()).contains("guidance scale"));
    let schnell = load("schnell", &Device::cpu_poisoned(), DType::F32);
    let case = Case::read(&schnell, &golden, "schnell.", ["hidden_states", "timestep"]);
    let error = schnell.forward(Inputs { global: None, ..case.inputs() }, None).unwrap_err().to_string();
    assert!(error.contains("pooled text"), "{error}");
}

/// Loss, every LoRA gradient and the input gradient of one case.
pub struct Gradient {
    pub loss: f64,
    pub pred: Vec<f64>,
    pub lora: Vec<f64>,
    pub d_latents: Vec<f64>,
}

pub fn gradient(
    model: &Transformer,
    golden: &Golden,
    prefix: &str,
    lora: &Lora,
    recompute: Recompute,
) -> Gradient {
    let mut case = Case::read(model, golden, prefix, ["x_t", "t"]);
    let (x0, noise) = (golden.f64(&format!("{prefix}x0")), golden.f64(&format!("{prefix}noise")));
    let dtype = model.precision().compute;
    if dtype == DType::F64 {
        // The golden x_t was rounded to f32.
        let per_sample = x0.len() / case.sigmas.len();
        let mix = |i: usize| {
            let t = case.sigmas[i / per_sample];
            (1.0 - t) * x0[i] + t * noise[i]
        };
        let mixed: Vec<f64> = (0..x0.len()).map(mix).collect();
        case.latents = Tensor::from_f64(model.device(), dtype, &mixed, case.latents.shape()).unwrap();
    }
    let target: Vec<f64> = noise.iter().zip(&x0).map(|(e, x)| e - x).collect();
    let target = Tensor::from_f64(model.device(), dtype.wide(), &target, case.latents.shape()).unwrap();
    let (pred, tape) = model.forward_for_backward(case.inputs(), Some(lora), recompute).unwrap();
    let weights = vec![1.0; case.sigmas.len()];
    let (mut losses, mut dpred) =
        (pred.empty_wide(&[weights.len(), 1]).unwrap(), pred.empty_like(pred.shape()).unwrap());
    let (pred_view, target) = (pred.view(), target.view());
    let (to, d) = (losses.view_mut(), dpred.view_mut());
    loss::forward_backward(Loss::Squared, pred_view, target, &weights, to, d).unwrap();
    let mut buffer = Tensor::zeros(model.device(), dtype.wide(), &[lora.layout.len()]).unwrap();
    let gradients = Gradients { buffer: &mut buffer, write: Write::Replace };
    let d_latents = model.backward(case.inputs(), Some(lora), tape, &dpred, Some(gradients), true).unwrap();
    Gradient {
        loss: losses.to_f64().unwrap().iter().sum::<f64>() / weights.len() as f64,
        pred: pred.to_f64().unwrap(),
        lora: buffer.to_f64().unwrap(),
        d_latents: d_latents.unwrap().to_f64().unwrap(),
    }
}

/// File and cases of the gradients: both models.
const GRADIENTS: [(&str, &str); 2] =
    [("lora_grad.safetensors", "dev"), ("lora_grad_schnell.safetensors", "schnell")];

/// `one.`, `batch.`, as far as a file has them.
fn cases(golden: &Golden) -> Vec<&'static str> {
    let cases: Vec<_> =
        ["one.", "batch."].into_iter().filter(|case| golden.contains(&format!("{case}x_t"))).collect();
    assert!(!cases.is_empty());
    cases
}

/// Every matrix of an adapter: element range and key.
pub fn matrices(lora: &Lora) -> Vec<(std::ops::Range<usize>, String)> {
    let rank = lora.layout.rank();
    let of = |m: &tenggat_models::lora::Module| {
        let name = |part| format!("{}.lora_{part}.weight", m.name);
        [(m.a..m.a + rank * m.input, name("A")), (m.b..m.b + m.output * rank, name("B"))]
    };
    lora.layout.modules().iter().flat_map(of).collect()
}

#[test]
fn every_gradient_in_f32() {
    for (file, variant) in GRADIENTS {
        let golden = open(file);
        let model = load(variant, &Device::cpu_poisoned(), DType::F32);
        let lora = adapter(&model, &golden, "lora");
        let blocks = model.config();
        assert_eq!(lora.layout.modules().len(), 14 * blocks.num_layers + 6 * blocks.num_single_layers);
        assert!(lora.layout.modules().iter().all(|m| m.trained));
        for prefix in cases(&golden) {
            let results = Recompute { keep_all: 0, keep_results: blocks.blocks() };
            let mixed = Recompute { keep_all: 1, keep_results: 1 };
            for recompute in [Recompute::NOTHING, results, mixed, Recompute::EVERYTHING] {
                let got = gradient(&model, &golden, prefix, &lora, recompute);
                let name = |what: &str| format!("{prefix}{what}");
                assert_close(&name("pred"), &got.pred, &golden.f64(&name("pred")), 5e-4);
                let exact = golden.f64(&name("loss_f64"))[0];
                assert_close(&name("loss"), &[got.loss / exact], &[1.0], 2e-5);
                assert_close_l2(&name("d_x_t"), &got.d_latents, &golden.f64(&name("d_x_t")), 2e-4);
                let mut compared = 0;
                for (range, key) in matrices(&lora) {
                    let name = format!("{prefix}grad.{key}");
                    assert_close_l2(&name, &got.lora[range], &golden.f64(&name), 5e-4);
                    compared += 1;
                }
                let start = format!("{prefix}grad.");
                let there = golden.names().iter().filter(|name| name.starts_with(&start)).count();
                assert_eq!(compared, there, "every gradient of the file is compared");
            }
        }
    }
}

/// In f64 the gradients agree with the reference's f64 run to its last digits: nothing is approximately
/// right.
#[test]
fn every_gradient_in_f64() {
    for (file, variant) in GRADIENTS {
        let golden = open(file);
        let model = load(variant, &Device::cpu_poisoned(), DType::F64);
        let lora = adapter(&model, &golden, "lora");
        let order: Vec<String> = serde_json::from_str(&golden.metadata()["grad_norm_f64_order"]).unwrap();
        let matrices = matrices(&lora);
        for prefix in cases(&golden) {
            let got = gradient(&model, &golden, prefix, &lora, Recompute::NOTHING);
            let name = |what: &str| format!("{prefix}{what}");
            assert_close(&name("loss_f64"), &[got.loss], &golden.f64(&name("loss_f64")), 1e-9);
            let expected = golden.f64(&name("d_x_t_f64"));
            assert_close_l2(&name("d_x_t_f64"), &got.d_latents, &expected, 1e-9);
            for (key, norm) in order.iter().zip(golden.f64(&name("grad_norm_f64"))) {
                let (range, _) = matrices.iter().find(|(_, own)| own == key).unwrap();
                let mine = got.lora[range.clone()].iter().map(|x| x * x).sum::<f64>().sqrt();
                assert!((mine - norm).abs() <= 1e-8 * norm, "{prefix}{key}: {mine}, expected {norm}");
            }
        }
    }
}

/// Central differences of the loss in f64, of the whole model: two elements of every LoRA matrix.
#[test]
fn gradients_are_the_derivatives_of_the_loss() {
    let golden = open("lora_grad.safetensors");
    let model = load("dev", &Device::cpu(), DType::F64);
    let mut lora = adapter(&model, &golden, "lora");
    let analytic = gradient(&model, &golden, "batch.", &lora, Recompute::NOTHING).lora;
    let case = Case::read(&model, &golden, "batch.", ["x_t", "t"]);
    let (x0, noise) = (golden.f64("batch.x0"), golden.f64("batch.noise"));
    // The same latents as in `gradient`.
    let per_sample = x0.len() / case.sigmas.len();
    let mixed: Vec<f64> = (0..x0.len())
        .map(|i| (1.0 - case.sigmas[i / per_sample]) * x0[i] + case.sigmas[i / per_sample] * noise[i])
        .collect();
    let latents = Tensor::from_f64(model.device(), DType::F64, &mixed, case.latents.shape()).unwrap();
    let loss = |lora: &Lora| {
        let inputs = Inputs { latents: &latents, ..case.inputs() };
        let pred = model.forward(inputs, Some(lora)).unwrap().to_f64().unwrap();
        let squares = pred.iter().zip(noise.iter().zip(&x0)).map(|(p, (e, x))| (p - (e - x)).powi(2));
        squares.sum::<f64>() / pred.len() as f64
    };
    let step = 1e-5;
    let mut worst = 0.0f64;
    for (range, key) in matrices(&lora) {
        for i in [range.start + range.len() / 3, range.end - 1] {
            let mut at = |delta: f64| {
                let old = lora.parameters.to_f64().unwrap()[i];
                lora.parameters.host_mut::<f64>().unwrap()[i] = old + delta;
                let loss = loss(&lora);
                lora.parameters.host_mut::<f64>().unwrap()[i] = old;
                loss
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            let error = (numeric - analytic[i]).abs();
            worst = worst.max(error / (1e-3 + numeric.abs()));
            assert!(
                error <= 1e-6 * (1e-2 + numeric.abs()),
                "{key}, element {i}: {} but differences {numeric}",
                analytic[i]
            );
        }
    }
    println!("finite differences: worst relative error {worst:.1e}");
}

/// The adapter that ai-toolkit writes acts here as diffusers lets it act.
#[test]
fn an_adapter_file_acts_as_in_diffusers() {
    let (check, file) = (open("lora_file_check.safetensors"), open("lora_file.safetensors"));
    let model = load("dev", &Device::cpu_poisoned(), DType::F32);
    let case = Case::read(&model, &check, "", ["hidden_states", "timestep"]);
    let mut lora = adapter(&model, &file, "transformer");
    for (name, scale) in [("output_without", 0.0), ("output_with", 1.0), ("output_with_half_strength", 0.5)] {
        lora.scale = scale;
        let out = model.forward(case.inputs(), Some(&lora)).unwrap().to_f64().unwrap();
        assert_close(name, &out, &check.f64(name), 4e-4);
    }
}
