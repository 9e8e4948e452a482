//! `lora_file`: keys, shapes and effect of a LoRA in ai-toolkit's layout and in kohya's.

use serde_json::Value;
use tenggat_models::transformer::layer::Family;
use tenggat_tensor::{DType, Device};
use tenggat_train::lora::{file as lora_file, initial};

use super::transformer::{Case, load};
use super::{folder, open};
use crate::fixture::assert_close;
use crate::lora_file::{outline, write};
use crate::transformer::adapter;

#[test]
fn a_new_adapter_has_ai_toolkits_keys_and_shapes() {
    let reference = std::fs::read(folder().join("lora_file_keys.json")).expect("lora_file_keys.json");
    let reference: Value = serde_json::from_slice(&reference).expect("JSON");
    let rank = reference["rank"].as_u64().expect("rank") as usize;
    let model = load("dev", &Device::cpu_poisoned(), DType::F32);
    let layout = model.lora_layout(rank, |_| true);
    let lora = initial::initialise(layout, 1, model.device(), DType::F32).expect("adapter");
    let temporary = tempfile::tempdir().expect("temporary folder");
    let path = temporary.path().join("new.safetensors");
    write(Family::Flux, &lora, &path);
    let written = outline(&path).tensors;
    let keys = reference["keys"].as_object().expect("keys");
    assert_eq!(written.len(), keys.len());
    for (key, about) in keys {
        let shape: Vec<usize> = serde_json::from_value(about["shape"].clone()).expect("a shape");
        assert_eq!(written.get(key).map(|(_, shape)| shape), Some(&shape), "{key}");
    }
}

/// Both layouts load, and act as in diffusers; kohya's has fused layers and alpha / rank = 1/2.
#[test]
fn both_layouts_act_as_in_diffusers() {
    let check = open("lora_file_check.safetensors");
    let model = load("dev", &Device::cpu_poisoned(), DType::F32);
    let case = Case::read(&model, &check, "", ["hidden_states", "timestep"]);
    for (name, output) in
        [("lora_file.safetensors", "output_with"), ("lora_file_kohya.safetensors", "output_with_kohya")]
    {
        let file = lora_file::load(&folder().join(name)).expect("LoRA file");
        let lora = lora_file::into_lora(&file, &model).expect("adapter");
        assert_eq!(lora.layout.modules().len(), model.lora_layout(1, |_| true).modules().len(), "{name}");
        if output == "output_with" {
            let expected = adapter(&model, &open(name), "transformer");
            assert!(lora.parameters.to_f32().unwrap() == expected.parameters.to_f32().unwrap());
        }
        let out = model.forward(case.inputs(), Some(&lora)).unwrap().to_f64().unwrap();
        assert_close(output, &out, &check.f64(output), 4e-4);
    }
}
