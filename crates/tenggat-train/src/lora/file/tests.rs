//! Round trips, golden files and hostile ones.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::job::{Compat, SaveType};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn job() -> Job {
    let text = "job: extension\nmeta: {name: '[name]', number: 1.5}\nconfig:\n  name: pears\n  process:\n    \
                - type: sd_trainer\n      trigger_word: p3ar\n      datasets: [{folder_path: p}]\n      \
                model: {name_or_path: m, arch: qwen_image}\n      network: {}\n";
    Job::from_str(text, Path::new("job.yaml"), None, &|_| None).unwrap().0
}

fn modules(loaded: &[Loaded]) -> Vec<Module<'_>> {
    loaded
        .iter()
        .map(|m| Module {
            name: &m.name,
            rank: m.rank,
            input: m.input,
            output: m.output,
            split: m.split,
            a: &m.a,
            b: &m.b,
        })
        .collect()
}

fn entries_of(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.tensors().into_iter().map(entry).collect()
}

#[test]
fn ai_toolkits_file_is_read_and_written_back_alike() {
    let golden = fixture("lora_file.safetensors");
    let read = load(&golden).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    save(
        &path,
        &modules(&read.modules),
        &Info { family: Family::QwenImage, job: &job(), steps: 250, epoch: 3 },
    )
    .unwrap();
    assert_eq!(entries_of(&path), entries_of(&golden));
    let again = load(&path).unwrap();
    assert_eq!(again.modules, read.modules);
    // The same tensors in the same order have the same hash.
    assert_eq!(again.metadata["sshs_model_hash"], read.metadata["sshs_model_hash"]);
    assert_eq!(again.metadata["sshs_legacy_hash"], read.metadata["sshs_legacy_hash"]);

    let keys: Value =
        serde_json::from_slice(&std::fs::read(fixture("lora_file_keys.json")).unwrap()).unwrap();
    let expected = keys["keys"].as_object().unwrap();
    let written = entries_of(&path);
    assert_eq!(written.len(), expected.len());
    for (key, info) in expected {
        let (dtype, shape, _) = &written[key];
        assert_eq!((dtype.as_str(), serde_json::json!(shape)), ("F16", info["shape"].clone()), "{key}");
        assert_eq!(info["dtype"], "float16");
    }
}

#[test]
fn metadata_are_upstreams() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let module = Module { name: "m", rank: 1, input: 1, output: 1, split: None, a: &[1.0], b: &[2.0] };
    save(&path, &[module], &Info { family: Family::QwenImage, job: &job(), steps: 250, epoch: 3 }).unwrap();
    let read = load(&path).unwrap();
    let got: Vec<(&str, &str)> = read.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let software = format!(
        r#"{{"name": "tenggat", "repo": "{}", "version": "{}"}}"#,
        env!("CARGO_PKG_REPOSITORY"),
        env!("CARGO_PKG_VERSION")
    );
    let expected = [
        ("format", "pt"),
        ("name", "pears"),
        ("number", "1.5"),
        ("software", software.as_str()),
        ("ss_base_model_version", "qwen_image"),
        ("ss_output_name", "pears"),
        ("ss_tag_frequency", r#"{"1_p3ar": {"p3ar": 1}}"#),
        ("sshs_legacy_hash", "e3b0c442"),
        ("sshs_model_hash", read.metadata["sshs_model_hash"].as_str()),
        ("training_info", r#"{"step": 250, "epoch": 3}"#),
    ];
    assert_eq!(got, expected);
    assert_eq!(read.step(), Some(250));
    let old = Job { compat: Compat::ai_toolkit(), ..job() };
    save(&path, &[module], &Info { family: Family::QwenImage, job: &old, steps: 251, epoch: 3 }).unwrap();
    assert_eq!(load(&path).unwrap().step(), Some(250));
}

#[test]
fn equal_input_gives_equal_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let read = load(&fixture("lora_file.safetensors")).unwrap();
    let mut shuffled = read.modules.clone();
    shuffled.reverse();
    let paths = [folder.path().join("a"), folder.path().join("b")];
    for (path, list) in paths.iter().zip([&read.modules, &shuffled]) {
        save(path, &modules(list), &Info { family: Family::QwenImage, job: &job(), steps: 1, epoch: 3 })
            .unwrap();
    }
    assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
}

#[test]
fn tensors_are_rounded_to_the_type_of_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    fn of(b: &[f32]) -> Module<'_> {
        Module { name: "m", rank: 1, input: 2, output: 1, split: None, a: &[0.1, 1.0 / 3.0], b }
    }
    let cases = [
        (SaveType::F32, "F32", vec![0.1, 1.0 / 3.0], [-70000.0], -70000.0),
        (SaveType::Bf16, "BF16", vec![0.100_097_656, 0.333_984_38], [-70000.0], -70144.0),
        (SaveType::F16, "F16", vec![0.099_975_586, 0.333_251_95], [-65519.0], -65504.0),
    ];
    for (dtype, name, a, exact, b) in cases {
        let mut job = job();
        job.save.dtype = dtype;
        save(&path, &[of(&exact)], &Info { family: Family::QwenImage, job: &job, steps: 1, epoch: 3 })
            .unwrap();
        assert!(entries_of(&path).values().all(|(dtype, ..)| dtype == name));
        let read = load(&path).unwrap();
        assert_eq!((&read.modules[0].a, read.modules[0].b[0]), (&a, b), "{name}");
    }
    // What 16 bits hold as infinite is not written, and the file stays what it was.
    let mut job = job();
    job.save.dtype = SaveType::F16;
    let error =
        save(&path, &[of(&[-70000.0])], &Info { family: Family::QwenImage, job: &job, steps: 2, epoch: 3 })
            .unwrap_err();
    assert!(error.to_string().contains("lora_B"), "{error}");
    assert_eq!(load(&path).unwrap().modules[0].b[0], -65504.0);
}

/// Writes the golden LoRA under other names.
fn restyled(path: &Path, rename: impl Fn(&str, &str) -> String, alpha: Option<f32>) {
    let golden = load(&fixture("lora_file.safetensors")).unwrap();
    let mut entries = Vec::new();
    for m in &golden.modules {
        entries.push(Entry::floats(rename(&m.name, "A"), vec![m.rank, m.input], &m.a, SaveType::F32));
        entries.push(Entry::floats(rename(&m.name, "B"), vec![m.output, m.rank], &m.b, SaveType::F32));
        if let Some(alpha) = alpha {
            entries.push(Entry::floats(rename(&m.name, "alpha"), vec![], &[alpha], SaveType::F32));
        }
    }
    tensor_file::sort(&mut entries);
    tensor_file::write(path, &[], &entries).unwrap();
}

#[test]
fn every_style_that_diffusers_accepts_is_read() {
    let golden = load(&fixture("lora_file.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("styled.safetensors");
    let keys: Value =
        serde_json::from_slice(&std::fs::read(fixture("lora_file_keys.json")).unwrap()).unwrap();
    let half = |part: &str| if part == "A" { "lora_down.weight" } else { "lora_up.weight" }.to_owned();
    for (style, accepted) in keys["diffusers_load_lora_weights_accepts"].as_object().unwrap() {
        match style.as_str() {
            "diffusion_model. + lora_A/lora_B" => {
                restyled(&path, |m, p| format!("diffusion_model.{m}.lora_{p}.weight"), None);
            }
            "transformer. + lora_A/lora_B" => {
                restyled(&path, |m, p| format!("transformer.{m}.lora_{p}.weight"), None);
            }
            "bare + lora_A/lora_B" => restyled(&path, |m, p| format!("{m}.lora_{p}.weight"), None),
            "diffusion_model. + lora_down/lora_up" => {
                restyled(&path, |m, p| format!("diffusion_model.{m}.{}", half(p)), None);
            }
            "lora_unet_ + lora_down/lora_up + alpha" => {
                let name = |m: &str, p: &str| {
                    let part = if p == "alpha" { "alpha".into() } else { half(p) };
                    format!("lora_unet_{}.{part}", m.replace('.', "_"))
                };
                restyled(&path, name, Some(8.0));
            }
            other if accepted == true => panic!("the style {other:?} is not tried here"),
            _ => continue,
        }
        assert_eq!(load(&path).unwrap().modules, golden.modules, "{style}");
    }
}

#[test]
fn alpha_scales_b() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alpha.safetensors");
    let name = |m: &str, p: &str| match p {
        "alpha" => format!("diffusion_model.{m}.alpha"),
        p => format!("diffusion_model.{m}.lora_{p}.weight"),
    };
    restyled(&path, name, Some(2.0));
    let golden = load(&fixture("lora_file.safetensors")).unwrap();
    let read = load(&path).unwrap();
    assert_eq!(read.modules[3].a, golden.modules[3].a);
    let quarter: Vec<f32> = golden.modules[3].b.iter().map(|v| v / 4.0).collect();
    assert_eq!(read.modules[3].b, quarter);
}

#[test]
fn hostile_files_are_errors_that_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let tensor = |name: &str, shape: &[usize]| {
        Entry::floats(name.into(), shape.to_vec(), &vec![1.0; shape.iter().product()], SaveType::F32)
    };
    let ints = Entry {
        name: "m.lora_A.weight".into(),
        dtype: safetensors::Dtype::I64,
        shape: vec![1, 1],
        bytes: vec![0; 8].into(),
    };
    let cases = [
        (vec![], "holds no LoRA"),
        (vec![tensor("m.weight", &[1, 1])], "`m.weight` is not part of any LoRA"),
        (vec![tensor("m.lora_A.weight", &[1, 1])], "module `m` lacks"),
        (vec![tensor("m.lora_A.weight", &[2, 3]), tensor("m.lora_B.weight", &[4, 1])], "do not share a rank"),
        (vec![tensor("m.lora_A.weight", &[0, 3]), tensor("m.lora_B.weight", &[4, 0])], "do not share a rank"),
        // Without a value, any rank can be claimed, and any size be multiplied out of it.
        (
            vec![tensor("m.lora_A.weight", &[1 << 40, 0]), tensor("m.lora_B.weight", &[0, 1 << 40])],
            "empty matrices",
        ),
        (
            vec![tensor("m.lokr_w1", &[1 << 40, 0]), tensor("m.lokr_w2", &[1 << 40, 0])],
            "no factors of a layer",
        ),
        (vec![tensor("m.lora_A.weight", &[6]), tensor("m.lora_B.weight", &[4, 1])], "expected matrices"),
        (
            vec![tensor("m.lora_A.weight", &[1, 1]), tensor("transformer.m.lora_A.weight", &[1, 1])],
            "two naming styles",
        ),
        (vec![tensor("m.alpha", &[2])], "expected 1"),
        (vec![ints], "has type I64"),
    ];
    for (mut entries, expected) in cases {
        tensor_file::sort(&mut entries);
        tensor_file::write(&path, &[], &entries).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("bad.safetensors"), "{error}");
    }
    let whole = std::fs::read(fixture("lora_file.safetensors")).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("not a whole safetensors file"));
    }
    assert!(load(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    let short = Module { name: "m", rank: 1, input: 2, output: 1, split: None, a: &[1.0], b: &[1.0] };
    assert!(
        save(&path, &[short], &Info { family: Family::QwenImage, job: &job(), steps: 1, epoch: 3 })
            .unwrap_err()
            .to_string()
            .contains("expected 2")
    );
}

#[test]
fn a_file_becomes_an_adapter_of_its_model_and_of_no_other() {
    use tenggat_models::transformer::{Precision, Transformer};
    use tenggat_tensor::{DType, Device};

    let folder = fixture("qwen_image/transformer");
    let precision = Precision { compute: DType::F32, weights: DType::F32 };
    let model = Transformer::load(&folder, &Device::cpu(), precision).unwrap();
    let mut file = load(&fixture("lora_file.safetensors")).unwrap();
    // A module of a lower rank stands beside the others.
    let short = file.modules.iter().position(|m| m.name == "transformer_blocks.1.attn.to_q").unwrap();
    let m = &mut file.modules[short];
    m.a.truncate(2 * m.input);
    m.b = (0..m.output * 2).map(|i| i as f32).collect();
    m.rank = 2;
    let lora = into_lora(&file, &model).unwrap();
    assert_eq!((lora.layout.rank(), lora.scale, lora.layout.modules().len()), (8, 1.0, 28));
    let values = lora.parameters.to_f32().unwrap();
    for module in lora.layout.modules() {
        let own = file.modules.iter().find(|m| m.name == module.name).unwrap();
        for row in 0..8 {
            let a = &values[module.a + row * module.input..][..module.input];
            let expected = own.a.get(row * own.input..(row + 1) * own.input);
            assert_eq!(
                a,
                expected.map_or(vec![0.0; module.input], <[f32]>::to_vec),
                "{} A {row}",
                module.name
            );
        }
        for output in 0..module.output {
            let b = &values[module.b + output * 8..][..8];
            assert_eq!(b[..own.rank], own.b[output * own.rank..][..own.rank], "{} B", module.name);
            assert!(b[own.rank..].iter().all(|&v| v == 0.0));
        }
    }
    let mut strange = file.clone();
    strange.modules[0].name = "transformer_blocks.0.attn.a_strange_one".into();
    let error = into_lora(&strange, &model).unwrap_err().to_string();
    assert!(error.contains("`transformer_blocks.0.attn.a_strange_one` is not in this model"), "{error}");
    let m = &mut file.modules[0];
    m.input /= 2;
    m.a.truncate(m.rank * m.input);
    assert!(into_lora(&file, &model).unwrap_err().to_string().contains("expected 128 inputs"));
}

#[test]
fn kronecker_products_have_lycoris_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0; 6]);
    let name = "transformer_blocks.0.attn.to_q";
    let module = Module { name, rank: 0, input: 4, output: 6, split: Some([2, 2]), a: &a, b: &b };
    save(&path, &[module], &Info { family: Family::QwenImage, job: &job(), steps: 1, epoch: 3 }).unwrap();
    let written = entries_of(&path);
    let key = |part: &str| format!("diffusion_model.{name}.{part}");
    let shape = |part: &str| written[&key(part)].1.clone();
    assert_eq!((shape("lokr_w1"), shape("lokr_w2"), shape("alpha")), (vec![2, 2], vec![3, 2], vec![]));
    assert_eq!(written.len(), 3);
    let read = load(&path).unwrap();
    assert_eq!(read.modules.len(), 1);
    let own = &read.modules[0];
    assert_eq!((own.split, own.input, own.output), (Some([2, 2]), 4, 6));
    assert_eq!((own.a.as_slice(), own.b.as_slice()), (&a[..], &b[..]));
}
