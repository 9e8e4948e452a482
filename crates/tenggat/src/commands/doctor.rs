//! `tenggat doctor`: what this machine has, and what is missing.

use std::path::Path;

use anyhow::Context;
use clap::Args;
use sysinfo::{Disks, System};

use tenggat_tensor::Device;

use super::gpu_check::gpu_check;
use crate::assets;
use crate::device::{self, Choice};
use crate::output::say;

/// `tenggat doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Check the GPU, in about a minute: every op and real blocks against the processor, CUDA graphs, 8-bit
    /// products, memory; then measure its rates for `tenggat plan`. Fails if any check fails.
    #[arg(long)]
    gpu: bool,
    /// Print the results of the checks as JSON, for a bug report.
    #[arg(long, requires = "gpu")]
    json: bool,
    /// Check small blocks and measure nothing, for emulated devices.
    #[arg(long, requires = "gpu")]
    small: bool,
}

/// Prints the report.
pub fn doctor(args: &DoctorArgs, choice: Choice) -> anyhow::Result<()> {
    if args.gpu {
        return gpu_check(choice, args.json, args.small);
    }
    let mut system = System::new().context("cannot read the system's state")?;
    system.refresh_memory();
    system.refresh_cpu_all();
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    row("version", env!("CARGO_PKG_VERSION"));
    row("system", &format!("{} {}", System::long_os_version().unwrap_or_default(), std::env::consts::ARCH));
    let brand = system.cpus().first().map(|c| c.brand().trim().to_string()).unwrap_or_default();
    row("processor", &format!("{brand}, {} cores in use", rayon::current_num_threads()));
    row("vector units", &vector_units());
    row(
        "memory",
        &format!("{:.1} GiB, {:.1} GiB free", gib(system.total_memory()), gib(system.available_memory())),
    );
    gpu(choice);
    let cache = assets::cache_folder()?;
    row("cache", &format!("{} ({}{})", cache.display(), present(&cache), free(&cache)));
    let hub = tenggat_models::hub::Options::from_env().cache;
    row("model hub cache", &format!("{} ({})", hub.display(), present(&hub)));
    for (name, secret) in
        [("HF_TOKEN", true), ("HF_HOME", false), ("HF_ENDPOINT", false), ("HF_HUB_OFFLINE", false)]
    {
        let value = match std::env::var(name) {
            Ok(_) if secret => "set".to_string(),
            Ok(value) => value,
            Err(_) => "not set".to_string(),
        };
        row(name, &value);
    }
    Ok(())
}

/// What a GPU needs beside its driver: compiler, matrix products, attention; and the Python packages that
/// bring them.
const LIBRARIES: [(&str, &str); 3] =
    [("libnvrtc", "nvidia-cuda-nvrtc"), ("libcublasLt", "nvidia-cublas"), ("libcudnn", "nvidia-cudnn-cu13")];

/// What a GPU needs: what was found, and what is missing.
fn gpu(choice: Choice) {
    let ordinal = if let Choice::Cuda(ordinal) = choice { ordinal } else { 0 };
    let opened = device::options(ordinal).map_err(|e| e.to_string()).and_then(|options| {
        let found = tenggat_gpu::preload(&options.libraries);
        for (library, package) in LIBRARIES {
            let path = found
                .iter()
                .map(|path| path.display().to_string())
                .find(|path| path.contains(&format!("{library}.so")));
            let missing = || format!("not found: `pip install {package}`, or install the CUDA toolkit");
            row(library, &path.unwrap_or_else(missing));
        }
        if !tenggat_gpu::driver_is_there() {
            return Err("none: libcuda.so.1, which comes with NVIDIA's driver, was not found".into());
        }
        Device::cuda(&options).map_err(|e| e.to_string())
    });
    match opened {
        Ok(device) => {
            let memory = device.memory().ok().flatten().map_or(String::new(), |(free, total)| {
                let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
                format!(", {:.1} GiB, {:.1} GiB free", gib(total), gib(free))
            });
            row("GPU", &(device.description().unwrap_or_default() + &memory));
            if let Device::Cuda(gpu) = &device {
                row("GPU libraries", &gpu.versions());
                gpu.notes().iter().for_each(|note| row("note", note));
            }
        }
        Err(e) => row("GPU", &e),
    }
}

fn row(name: &str, value: &str) {
    say!("{name:<16} {value}");
}

fn present(folder: &Path) -> &'static str {
    if folder.is_dir() { "exists" } else { "created when needed" }
}

/// Free space of the disk that holds a folder or its nearest parent.
fn free(folder: &Path) -> String {
    let Ok(disks) = Disks::new_with_refreshed_list() else { return String::new() };
    let disk = disks.iter().filter(|d| folder.starts_with(d.mount_point()));
    match disk.max_by_key(|d| d.mount_point().as_os_str().len()) {
        Some(disk) => format!(", {:.1} GiB free", disk.available_space() as f64 / f64::from(1 << 30)),
        None => String::new(),
    }
}

#[cfg(target_arch = "x86_64")]
fn vector_units() -> String {
    let mut found = vec!["SSE2"];
    let mut add = |name, there: bool| {
        if there {
            found.push(name);
        }
    };
    add("AVX2", std::arch::is_x86_feature_detected!("avx2"));
    add("FMA", std::arch::is_x86_feature_detected!("fma"));
    add("AVX-512", std::arch::is_x86_feature_detected!("avx512f"));
    add("AVX512-BF16", std::arch::is_x86_feature_detected!("avx512bf16"));
    found.join(", ")
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_units() -> String {
    "those of the build target".into()
}
