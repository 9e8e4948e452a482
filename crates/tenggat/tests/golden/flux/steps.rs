//! `train_steps`: ten optimiser steps on the whole transformer against `torch.optim.AdamW`.

use tenggat_models::lora::Gradients;
use tenggat_models::transformer::{Inputs, Recompute};
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::ops::loss::{self, Loss};
use tenggat_tensor::{DType, Device, Tensor};
use tenggat_train::step::optimiser::{Method, Optimiser};

use super::open;
use super::transformer::{Case, load};
use crate::fixture::assert_close;
use crate::steps::{ADAMW, matrices, sample};
use crate::transformer::adapter;

/// The losses one by one; the final weights by their rms and by the share of outliers, as the first steps of
/// Adam go by the sign of gradients that may be rounding noise.
#[test]
fn ten_adamw_steps() {
    let golden = open("train_steps.safetensors");
    let model = load("dev", &Device::cpu_poisoned(), DType::F32);
    let mut lora = adapter(&model, &golden, "start");
    let mut optimiser = Optimiser::new(Method::AdamW(ADAMW), None, &lora).unwrap();
    let mut gradients = Tensor::zeros(model.device(), DType::F32, &[lora.layout.len()]).unwrap();
    let case = Case::read(&model, &golden, "", ["x0", "t"]);
    let expected = golden.f64("adamw.loss");
    for (i, (&expected, &sigma)) in expected.iter().zip(&case.sigmas).enumerate() {
        let (x0, noise) = (sample(&model, &golden, "x0", i), sample(&model, &golden, "noise", i));
        let (x, e) = (x0.to_f32().unwrap(), noise.to_f32().unwrap());
        let mix = |f: &dyn Fn(f32, f32) -> f32| {
            let values: Vec<f32> = x.iter().zip(&e).map(|(&x, &e)| f(x, e)).collect();
            Tensor::from_f32(model.device(), DType::F32, &values, x0.shape()).unwrap()
        };
        let t = sigma as f32;
        let (latents, target) = (mix(&|x, e| (1.0 - t) * x + t * e), mix(&|x, e| e - x));
        let text_lens = &case.inputs().text_lens[..1];
        let inputs = Inputs { latents: &latents, sigmas: &[sigma], text_lens, ..case.inputs() };
        let (pred, tape) = model.forward_for_backward(inputs, Some(&lora), Recompute::NOTHING).unwrap();
        let (mut loss, mut dpred) =
            (pred.empty_like(&[1, 1]).unwrap(), pred.empty_like(pred.shape()).unwrap());
        let (to, d) = (loss.view_mut(), dpred.view_mut());
        loss::forward_backward(Loss::Squared, pred.view(), target.view(), &[1.0], to, d).unwrap();
        let into = Gradients { buffer: &mut gradients, write: Write::Replace };
        model.backward(inputs, Some(&lora), tape, &dpred, Some(into), false).unwrap();
        optimiser.measure(&gradients).unwrap();
        optimiser.update(&mut lora, &gradients, 1e-3).unwrap();
        let ratio = loss.to_f64().unwrap()[0] / expected;
        assert_close(&format!("adamw.loss[{i}]"), &[ratio], &[1.0], 3e-5);
    }
    let end = lora.parameters.to_f64().unwrap();
    let (mut squares, mut count, mut outliers) = (0.0, 0, 0);
    for (range, name) in matrices(&lora) {
        let expected = golden.f64(&format!("adamw.final.{name}"));
        let differences = end[range].iter().zip(&expected).map(|(a, b)| (a - b).abs());
        differences.for_each(|d| {
            squares += d * d;
            outliers += usize::from(d > 2e-5);
        });
        count += expected.len();
    }
    let (rms, share) = ((squares / count as f64).sqrt(), outliers as f64 / count as f64);
    println!("adamw.final: rms difference {rms:.1e} over {count} weights, {share:.1e} of them outliers");
    assert!(count > 0 && rms <= 3e-5 && share < 1e-3, "rms {rms:e}, outliers {share:e}");
}
