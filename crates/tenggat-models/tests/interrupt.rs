//! Long work on models ends when that is asked for, and leaves nothing half done.

use std::fs;
use std::path::{Path, PathBuf};

use tenggat_models::Interrupt;
use tenggat_models::qwen_image::PromptEncoder;
use tenggat_models::transformer::{LoadOptions, Precision, Transformer};
use tenggat_models::weights::Quantisation;
use tenggat_tensor::{DType, Device};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen_image")
}

#[test]
fn loading_ends() {
    let interrupt = Interrupt::default();
    interrupt.request();
    let precision = Precision { compute: DType::F32, weights: DType::F32 };
    let options = LoadOptions { interrupt: Some(&interrupt), ..LoadOptions::default() };
    let loaded = Transformer::load_with(&model().join("transformer"), &Device::cpu(), precision, options);
    assert!(loaded.unwrap_err().is_interrupted());
    let loaded = PromptEncoder::load_with(&model(), &Device::cpu(), precision, None, &|_, _| {}, &interrupt);
    assert!(loaded.unwrap_err().is_interrupted());
}

#[test]
fn quantising_ends_and_leaves_no_file() {
    let (interrupt, cache) = (Interrupt::default(), tempfile::tempdir().unwrap());
    let format = "float8".parse().unwrap();
    let wanted = Quantisation { format, recovery: None, cache: Some(cache.path().to_path_buf()) };
    // Asked for when the first matrix is done.
    let progress = |done, _| {
        if done > 0 {
            interrupt.request()
        }
    };
    let transformer = model().join("transformer");
    let error = Transformer::quantise(&transformer, &wanted, &progress, &interrupt).unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    let left: Vec<_> = fs::read_dir(cache.path().join("quantised")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let file = Transformer::quantise(&transformer, &wanted, &|_, _| {}, &Interrupt::default()).unwrap();
    assert!(file.is_file());
}
