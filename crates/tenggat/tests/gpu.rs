//! Jobs on a GPU that is emulated: the same kernels, compiled as C++. And on stand-ins for NVIDIA's
//! libraries, which take the same path as a real GPU.
#![allow(clippy::print_stderr, reason = "tests say what they found")]

use std::path::Path;
use std::process::Command;

fn tenggat() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tenggat"))
}

/// Whether GPUs can be emulated here. They cannot without a C++ compiler, unless `TENGGAT_REQUIRE_CXX` says
/// that there is one.
fn possible() -> bool {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let there = Command::new(compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        tenggat_skip::skipped_without_cxx("no C++ compiler");
    }
    there
}

/// Losses of a few steps on a device.
fn train(folder: &Path, device: &str, more: &str, libraries: Option<&Path>) -> Vec<f64> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/demo-dataset/train");
    let job = format!(
        "job: extension\nconfig:\n  name: run\n  process:\n    - type: sd_trainer\n      training_folder: {}\n      \
         network: {{type: lora, linear: 4, linear_alpha: 4}}\n      save: {{dtype: bf16}}\n      datasets:\n        \
         - folder_path: {}\n          resolution: [64]\n      train:\n        batch_size: 2\n        steps: 4\n        \
         lr: 3e-4\n        optimizer: adamw\n        timestep_type: linear\n      model: {{name_or_path: mini, \
         arch: qwen_image{more}}}\n",
        folder.display(),
        pictures.display(),
    );
    let file = folder.join("job.yaml");
    std::fs::write(&file, job).unwrap();
    let mut command = tenggat();
    if let Some(libraries) = libraries {
        // What is compiled for stand-ins is not to be found by others.
        command.env("LD_LIBRARY_PATH", libraries).env("XDG_CACHE_HOME", folder.join("cache"));
        // Room for the job and for what a driver would take, not for either twice.
        command.env("TENGGAT_STAND_IN_BYTES", "1000000000").env("TENGGAT_WITHOUT", "check");
    }
    let out = command.args(["--device", device, "train"]).arg(&file).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(folder.join("run/run.safetensors").is_file(), "{said}");
    assert!(!said.contains("room") && !said.contains("are needed"), "{said}");
    let metrics = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let loss = |line: &str| {
        let (_, rest) = line.split_once("\"loss\":").unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    };
    metrics.lines().map(loss).collect()
}

fn assert_near(got: &[f64], expected: &[f64]) {
    assert_eq!((got.len(), expected.len()), (4, 4));
    for (got, expected) in got.iter().zip(expected) {
        assert!((got / expected - 1.0).abs() < 1e-2, "{got} {expected}");
    }
}

/// Checks a device; whether all passed, and what was said.
#[cfg(target_os = "linux")]
fn check(device: &str, libraries: Option<&Path>, faults: &str) -> (bool, String) {
    let cache = tempfile::tempdir().unwrap();
    let mut command = tenggat();
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries).env("TENGGAT_STAND_IN_FAULTS", faults);
        command.env("TENGGAT_STAND_IN_BYTES", "400000000");
    }
    command.env("TENGGAT_CACHE", cache.path()).args(["--device", device, "doctor", "--gpu", "--small"]);
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), said)
}

/// A device that is right passes; a fault of a library is a failure in the table and in the exit code.
#[cfg(target_os = "linux")]
#[test]
fn a_gpu_is_checked() {
    if !possible() {
        return;
    }
    let (passed, said) = check("emulated:2GB", None, "");
    assert!(passed && !said.contains("FAILED") && said.contains("passed   CUDA graphs"), "{said}");
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenggat-gpu/stand-in/build.sh");
    let built = Command::new("sh").arg(build).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let libraries = String::from_utf8(built.stdout).unwrap();
    let libraries = Some(Path::new(libraries.trim()));
    // The stand-ins have no cuDNN, which is the only thing that is wrong with them.
    let (passed, said) = check("cuda", libraries, "");
    assert!(!passed && said.matches("FAILED").count() == 1, "{said}");
    assert!(said.contains("FAILED   attention on cuDNN"), "{said}");
    let (passed, said) = check("cuda", libraries, "captures");
    assert!(!passed && said.contains("FAILED   CUDA graphs against single launches"), "{said}");
    let (passed, said) = check("cuda", libraries, "products");
    assert!(!passed && said.contains("FAILED   products: a way for each of a step"), "{said}");
}

/// A whole job: encoders, steps, saving. Losses are the CPU's but for the rounding to 8 bits of weights and
/// activations, a hundredth at most in a model of six blocks.
#[test]
fn a_job_on_a_gpu_has_the_losses_of_the_cpu() {
    if !possible() {
        return;
    }
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let quantised = ", quantize: true, qtype: float8";
    let expected = train(folders[0].path(), "cpu", quantised, None);
    assert_near(&train(folders[1].path(), "emulated", quantised, None), &expected);
    if cfg!(target_os = "linux") {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenggat-gpu/stand-in/build.sh");
        let built = Command::new("sh").arg(build).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let libraries = String::from_utf8(built.stdout).unwrap();
        let libraries = Some(Path::new(libraries.trim()));
        // Once recorded from the second step on, once with half of the blocks in their file.
        assert_near(&train(folders[2].path(), "cuda", quantised, libraries), &expected);
        let offloaded =
            format!("{quantised}, layer_offloading: true, layer_offloading_transformer_percent: 0.5");
        assert_near(&train(folders[3].path(), "cuda", &offloaded, libraries), &expected);
    }
}

/// Losses of a few steps of a small model on the stand-ins with a fault, or what was said in their place.
#[cfg(target_os = "linux")]
fn steps(libraries: &Path, fault: &str) -> Result<Vec<f64>, String> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/mini/model");
    let cache = tempfile::tempdir().unwrap();
    let out = tenggat()
        .args([
            "--device",
            "cuda",
            "bench",
            "step",
            "--random-weights",
            "--layers",
            "1",
            "--resolution",
            "64",
        ])
        .args(["--text-tokens", "8", "--rank", "4", "--warm-up", "0", "--steps", "3", "--json-lines"])
        .arg("--model")
        .arg(model)
        .env("LD_LIBRARY_PATH", libraries)
        .env("TENGGAT_STAND_IN_FAULTS", fault)
        .env("TENGGAT_CACHE", cache.path())
        .env("TENGGAT_WITHOUT", "check")
        .output()
        .unwrap();
    let [told, said] = [&out.stdout, &out.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(!said.contains("panicked") && out.status.code().is_some(), "{fault}: {said}");
    let loss = |line: &str| line.split_once("\"loss\":")?.1.split([',', '}']).next()?.parse().ok();
    match out.status.success() {
        true => Ok(told.lines().filter_map(loss).collect()),
        false => Err(said),
    }
}

/// Whatever a library fails at, a run comes to what it comes to without the fault, or says what failed.
#[cfg(target_os = "linux")]
#[test]
fn faults_of_libraries_end_in_right_losses_or_in_a_clear_error() {
    if !possible() {
        return;
    }
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tenggat-gpu/stand-in/build.sh");
    let built = Command::new("sh").arg(build).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let libraries = String::from_utf8(built.stdout).unwrap();
    let libraries = Path::new(libraries.trim());
    let expected = steps(libraries, "").unwrap();
    assert!(expected.len() == 3 && expected.iter().all(|loss| loss.is_finite()), "{expected:?}");
    // Products and attention of our own kernels, other ways, and no graphs: sums in another order.
    for fault in
        ["product:2", "product:9", "first-ways", "captured-questions", "captures", "dnn-plans,product:5"]
    {
        let got = steps(libraries, fault).unwrap_or_else(|said| panic!("{fault}: {said}"));
        assert_eq!(got.len(), 3, "{fault}");
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got / expected - 1.0).abs() < 1e-2, "{fault}: {got} {expected}");
        }
    }
    // Memory that is not there is found elsewhere, or the error says so; a kernel that fails ends the run.
    for (fault, word) in [
        ("allocation:1", "memory"),
        ("allocation:12", "memory"),
        ("allocation:40", "memory"),
        ("launch:30", "kernel"),
        ("dnn-execution,launch:200", "kernel"),
    ] {
        match steps(libraries, fault) {
            Ok(got) => assert_eq!(got, expected, "{fault}"),
            Err(said) => assert!(said.to_lowercase().contains(word), "{fault}: {said}"),
        }
    }
}
