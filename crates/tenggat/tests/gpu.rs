//! Jobs on a GPU that is emulated: the same kernels, compiled as C++.

use std::path::Path;
use std::process::Command;

fn tenggat() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tenggat"))
}

/// Whether GPUs can be emulated here. They cannot without a C++ compiler, unless `TENGGAT_REQUIRE_CXX` says that there
/// is one.
fn possible() -> bool {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let there = Command::new(compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    assert!(there || std::env::var_os("TENGGAT_REQUIRE_CXX").is_none(), "no C++ compiler");
    if !there {
        eprintln!("skipped: no C++ compiler");
    }
    there
}

/// Losses of a few steps on a device.
fn train(folder: &Path, device: &str, more: &str) -> Vec<f64> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/train");
    let job = format!(
        "job: extension\nconfig:\n  name: run\n  process:\n    - type: sd_trainer\n      training_folder: {}\n      \
         network: {{type: lora, linear: 4, linear_alpha: 4}}\n      save: {{dtype: bf16}}\n      datasets:\n        \
         - folder_path: {}\n          resolution: [64]\n      train:\n        batch_size: 2\n        steps: 2\n        \
         lr: 3e-4\n        optimizer: adamw\n        timestep_type: linear\n      model: {{name_or_path: mini, \
         arch: qwen_image{more}}}\n",
        folder.display(),
        pictures.display(),
    );
    let file = folder.join("job.yaml");
    std::fs::write(&file, job).unwrap();
    let out = tenggat().args(["--device", device, "train"]).arg(&file).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(folder.join("run/run.safetensors").is_file(), "{said}");
    let metrics = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let loss = |line: &str| {
        let (_, rest) = line.split_once("\"loss\":").unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    };
    metrics.lines().map(loss).collect()
}

/// A whole job: encoders, steps, saving. Losses are the CPU's but for the rounding to 8 bits of weights and
/// activations, a hundredth at most in a model of six blocks.
#[test]
fn a_job_on_a_gpu_has_the_losses_of_the_cpu() {
    if !possible() {
        return;
    }
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let quantised = ", quantize: true, qtype: float8";
    let expected = train(folders[0].path(), "cpu", quantised);
    let got = train(folders[1].path(), "emulated", quantised);
    assert_eq!((got.len(), expected.len()), (2, 2));
    for (got, expected) in got.into_iter().zip(expected) {
        assert!((got / expected - 1.0).abs() < 1e-2, "{got} {expected}");
    }
}
