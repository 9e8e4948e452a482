//! `lora_file`: keys, shapes, types and first values of a LoRA as ai-toolkit writes it for this transformer.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use tenggat_models::lora::Lora;
use tenggat_models::transformer::layer::Family;
use tenggat_tensor::{DType, Device};
use tenggat_train::job::Job;
use tenggat_train::lora::{file as lora_file, initial};

use crate::fixture::{Golden, folder, has_file};
use crate::transformer;

/// What a LoRA file holds, less the numbers.
pub struct Outline {
    /// Type and shape of every tensor by key.
    pub tensors: BTreeMap<String, (String, Vec<usize>)>,
    /// Names of the metadata.
    metadata: Vec<String>,
}

pub fn outline(path: &Path) -> Outline {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("header");
    let metadata = header.metadata().clone().unwrap_or_default().into_keys().collect();
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    let entry = |(key, view): (String, safetensors::tensor::TensorView<'_>)| {
        (key, (view.dtype().to_string(), view.shape().to_vec()))
    };
    Outline { tensors: tensors.into_iter().map(entry).collect(), metadata }
}

/// Writes an adapter as a run with no settings of its own does.
pub fn write(family: Family, lora: &Lora, path: &Path) {
    let text = "job: extension\nconfig:\n  name: n\n  process:\n    - type: sd_trainer\n      \
                datasets: [{folder_path: p}]\n      model: {name_or_path: m, arch: qwen_image}\n      network: {}\n";
    let job = Job::from_str(text, Path::new("job.yaml"), None, &|_| None).expect("job").0;
    let (values, rank) = (lora.parameters.to_f32().expect("values"), lora.layout.rank());
    let modules: Vec<lora_file::Module<'_>> = lora
        .layout
        .modules()
        .iter()
        .map(|m| lora_file::Module {
            name: &m.name,
            rank,
            input: m.input,
            output: m.output,
            split: None,
            a: &values[m.a..m.a + rank * m.input],
            b: &values[m.b..m.b + m.output * rank],
        })
        .collect();
    lora_file::save(path, &modules, &lora_file::Info { family, job: &job, steps: 1, epoch: 0 })
        .expect("LoRA file");
}

#[test]
fn a_new_adapter_is_laid_out_as_by_ai_toolkit() {
    if !has_file("lora_file.safetensors") {
        return;
    }
    let reference = std::fs::read(folder().join("lora_file_keys.json")).expect("lora_file_keys.json");
    let reference: Value = serde_json::from_slice(&reference).expect("JSON");
    let rank = reference["rank"].as_u64().expect("rank") as usize;
    let model = transformer::load(&Device::cpu_poisoned(), DType::F32);
    let layout = model.lora_layout(rank, |_| true);
    let lora = initial::initialise(layout, 1, model.device(), DType::F32).expect("adapter");
    let temporary = tempfile::tempdir().expect("temporary folder");
    let path = temporary.path().join("new.safetensors");
    write(Family::QwenImage, &lora, &path);

    let (written, golden) = (outline(&path), outline(&folder().join("lora_file.safetensors")));
    assert_eq!(written.tensors, golden.tensors);
    let keys = reference["keys"].as_object().expect("keys");
    assert_eq!(keys.len(), written.tensors.len(), "keys of lora_file_keys.json");
    assert!(keys.keys().all(|key| written.tensors.contains_key(key)), "keys of lora_file_keys.json");
    let missing: Vec<&String> = golden.metadata.iter().filter(|n| !written.metadata.contains(n)).collect();
    assert!(missing.is_empty(), "metadata {missing:?} missing");

    // A within the same bound, and near to it; B zero.
    let values = lora.parameters.to_f64().expect("values");
    let largest = |part: &[f64]| part.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let checks = reference["init_check"].as_object().expect("init_check");
    for (name, check) in checks {
        let name = name.strip_prefix("transformer.").unwrap_or(name);
        let m = lora.layout.modules().iter().find(|m| m.name == name).expect(name);
        let bound = check["bound"].as_f64().expect("bound");
        let a = largest(&values[m.a..m.a + rank * m.input]);
        assert!(a <= bound * (1.0 + 1e-6) && a > 0.9 * bound, "{name}: largest of A {a}, bound {bound}");
        assert_eq!(Some(largest(&values[m.b..m.b + m.output * rank])), check["max_abs_B"].as_f64(), "{name}");
    }
    assert!(!checks.is_empty());
}

#[test]
fn ai_toolkits_file_loads_and_is_written_back_alike() {
    if !has_file("lora_file.safetensors") {
        return;
    }
    let golden = folder().join("lora_file.safetensors");
    let model = transformer::load(&Device::cpu_poisoned(), DType::F32);
    let file = lora_file::load(&golden).expect("LoRA file");
    let lora = lora_file::into_lora(&file, &model).expect("adapter");
    let expected = transformer::adapter(&model, &Golden::open("lora_file.safetensors"), "diffusion_model");
    assert!(lora.parameters.to_f32().expect("values") == expected.parameters.to_f32().expect("values"));
    let temporary = tempfile::tempdir().expect("temporary folder");
    let path = temporary.path().join("again.safetensors");
    write(Family::QwenImage, &lora, &path);
    assert_eq!(lora_file::load(&path).expect("LoRA file").modules, file.modules);
}
