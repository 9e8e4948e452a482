//! The whole model on a GPU against the CPU's f64: an emulated one, or a real one if `TENGGAT_TEST_GPU` is set.

use tenggat_models::qwen_image::transformer::{LoadOptions, ModulationStorage, Precision, Transformer};
use tenggat_models::weights::Quantisation;
use tenggat_tensor::{DType, Device, cuda};

use super::model::{Dense, close, folder, gradients, lora};

fn gpu() -> Option<Device> {
    if std::env::var_os("TENGGAT_TEST_GPU").is_some() {
        return Some(Device::cuda(&cuda::Options::default()).unwrap());
    }
    match Device::emulated() {
        Ok(device) => Some(device),
        Err(e) => {
            assert!(std::env::var_os("TENGGAT_REQUIRE_CXX").is_none(), "{e}");
            eprintln!("skipped: {e}");
            None
        }
    }
}

fn load(
    device: &Device,
    compute: DType,
    wanted: &Quantisation,
    modulation: ModulationStorage,
) -> Transformer {
    let precision = Precision { compute, weights: DType::BF16 };
    // The first block's weights stay with the host and are copied for every use.
    let options =
        LoadOptions { quantisation: Some(wanted), modulation, offloaded_blocks: 1, ..LoadOptions::default() };
    Transformer::load_with(&folder(), device, precision, options).unwrap()
}

/// Predictions and all gradients, with some blocks computed again and modulation in the step or outside of it. The limit
/// in f32 is that of the CPU; in bf16 each of about ten results in a row is rounded to 8 bits, forward and backward.
#[test]
fn predictions_and_gradients_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for (format, modulation) in
        [("uint3", ModulationStorage::Resident), ("float8", ModulationStorage::Streamed)]
    {
        let wanted = Quantisation { format: format.parse().unwrap(), recovery: None, cache: None };
        let dense = Dense::model(&wanted, None);
        let expected = gradients(&dense, &lora(&dense, 3), 1);
        for (compute, limit) in [(DType::F32, 5e-4), (DType::BF16, 0.1)] {
            let model = load(&gpu, compute, &wanted, modulation);
            let got = gradients(&model, &lora(&model, 3), 1);
            close(&format!("{format} in {compute:?} on the GPU"), &got, &expected, limit);
        }
    }
}
