//! `train_steps`: ten optimiser steps on the whole transformer against `torch.optim.AdamW`.

use tenggat_models::lora::Gradients;
use tenggat_models::qwen_image::transformer::{Inputs, Transformer};
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::{DType, Device, Tensor};
use tenggat_train::optimiser::{AdamW, AdamWConfig};

use crate::fixture::{Golden, assert_close};
use crate::transformer::{adapter, load, rows};

const CONFIG: AdamWConfig =
    AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: None };

/// Sample `i` of a golden tensor `[steps, 1, tokens, channels]`.
fn sample(model: &Transformer, golden: &Golden, name: &str, i: usize) -> Tensor {
    let shape = golden.shape(name);
    let (tokens, c) = (shape[2], shape[3]);
    let values = &golden.f64(name)[i * tokens * c..(i + 1) * tokens * c];
    Tensor::from_f64(model.device(), model.precision().compute, values, &[tokens, c]).unwrap()
}

#[test]
fn ten_adamw_steps() {
    let golden = Golden::open("train_steps.safetensors");
    let model = load(&Device::cpu_poisoned(), DType::F32);
    let mut lora = adapter(&model, &golden, "start");
    let mut optimiser = AdamW::new(CONFIG, &lora).unwrap();
    let mut gradients = Tensor::zeros(model.device(), DType::F32, &[lora.layout.len()]).unwrap();
    let text = rows(&model, &golden, "encoder_hidden_states");
    let grid = golden.i64("img_shape");
    let tokens = text.shape()[0];
    let positions = model.positions((grid[1] as usize, grid[2] as usize), tokens).unwrap();
    let expected = golden.f64("adamw.loss");
    for (i, (&expected, sigma)) in expected.iter().zip(golden.f64("t")).enumerate() {
        let (x0, noise) = (sample(&model, &golden, "x0", i), sample(&model, &golden, "noise", i));
        let (x, e) = (x0.to_f32().unwrap(), noise.to_f32().unwrap());
        let mix = |f: &dyn Fn(f32, f32) -> f32| {
            let values: Vec<f32> = x.iter().zip(&e).map(|(&x, &e)| f(x, e)).collect();
            Tensor::from_f32(model.device(), DType::F32, &values, x0.shape()).unwrap()
        };
        let t = sigma as f32;
        let (latents, target) = (mix(&|x, e| (1.0 - t) * x + t * e), mix(&|x, e| e - x));
        let inputs = Inputs {
            latents: &latents,
            sigmas: &[sigma],
            text: &text,
            text_lens: &[tokens],
            positions: &positions,
        };
        let (pred, tape) = model.forward_for_backward(inputs, Some(&lora), usize::MAX).unwrap();
        let (mut loss, mut dpred) =
            (pred.empty_like(&[1, 1]).unwrap(), pred.empty_like(pred.shape()).unwrap());
        loss::forward_backward(
            Loss::Squared,
            pred.view(),
            target.view(),
            &[1.0],
            loss.view_mut(),
            dpred.view_mut(),
        )
        .unwrap();
        let into = Gradients { buffer: &mut gradients, write: Write::Replace };
        model.backward(inputs, Some(&lora), tape, &dpred, Some(into), false).unwrap();
        optimiser.measure(&gradients).unwrap();
        optimiser.update(&mut lora, &gradients, 1e-3).unwrap();
        let ratio = loss.to_f64().unwrap()[0] / expected;
        assert_close(&format!("adamw.loss[{i}]"), &[ratio], &[1.0], 2e-5);
    }
    let (end, rank) = (lora.parameters.to_f64().unwrap(), lora.layout.rank());
    let (mut squares, mut count) = (0.0, 0);
    for m in lora.layout.modules() {
        for (part, at, len) in [("A", m.a, rank * m.input), ("B", m.b, m.output * rank)] {
            let name = format!("adamw.final.{}.lora_{part}.weight", m.name);
            let expected = golden.f64(&name);
            assert_close(&name, &end[at..at + len], &expected, 2e-4);
            squares += end[at..at + len].iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            count += len;
        }
    }
    let rms = (squares / count as f64).sqrt();
    println!("adamw.final: rms difference {rms:.1e}");
    assert!(rms < 1e-5);
}
