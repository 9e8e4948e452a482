//! The whole model on a GPU against the CPU's f64: an emulated one, or a real one if `TENGGAT_TEST_GPU` is
//! set.

use tenggat_models::transformer::{LoadOptions, ModulationStorage, Precision, Transformer};
use tenggat_models::weights::Quantisation;
use tenggat_tensor::{DType, Device};

use super::model::{Dense, MIXED, close, folder, gradients, lora, lora_of};

fn gpu() -> Option<Device> {
    if std::env::var_os("TENGGAT_TEST_GPU").is_some() {
        return Some(Device::cuda(&tenggat_gpu::Options::from_env().unwrap()).unwrap());
    }
    match Device::emulated() {
        Ok(device) => Some(device),
        Err(e) => {
            tenggat_skip::skipped_without_cxx(e);
            None
        }
    }
}

fn load(
    device: &Device,
    compute: DType,
    wanted: &Quantisation,
    modulation: ModulationStorage,
    fp8_products: bool,
) -> Transformer {
    let precision = Precision { compute, weights: DType::BF16 };
    // The first block's weights stay with the host and are copied for every use.
    let options = LoadOptions {
        quantisation: Some(wanted),
        modulation,
        offloaded_blocks: 1,
        fp8_products,
        ..LoadOptions::default()
    };
    Transformer::load_with(&folder(), device, precision, options).unwrap()
}

/// Predictions and all gradients, with some blocks recomputed and modulation in the step or outside of it.
/// The limit in f32 is that of the CPU; in bf16 each of about ten results in a row is rounded to 8 bits,
/// forward and backward.
#[test]
fn predictions_and_gradients_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for (format, modulation) in
        [("uint3", ModulationStorage::Resident), ("float8", ModulationStorage::Streamed)]
    {
        let wanted = Quantisation { format: format.parse().unwrap(), recovery: None, cache: None };
        let dense = Dense::model(&wanted, None);
        let expected = gradients(&dense, &lora(&dense, 3), MIXED);
        for (compute, limit) in [(DType::F32, 5e-4), (DType::BF16, 0.1)] {
            let model = load(&gpu, compute, &wanted, modulation, false);
            let got = gradients(&model, &lora(&model, 3), MIXED);
            close(&format!("{format} in {compute:?} on the GPU"), &got, &expected, limit);
        }
    }
}

/// The same with adapters on parts of the fused layers, as `only_if_contains` picks them: with a gap between
/// them, at the end of a layer, and without the modulation.
#[test]
fn adapters_on_parts_of_layers_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let wanted = Quantisation { format: "uint3".parse().unwrap(), recovery: None, cache: None };
    let dense = Dense::model(&wanted, None);
    for parts in [["to_q", "to_v"], ["to_k", "to_v"], ["attn.", "mlp"]] {
        let is_picked = |name: &str| parts.iter().any(|part| name.contains(part));
        let expected = gradients(&dense, &lora_of(&dense, 3, is_picked), MIXED);
        for (compute, limit) in [(DType::F32, 5e-4), (DType::BF16, 0.1)] {
            let model = load(&gpu, compute, &wanted, ModulationStorage::Resident, false);
            let got = gradients(&model, &lora_of(&model, 3, is_picked), MIXED);
            close(&format!("{parts:?} in {compute:?} on the GPU"), &got, &expected, limit);
        }
    }
}

/// The same with 8-bit products in the blocks.
///
/// A product of two rounded operands errs by 3.7 %, by 2.6 % where the weights are 8-bit floats anyway. A
/// gradient depends on four such products per block forward and four backward, so up to √16 · 3.7 % = 15 %
/// over two blocks if errors only add up. Softmax and norms of this small model enlarge them: the worst
/// gradient in bf16, with operands 16 times finer and more of them rounded, errs by 6 %. A scale or an
/// operand that is wrong gives 100 % and more.
#[test]
fn products_in_8_bit_floats_are_near() {
    let Some(gpu) = gpu() else { return };
    for format in ["float8", "uint5"] {
        let wanted = Quantisation { format: format.parse().unwrap(), recovery: None, cache: None };
        let dense = Dense::model(&wanted, None);
        let expected = gradients(&dense, &lora(&dense, 3), MIXED);
        let bytes = load(&gpu, DType::BF16, &wanted, ModulationStorage::Streamed, false).weight_bytes();
        for compute in [DType::F32, DType::BF16] {
            let model = load(&gpu, compute, &wanted, ModulationStorage::Streamed, true);
            assert!(model.weight_bytes() > bytes, "weights are not there as 8-bit floats");
            let got = gradients(&model, &lora(&model, 3), MIXED);
            close(&format!("{format}, 8-bit products in {compute:?}"), &got, &expected, 0.35);
        }
    }
}
