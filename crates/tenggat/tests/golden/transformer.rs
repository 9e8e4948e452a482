//! `transformer_forward`, `lora_grad` and `lora_file_check`: the transformer against diffusers and peft.

use std::collections::HashMap;

use half::bf16;
use tenggat_models::lora::{Gradients, Lora};
use tenggat_models::transformer::{Inputs, Positions, Precision, Recompute, Transformer};
use tenggat_models::weights::Weights;
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::{DType, Device, Tensor};

use crate::fixture::{Golden, assert_close, assert_close_l2, folder, has_file};

pub fn load(device: &Device, dtype: DType) -> Transformer {
    let precision = Precision { compute: dtype, weights: dtype };
    Transformer::load(&folder().join("qwen_image/transformer"), device, precision).unwrap()
}

/// The batch of one golden case.
pub struct Case {
    pub latents: Tensor,
    pub sigmas: Vec<f64>,
    pub text: Tensor,
    pub text_lens: Vec<usize>,
    pub positions: Positions,
}

impl Case {
    /// Reads `<prefix>.<latents>`, `<prefix>.<sigma>` and the text of a case.
    pub fn read(model: &Transformer, golden: &Golden, prefix: &str, [latents, sigma]: [&str; 2]) -> Self {
        let name = |n: &str| format!("{prefix}{n}");
        let text_shape = golden.shape(&name("encoder_hidden_states"));
        let text_lens = if golden.contains(&name("mask")) {
            let mask = golden.i64(&name("mask"));
            mask.chunks(text_shape[1]).map(|row| row.iter().sum::<i64>() as usize).collect()
        } else {
            vec![text_shape[1]; text_shape[0]]
        };
        let grid = golden.i64(&name("img_shape"));
        Case {
            latents: rows(model, golden, &name(latents)),
            sigmas: golden.f64(&name(sigma)),
            text: rows(model, golden, &name("encoder_hidden_states")),
            text_lens,
            positions: model.positions((grid[1] as usize, grid[2] as usize), text_shape[1]).unwrap(),
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            latents: &self.latents,
            sigmas: &self.sigmas,
            text: &self.text,
            text_lens: &self.text_lens,
            positions: &self.positions,
            global: None,
        }
    }
}

/// A golden tensor with all axes but the last flattened.
pub fn rows(model: &Transformer, golden: &Golden, name: &str) -> Tensor {
    let shape = golden.shape(name);
    let columns = *shape.last().unwrap();
    let values = golden.f64(name);
    let flat = [values.len() / columns, columns];
    Tensor::from_f64(model.device(), model.precision().compute, &values, &flat).unwrap()
}

/// The adapter whose matrices are `<prefix>.<module>.lora_A.weight` and `…lora_B.weight`.
pub fn adapter(model: &Transformer, golden: &Golden, prefix: &str) -> Lora {
    let first = golden.names().into_iter().find(|n| n.starts_with(prefix) && n.ends_with("lora_A.weight"));
    let rank = golden.shape(&first.expect("an adapter"))[0];
    let layout = model.lora_layout(rank, |_| true);
    let mut values = vec![0.0; layout.len()];
    for m in layout.modules() {
        for (part, at, shape) in [("A", m.a, [rank, m.input]), ("B", m.b, [m.output, rank])] {
            let name = format!("{prefix}.{}.lora_{part}.weight", m.name);
            assert_eq!(golden.shape(&name), shape, "{name}");
            values[at..at + shape[0] * shape[1]].copy_from_slice(&golden.f64(&name));
        }
    }
    let dtype = model.precision().compute.wide();
    let parameters = Tensor::from_f64(model.device(), dtype, &values, &[values.len()]).unwrap();
    Lora::new(layout, parameters)
}

fn traced(model: &Transformer, case: &Case) -> (Tensor, HashMap<String, Vec<f64>>) {
    let mut seen = HashMap::new();
    let out = model
        .forward_traced(case.inputs(), None, &mut |name, tensor| {
            seen.insert(name.to_string(), tensor.to_f64().unwrap());
        })
        .unwrap();
    (out, seen)
}

const CASES: [&str; 3] = ["square", "wide", "batch"];

#[test]
fn forward_in_f32() {
    let golden = Golden::open("transformer_forward.safetensors");
    let model = load(&Device::cpu_poisoned(), DType::F32);
    for prefix in CASES {
        let case = Case::read(&model, &golden, &format!("{prefix}."), ["latents", "timestep"]);
        let (out, seen) = traced(&model, &case);
        check_positions(&golden, prefix, &case);
        check_intermediates(&model, &golden, prefix, &case, &seen);
        let out = out.to_f64().unwrap();
        assert_close(&format!("{prefix}.output"), &out, &golden.f64(&format!("{prefix}.output")), 3e-4);
        assert_close(
            &format!("{prefix}.output_f64"),
            &out,
            &golden.f64(&format!("{prefix}.output_f64")),
            3e-4,
        );
    }
}

fn check_positions(golden: &Golden, prefix: &str, case: &Case) {
    for (stream, table) in [("img", &case.positions.image), ("txt", &case.positions.text)] {
        let (values, d) = (table.to_f64().unwrap(), table.shape()[1]);
        for (i, half) in ["cos", "sin"].iter().enumerate() {
            let name = format!("{prefix}.rope.{stream}.{half}");
            let got: Vec<f64> =
                values.chunks(d).flat_map(|row| row[i * d / 2..(i + 1) * d / 2].to_vec()).collect();
            assert_close(&name, &got, &golden.f64(&name), 1e-5);
        }
    }
}

fn check_intermediates(
    model: &Transformer,
    golden: &Golden,
    prefix: &str,
    case: &Case,
    seen: &HashMap<String, Vec<f64>>,
) {
    let mut compared = 0;
    for (name, got) in seen {
        let full = format!("{prefix}.{name}");
        // The reference computes the padded text rows too; they mean nothing.
        let text_stream = name.contains("txt") || name.contains("encoder_hidden_states");
        let padded = text_stream && case.text_lens.iter().any(|&n| n != case.text_lens[0]);
        if golden.contains(&full) && !padded {
            let tolerance = if name == "time_proj" { 1e-4 } else { 3e-4 };
            assert_close(&full, got, &golden.f64(&full), tolerance);
            compared += 1;
        }
    }
    assert!(compared >= 5, "only {compared} intermediates compared");
    // Golden values that this implementation fuses away, rebuilt from what it keeps.
    let c = model.config().inner();
    for (stream, norm) in [("img", "norm_q"), ("txt", "norm_added_k")] {
        let (x, stats) = (&seen[&format!("block0.{stream}_input")], &seen[&format!("block0.{stream}_stats")]);
        let normed: Vec<f64> = x
            .chunks(c)
            .zip(stats.chunks(2))
            .flat_map(|(row, s)| row.iter().map(|v| (v - s[0]) * s[1]))
            .collect();
        let padded = stream == "txt" && case.text_lens.iter().any(|&n| n != case.text_lens[0]);
        let name = format!("{prefix}.block0.{stream}_norm1");
        if golden.contains(&name) && !padded {
            assert_close(&name, &normed, &golden.f64(&name), 3e-4);
        }
        let name = format!("{prefix}.block0.attn.{norm}");
        if golden.contains(&name) && !padded {
            let part = if norm == "norm_q" { 0 } else { 1 };
            let got = head_norms(model, seen, stream, norm, part);
            assert_close(&name, &got, &golden.f64(&name), 3e-4);
        }
    }
    let name = format!("{prefix}.block0.attn.to_q");
    if golden.contains(&name) {
        let q: Vec<f64> = seen["block0.img_qkv"].chunks(3 * c).flat_map(|row| row[..c].to_vec()).collect();
        assert_close(&name, &q, &golden.f64(&name), 3e-4);
    }
}

/// Queries (part 0) or keys (1) after the head norm and before the rotation.
fn head_norms(
    model: &Transformer,
    seen: &HashMap<String, Vec<f64>>,
    stream: &str,
    norm: &str,
    part: usize,
) -> Vec<f64> {
    let (heads, d) = (model.config().num_attention_heads, model.config().attention_head_dim);
    let weights = Weights::open(&folder().join("qwen_image/transformer"), "transformer").unwrap();
    let name = format!("transformer_blocks.0.attn.{norm}.weight");
    let weight = weights.tensor(&name, &[d], model.device(), DType::F64).unwrap().to_f64().unwrap();
    let rows = seen[&format!("block0.{stream}_qkv")].chunks(3 * heads * d);
    rows.zip(seen[&format!("block0.{stream}_rstd")].chunks(2 * heads))
        .flat_map(|(x, rstd)| {
            let (x, weight) = (&x[part * heads * d..(part + 1) * heads * d], &weight);
            let rstd = &rstd[part * heads..];
            (0..heads * d).map(move |i| x[i] * rstd[i / d] * weight[i % d]).collect::<Vec<_>>()
        })
        .collect()
}

/// The whole model in f64 is exact to the last digits of the reference in f64.
#[test]
fn forward_in_f64() {
    let golden = Golden::open("transformer_forward.safetensors");
    let model = load(&Device::cpu_poisoned(), DType::F64);
    for prefix in CASES {
        let case = Case::read(&model, &golden, &format!("{prefix}."), ["latents", "timestep"]);
        let out = model.forward(case.inputs(), None).unwrap().to_f64().unwrap();
        assert_close(
            &format!("{prefix}.output_f64"),
            &out,
            &golden.f64(&format!("{prefix}.output_f64")),
            1e-9,
        );
    }
}

/// f32 on inputs and timestep rounded to bf16, against the reference's bf16 run.
#[test]
fn forward_near_bf16() {
    let golden = Golden::open("transformer_forward.safetensors");
    let model = load(&Device::cpu(), DType::F32);
    let mut case = Case::read(&model, &golden, "square.", ["latents", "timestep"]);
    let round = |x: f64| bf16::from_f64(x).to_f64();
    case.sigmas.iter_mut().for_each(|s| *s = round(*s));
    for tensor in [&mut case.latents, &mut case.text] {
        tensor.host_mut::<f32>().unwrap().iter_mut().for_each(|x| *x = round(f64::from(*x)) as f32);
    }
    let out = model.forward(case.inputs(), None).unwrap().to_f64().unwrap();
    let expected = golden.f64("square_bf16.output");
    assert_close_l2("square_bf16.output", &out, &expected, 0.02);
    assert_close("square_bf16.output", &out, &expected, 0.15);
}

#[test]
fn a_padded_batch_equals_its_samples_alone() {
    let golden = Golden::open("transformer_forward.safetensors");
    let model = load(&Device::cpu_poisoned(), DType::F32);
    let batch = Case::read(&model, &golden, "batch.", ["latents", "timestep"]);
    let tokens = batch.positions.image.shape()[0];
    let text_tokens = batch.positions.text.shape()[0];
    let grid = golden.i64("batch.img_shape");
    for (i, &len) in batch.text_lens.iter().enumerate() {
        let part = |t: &Tensor, from: usize, n: usize| {
            let c = t.shape()[1];
            let values = t.to_f64().unwrap()[from * c..(from + n) * c].to_vec();
            Tensor::from_f64(model.device(), DType::F32, &values, &[n, c]).unwrap()
        };
        let case = Case {
            latents: part(&batch.latents, i * tokens, tokens),
            sigmas: vec![batch.sigmas[i]],
            text: part(&batch.text, i * text_tokens, len),
            text_lens: vec![len],
            positions: model.positions((grid[1] as usize, grid[2] as usize), len).unwrap(),
        };
        let out = model.forward(case.inputs(), None).unwrap().to_f64().unwrap();
        let name = format!("batch_alone{i}.output");
        assert_close(&name, &out, &golden.f64(&name), 3e-4);
    }
}

/// Loss, every LoRA gradient and the input gradient of one case.
struct Gradient {
    loss: f64,
    pred: Vec<f64>,
    lora: Vec<f64>,
    d_latents: Vec<f64>,
}

fn gradient(
    model: &Transformer,
    golden: &Golden,
    prefix: &str,
    lora: &Lora,
    recompute: Recompute,
) -> Gradient {
    let case = Case::read(model, golden, prefix, ["x_t", "t"]);
    let (x0, noise) = (golden.f64(&format!("{prefix}x0")), golden.f64(&format!("{prefix}noise")));
    let target: Vec<f64> = noise.iter().zip(&x0).map(|(e, x)| e - x).collect();
    let target =
        Tensor::from_f64(model.device(), model.precision().compute, &target, case.latents.shape()).unwrap();
    let (pred, tape) = model.forward_for_backward(case.inputs(), Some(lora), recompute).unwrap();
    let weights = vec![1.0; case.sigmas.len()];
    let (mut losses, mut dpred) =
        (pred.empty_like(&[weights.len(), 1]).unwrap(), pred.empty_like(pred.shape()).unwrap());
    loss::forward_backward(
        Loss::Squared,
        pred.view(),
        target.view(),
        &weights,
        losses.view_mut(),
        dpred.view_mut(),
    )
    .unwrap();
    let mut buffer = Tensor::zeros(model.device(), model.precision().compute, &[lora.layout.len()]).unwrap();
    let gradients = Gradients { buffer: &mut buffer, write: Write::Replace };
    let d_latents = model.backward(case.inputs(), Some(lora), tape, &dpred, Some(gradients), true).unwrap();
    Gradient {
        loss: losses.to_f64().unwrap().iter().sum::<f64>() / weights.len() as f64,
        pred: pred.to_f64().unwrap(),
        lora: buffer.to_f64().unwrap(),
        d_latents: d_latents.unwrap().to_f64().unwrap(),
    }
}

#[test]
fn every_gradient_in_f32() {
    let golden = Golden::open("lora_grad.safetensors");
    let model = load(&Device::cpu_poisoned(), DType::F32);
    let lora = adapter(&model, &golden, "lora");
    let without: Vec<String> = serde_json::from_str(&golden.metadata()["no_gradient"]).unwrap();
    for prefix in ["one.", "batch."] {
        for recompute in
            [Recompute::NOTHING, Recompute { keep_all: 0, keep_results: 2 }, Recompute::EVERYTHING]
        {
            let got = gradient(&model, &golden, prefix, &lora, recompute);
            assert_close(&format!("{prefix}pred"), &got.pred, &golden.f64(&format!("{prefix}pred")), 3e-4);
            let exact = golden.f64(&format!("{prefix}loss_f64"))[0];
            assert_close(&format!("{prefix}loss"), &[got.loss / exact], &[1.0], 1e-5);
            let name = format!("{prefix}d_x_t");
            assert_close_l2(&name, &got.d_latents, &golden.f64(&name), 2e-4);
            for m in lora.layout.modules() {
                let rank = lora.layout.rank();
                for (part, at, len) in [("A", m.a, rank * m.input), ("B", m.b, m.output * rank)] {
                    let key = format!("{}.lora_{part}.weight", m.name);
                    let name = format!("{prefix}grad.{key}");
                    assert_close_l2(&name, &got.lora[at..at + len], &golden.f64(&name), 5e-4);
                    assert_eq!(m.trained, !without.contains(&key), "{key}: trained");
                }
            }
        }
    }
}

/// In f64 the gradients agree with the reference's f64 run to its last digits: nothing is approximately
/// right.
#[test]
fn every_gradient_in_f64() {
    let golden = Golden::open("lora_grad.safetensors");
    let model = load(&Device::cpu_poisoned(), DType::F64);
    let lora = adapter(&model, &golden, "lora");
    let order: Vec<String> = serde_json::from_str(&golden.metadata()["grad_norm_f64_order"]).unwrap();
    for prefix in ["one.", "batch."] {
        let got = gradient(&model, &golden, prefix, &lora, Recompute::NOTHING);
        // The golden x_t was rounded to f32, hence 1e-6 and not 1e-12.
        assert_close(
            &format!("{prefix}loss_f64"),
            &[got.loss],
            &golden.f64(&format!("{prefix}loss_f64")),
            1e-6,
        );
        let name = format!("{prefix}d_x_t_f64");
        assert_close_l2(&name, &got.d_latents, &golden.f64(&name), 1e-5);
        let norms = golden.f64(&format!("{prefix}grad_norm_f64"));
        for (key, norm) in order.iter().zip(norms) {
            let (module, part) = key.trim_end_matches(".weight").rsplit_once(".lora_").unwrap();
            let m = lora.layout.modules().iter().find(|m| m.name == module).unwrap();
            let rank = lora.layout.rank();
            let (at, len) = if part == "A" { (m.a, rank * m.input) } else { (m.b, m.output * rank) };
            let mine = got.lora[at..at + len].iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((mine - norm).abs() <= 1e-5 * norm, "{prefix}{key}: norm {mine}, expected {norm}");
        }
    }
}

/// Central differences of the loss in f64, of the whole model: a few elements of every LoRA matrix.
#[test]
fn gradients_are_the_derivatives_of_the_loss() {
    let golden = Golden::open("lora_grad.safetensors");
    let model = load(&Device::cpu(), DType::F64);
    let mut lora = adapter(&model, &golden, "lora");
    let analytic = gradient(&model, &golden, "batch.", &lora, Recompute::NOTHING).lora;
    let step = 1e-5;
    let rank = lora.layout.rank();
    let probes: Vec<usize> = lora
        .layout
        .modules()
        .iter()
        .flat_map(|m| [m.a + rank * m.input / 2 + 1, m.b + m.output / 3])
        .collect();
    let mut worst = 0.0f64;
    for i in probes {
        let mut loss_at = |delta: f64| {
            let old = lora.parameters.to_f64().unwrap()[i];
            lora.parameters.host_mut::<f64>().unwrap()[i] = old + delta;
            let loss = loss_only(&model, &golden, "batch.", &lora);
            lora.parameters.host_mut::<f64>().unwrap()[i] = old;
            loss
        };
        let numeric = (loss_at(step) - loss_at(-step)) / (2.0 * step);
        let error = (numeric - analytic[i]).abs();
        worst = worst.max(error / (1e-3 + numeric.abs()));
        assert!(
            error <= 1e-6 * (1e-2 + numeric.abs()),
            "element {i}: {} but differences {numeric}",
            analytic[i]
        );
    }
    println!("finite differences: worst relative error {worst:.1e}");
}

fn loss_only(model: &Transformer, golden: &Golden, prefix: &str, lora: &Lora) -> f64 {
    let case = Case::read(model, golden, prefix, ["x_t", "t"]);
    let pred = model.forward(case.inputs(), Some(lora)).unwrap().to_f64().unwrap();
    let (x0, noise) = (golden.f64(&format!("{prefix}x0")), golden.f64(&format!("{prefix}noise")));
    let squares = pred.iter().zip(noise.iter().zip(&x0)).map(|(p, (e, x))| (p - (e - x)).powi(2));
    squares.sum::<f64>() / pred.len() as f64
}

/// The adapter that ai-toolkit wrote acts here as diffusers lets it act.
#[test]
fn an_adapter_file_acts_as_in_diffusers() {
    if !has_file("lora_file_check.safetensors") {
        return;
    }
    let (check, file) = (Golden::open("lora_file_check.safetensors"), Golden::open("lora_file.safetensors"));
    let model = load(&Device::cpu_poisoned(), DType::F32);
    let case = Case::read(&model, &check, "", ["hidden_states", "timestep"]);
    let mut lora = adapter(&model, &file, "diffusion_model");
    for (name, scale) in [("output_without", 0.0), ("output_with", 1.0), ("output_with_half_strength", 0.5)] {
        lora.scale = scale;
        let out = model.forward(case.inputs(), Some(&lora)).unwrap().to_f64().unwrap();
        assert_close(name, &out, &check.f64(name), 3e-4);
    }
}
