//! The transformer with quantised and offloaded weights, and on a GPU: an emulated one, or a real one if
//! `TENGGAT_TEST_GPU` is set.

use tenggat_models::lora::Lora;
use tenggat_models::transformer::{LoadOptions, Precision, Recompute, Transformer};
use tenggat_models::weights::Quantisation;
use tenggat_tensor::{DType, Device, Tensor};

use super::open;
use super::transformer::{Gradient, gradient, load, load_with, matrices};
use crate::fixture::{assert_close_l2, skip};
use crate::transformer::adapter;

const F64: Precision = Precision { compute: DType::F64, weights: DType::F64 };

/// The derivative of the loss along a direction, by differences, against the gradient.
fn check_direction(what: &str, model: &Transformer, lora: &mut Lora, got: &Gradient) {
    let golden = open("lora_grad.safetensors");
    let start = lora.parameters.to_f64().unwrap();
    // Any direction that no matrix is left out of.
    let direction: Vec<f64> =
        (0..start.len()).map(|i| ((i * 7919 % 2003) as f64 / 1001.0 - 1.0) * 0.1).collect();
    let mut loss = |by: f64| {
        let moved: Vec<f64> = start.iter().zip(&direction).map(|(x, d)| x + by * d).collect();
        lora.parameters = Tensor::from_f64(model.device(), DType::F64, &moved, &[moved.len()]).unwrap();
        gradient(model, &golden, "batch.", lora, Recompute::NOTHING).loss
    };
    let step = 1e-5;
    let numeric = (loss(step) - loss(-step)) / (2.0 * step);
    loss(0.0);
    let analytic: f64 = got.lora.iter().zip(&direction).map(|(g, d)| g * d).sum();
    assert!((numeric - analytic).abs() <= 1e-6 * numeric.abs().max(1e-2), "{what}: {analytic}, {numeric}");
}

/// Weights of both kinds of blocks are quantised; gradients are the derivatives of what is computed with
/// them, and offloading and recomputing change nothing.
#[test]
fn gradients_of_quantised_blocks() {
    let golden = open("lora_grad.safetensors");
    let cache = tempfile::tempdir().unwrap();
    let dense = load("dev", &Device::cpu(), DType::F64);
    for format in ["uint4", "qfloat8"] {
        let cache = Some(cache.path().to_path_buf());
        let wanted = Quantisation { format: format.parse().unwrap(), recovery: None, cache };
        let load = |offloaded_blocks| {
            let options =
                LoadOptions { quantisation: Some(&wanted), offloaded_blocks, ..LoadOptions::default() };
            load_with("dev", &Device::cpu(), F64, options)
        };
        let model = load(0);
        // F64 takes 8 bytes a weight, the format at most one and its scales; the ends stay as they are.
        assert!(model.weight_bytes() < dense.weight_bytes() / 3, "{format}: {}", model.weight_bytes());
        let mut lora = adapter(&model, &golden, "lora");
        let got = gradient(&model, &golden, "batch.", &lora, Recompute::NOTHING);
        check_direction(format, &model, &mut lora, &got);
        let offloaded = load(dense.config().blocks());
        assert_eq!(offloaded.offloaded_blocks(), dense.config().blocks());
        let again = gradient(&offloaded, &golden, "batch.", &lora, Recompute::EVERYTHING);
        assert_eq!(
            (again.loss, again.lora, again.d_latents),
            (got.loss, got.lora, got.d_latents),
            "{format}"
        );
    }
}

fn gpu() -> Option<Device> {
    if std::env::var_os("TENGGAT_TEST_GPU").is_some() {
        return Some(Device::cuda(&tenggat_gpu::Options::from_env().unwrap()).unwrap());
    }
    match Device::emulated() {
        Ok(device) => Some(device),
        Err(e) => {
            skip(e);
            None
        }
    }
}

/// Every gradient. In bf16 each of about ten results in a row is rounded to 8 bits, forward and backward; a
/// matrix whose gradient is small beside the others' is judged by the whole.
#[test]
fn a_gpu_agrees() {
    let Some(gpu) = gpu() else { return };
    let golden = open("lora_grad.safetensors");
    let dense = load("dev", &Device::cpu_poisoned(), DType::F64);
    let lora = adapter(&dense, &golden, "lora");
    let expected = gradient(&dense, &golden, "batch.", &lora, Recompute::NOTHING);
    for (compute, limit) in [(DType::F32, 5e-4), (DType::BF16, 0.1)] {
        let precision = Precision { compute, weights: compute };
        let model = load_with("dev", &gpu, precision, LoadOptions::default());
        let own = adapter(&model, &golden, "lora");
        for recompute in [Recompute::NOTHING, Recompute { keep_all: 1, keep_results: 1 }] {
            let got = gradient(&model, &golden, "batch.", &own, recompute);
            assert_close_l2(&format!("{compute:?} pred"), &got.pred, &expected.pred, limit);
            assert_close_l2(&format!("{compute:?} d_x_t"), &got.d_latents, &expected.d_latents, limit);
            assert_close_l2(&format!("{compute:?} gradients"), &got.lora, &expected.lora, limit);
            for (range, key) in matrices(&lora).into_iter().filter(|_| compute == DType::F32) {
                assert_close_l2(&key, &got.lora[range.clone()], &expected.lora[range], limit);
            }
        }
    }
}
