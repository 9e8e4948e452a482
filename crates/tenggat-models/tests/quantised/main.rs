//! Quantised transformers against dense ones with the same weights: forward, gradients, recovery adapters,
//! streamed modulation, and the folder that keeps quantised models.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they found")]

mod gpu;
mod model;

use std::path::Path;

use model::{Dense, MIXED, case, close, folder, gradients, lokr_recovery_file, lora, randn, recovery_file};
use tenggat_models::transformer::recovery::Recovery;
use tenggat_models::transformer::{LoadOptions, ModulationStorage, Precision, Recompute, Transformer};
use tenggat_models::weights::{Matrix, Quantisation, Weights};
use tenggat_tensor::weight::Format;
use tenggat_tensor::{DType, Device, Tensor};

fn quantisation(format: Format, recovery: Option<&Path>, cache: Option<&Path>) -> Quantisation {
    Quantisation { format, recovery: recovery.map(Into::into), cache: cache.map(Into::into) }
}

fn load(compute: DType, quantisation: &Quantisation, modulation: ModulationStorage) -> Transformer {
    let precision = Precision { compute, weights: DType::BF16 };
    let options = LoadOptions { quantisation: Some(quantisation), modulation, ..LoadOptions::default() };
    Transformer::load_with(&folder(), &Device::cpu_poisoned(), precision, options).unwrap()
}

/// In f64 nothing but the grouping of sums differs: every gradient agrees to 1e-9.
#[test]
fn quantised_gradients_are_those_of_the_dequantised_model() {
    for format in ["uint2", "uint3", "uint7", "qfloat8", "float8", "qint8", "int8"] {
        let wanted = quantisation(format.parse().unwrap(), None, None);
        let quantised = load(DType::F64, &wanted, ModulationStorage::Resident);
        let dense = Dense::model(&wanted, None);
        let lora = lora(&quantised, 3);
        let (a, b) = (
            gradients(&quantised, &lora, Recompute::EVERYTHING),
            gradients(&dense, &lora, Recompute::EVERYTHING),
        );
        close(format, &a, &b, 1e-9);
        assert!(quantised.weight_bytes() < dense.weight_bytes() / 6);
    }
}

/// The limit is that of f32 gradients against the golden data.
#[test]
fn quantised_gradients_in_f32() {
    let wanted = quantisation(Format::Uint(3), None, None);
    let quantised = load(DType::F32, &wanted, ModulationStorage::Resident);
    let dense = Dense::model(&wanted, None);
    let a = gradients(&quantised, &lora(&quantised, 3), MIXED);
    let b = gradients(&dense, &lora(&dense, 3), MIXED);
    close("uint3 in f32", &a, &b, 5e-4);
}

/// A recovery adapter on three modules: they alone are quantised, and the model is that of the weights `W' +
/// B·A`.
#[test]
fn a_recovery_adapter_acts_and_is_not_trained() {
    let files = tempfile::tempdir().unwrap();
    let modules = [
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.0.img_mod.1",
        "transformer_blocks.1.img_mlp.net.2",
    ];
    let path = recovery_file(files.path(), "diffusion_model.", &modules);
    let wanted = quantisation(Format::Uint(2), Some(&path), None);
    assert_eq!(Recovery::open(&path).unwrap().modules().len(), modules.len());
    let dense = Dense::model(&wanted, Some(&path));
    for modulation in [ModulationStorage::Resident, ModulationStorage::Streamed] {
        let quantised = load(DType::F64, &wanted, modulation);
        let lora = lora(&quantised, 3);
        let (a, b) = (
            gradients(&quantised, &lora, Recompute::EVERYTHING),
            gradients(&dense, &lora, Recompute::EVERYTHING),
        );
        close(&format!("{modulation:?}"), &a, &b, 1e-9);
    }
    let without = load(DType::F64, &quantisation(Format::Uint(2), None, None), ModulationStorage::Resident);
    let prediction =
        |model: &Transformer| gradients(model, &lora(model, 3), Recompute::EVERYTHING).prediction;
    assert_ne!(prediction(&without), prediction(&dense));
}

/// The same of one whose branches are Kronecker products, under both kinds of names.
#[test]
fn a_lokr_recovery_adapter_acts_as_its_whole_matrices() {
    let modules = [
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.0.img_mod.1",
        "transformer_blocks.1.attn.to_out.0",
        "transformer_blocks.1.img_mlp.net.2",
    ];
    let names: [fn(&str) -> String; 2] =
        [|m| format!("diffusion_model.{m}"), |m| format!("lycoris_{}", m.replace('.', "_"))];
    for name in names {
        let files = tempfile::tempdir().unwrap();
        let path = lokr_recovery_file(files.path(), name, &modules);
        is_a_kronecker_product(&path, &name(modules[3]));
        assert_eq!(Recovery::open(&path).unwrap().modules().len(), modules.len());
        let wanted = quantisation(Format::Uint(2), Some(&path), None);
        let dense = Dense::model(&wanted, Some(&path));
        for modulation in [ModulationStorage::Resident, ModulationStorage::Streamed] {
            let quantised = load(DType::F64, &wanted, modulation);
            let lora = lora(&quantised, 3);
            let (a, b) = (
                gradients(&quantised, &lora, Recompute::EVERYTHING),
                gradients(&dense, &lora, Recompute::EVERYTHING),
            );
            close(&format!("LoKr, {modulation:?}"), &a, &b, 1e-9);
        }
    }
}

/// The branch on `transformer_blocks.1.img_mlp.net.2` adds `W₁[i, j] · W₂[o, s]` at row `k·i + o`, column
/// `n·j + s`.
fn is_a_kronecker_product(path: &Path, stem: &str) {
    let file = Weights::open_file(path, "recovery adapter").unwrap();
    let factor = |part: &str| {
        let name = format!("{stem}.{part}");
        let shape: [usize; 2] = file.shape(&name).unwrap().try_into().unwrap();
        (shape, file.tensor(&name, &shape, &Device::cpu(), DType::F64).unwrap().to_f64().unwrap())
    };
    let (([l, q], w1), ([k, n], w2)) = (factor("lokr_w1"), factor("lokr_w2"));
    let matrix = Matrix::stacked(vec!["transformer_blocks.1.img_mlp.net.2".into()], q * n, l * k);
    let branch = Recovery::open(path).unwrap().branch(&matrix, &Device::cpu()).unwrap().unwrap();
    let (x, mut y) =
        (randn(DType::F64, &[1, q * n], 3), Tensor::zeros(&Device::cpu(), DType::F64, &[1, l * k]));
    let y = y.as_mut().unwrap();
    branch.forward(x.view(), y.view_mut()).unwrap();
    let x = x.to_f64().unwrap();
    for (row, got) in y.to_f64().unwrap().into_iter().enumerate() {
        let entry = |column: usize| w1[row / k * q + column / n] * w2[row % k * n + column % n];
        let expected: f64 = (0..q * n).map(|column| entry(column) * x[column]).sum();
        assert!((got - expected).abs() < 1e-12, "row {row}: {got} {expected}");
    }
}

#[test]
fn a_recovery_adapter_that_is_none_is_refused() {
    let files = tempfile::tempdir().unwrap();
    let path = recovery_file(files.path(), "other_", &["transformer_blocks_0_attn_to_k"]);
    let error = Recovery::open(&path).unwrap_err().to_string();
    assert!(error.contains("other_transformer_blocks_0") && error.contains("diffusion_model."), "{error}");
    // Factors of another matrix: those of the feed-forward layer are four times as many.
    let path = lokr_recovery_file(
        files.path(),
        |_| "diffusion_model.transformer_blocks.0.attn.to_k".into(),
        &["transformer_blocks.1.img_mlp.net.2"],
    );
    let wanted = quantisation(Format::Uint(2), Some(&path), None);
    let precision = Precision { compute: DType::F32, weights: DType::BF16 };
    let options = LoadOptions { quantisation: Some(&wanted), ..LoadOptions::default() };
    let error = Transformer::load_with(&folder(), &Device::cpu(), precision, options).unwrap_err();
    assert!(error.to_string().contains("are not those of a"), "{error}");
}

/// Streamed modulation gives the numbers of resident modulation, whether its noise levels were prepared or
/// not.
#[test]
fn streamed_modulation_changes_nothing() {
    for (compute, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let wanted = quantisation(Format::Uint(4), None, None);
        let resident = load(compute, &wanted, ModulationStorage::Resident);
        let streamed = load(compute, &wanted, ModulationStorage::Streamed);
        let lora = lora(&resident, 2);
        let expected = gradients(&resident, &lora, MIXED);
        assert!(resident.is_prepared(&[0.123]) && !streamed.is_prepared(&[0.5]));
        close("read for the pass alone", &gradients(&streamed, &lora, MIXED), &expected, tolerance);
        let mut levels: Vec<f64> = (0..7).map(|i| f64::from(i) / 7.0).collect();
        levels.extend(case(&resident).sigmas);
        streamed.prepare(&levels).unwrap();
        assert!(streamed.is_prepared(&levels[3..]) && !streamed.is_prepared(&[0.01]));
        close("prepared", &gradients(&streamed, &lora, MIXED), &expected, tolerance);
        assert!(streamed.is_prepared(&levels), "a prepared pass reads nothing");
        let c = streamed.config().inner();
        assert_eq!(streamed.prepared_bytes(), 2 * streamed.config().num_layers * 6 * c * compute.bytes());
        assert!(streamed.weight_bytes() < resident.weight_bytes());
    }
}

#[test]
fn a_quantised_model_is_kept_and_used_again() {
    let cache = tempfile::tempdir().unwrap();
    let kept = quantisation(Format::Uint(3), None, Some(cache.path()));
    let files = || -> Vec<_> {
        let folder = std::fs::read_dir(cache.path().join("quantised")).unwrap();
        folder.map(|f| f.unwrap().path()).collect()
    };
    let memory = load(DType::F32, &quantisation(Format::Uint(3), None, None), ModulationStorage::Resident);
    let expected = gradients(&memory, &lora(&memory, 2), Recompute::NOTHING);
    let mut written = None;
    for round in 0..2 {
        let model = load(DType::F32, &kept, ModulationStorage::Streamed);
        close("mapped", &gradients(&model, &lora(&model, 2), Recompute::NOTHING), &expected, 2e-5);
        assert_eq!(files().len(), 1, "one file and nothing beside it");
        let now = std::fs::metadata(&files()[0]).unwrap().modified().unwrap();
        assert_eq!(*written.get_or_insert(now), now, "round {round} wrote it again");
    }
    load(DType::F32, &quantisation(Format::Uint(5), None, Some(cache.path())), ModulationStorage::Resident);
    assert_eq!(files().len(), 2, "another format is another file");
}

/// Blocks that leave memory after use compute what the others compute, bit for bit.
#[test]
fn offloaded_blocks_change_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let kept = quantisation(Format::Uint(3), None, Some(cache.path()));
    let precision = Precision { compute: DType::F32, weights: DType::BF16 };
    let load = |offloaded_blocks| {
        let options = LoadOptions { quantisation: Some(&kept), offloaded_blocks, ..LoadOptions::default() };
        Transformer::load_with(&folder(), &Device::cpu_poisoned(), precision, options).unwrap()
    };
    let resident = load(0);
    let expected = gradients(&resident, &lora(&resident, 2), MIXED);
    for offloaded_blocks in [1, usize::MAX] {
        let model = load(offloaded_blocks);
        for _ in 0..2 {
            close("offloaded", &gradients(&model, &lora(&model, 2), MIXED), &expected, 0.0);
        }
    }
}

#[test]
fn progress_of_a_first_quantisation_ends_at_the_whole() {
    let cache = tempfile::tempdir().unwrap();
    let wanted = quantisation(Format::QFloat8, None, Some(cache.path()));
    let seen = std::cell::RefCell::new(Vec::new());
    let tell = |done, total| seen.borrow_mut().push((done, total));
    let precision = Precision { compute: DType::F32, weights: DType::BF16 };
    let options =
        LoadOptions { quantisation: Some(&wanted), progress: Some(&tell), ..LoadOptions::default() };
    Transformer::load_with(&folder(), &Device::cpu(), precision, options).unwrap();
    let seen = seen.into_inner();
    assert!(seen.is_sorted() && seen.len() > 20);
    assert!(seen.last().is_some_and(|(done, total)| done == total && *total > 0));
}
