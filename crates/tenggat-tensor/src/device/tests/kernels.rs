//! The ops' kernels for every architecture.

use tenggat_gpu::{ARCHITECTURES, Compiled, compile_all, preload};

use crate::ops::{KERNELS, RARE_KERNELS};

/// What kernels take more registers than there are, per architecture, and why that is known and accepted.
const SPILLING: [&str; 0] = [];

/// Numbers in the compiler's report before `bytes spill stores` and `bytes spill loads`, by function.
fn spills(log: &str) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    let mut function = String::new();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim().into();
        } else if line.contains("bytes spill stores") {
            let numbers = line
                .split(',')
                .skip(1)
                .filter_map(|part| part.split_whitespace().next()?.parse::<u64>().ok());
            all.push((function.clone(), numbers.sum()));
        }
    }
    all
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spilling() {
    let folders = std::env::var_os("TENGGAT_CUDA_LIBRARIES").unwrap_or_default();
    preload(&std::env::split_paths(&folders).collect::<Vec<_>>());
    // SAFETY: only asks whether a library can be opened.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        let reason = "libnvrtc is not there; name its folder in TENGGAT_CUDA_LIBRARIES";
        tenggat_skip::skipped_unless_required("TENGGAT_REQUIRE_NVRTC", reason);
        return;
    }
    let kernels = [KERNELS, RARE_KERNELS].concat();
    for architecture in ARCHITECTURES {
        let compiled = compile_all(&kernels, architecture, None).unwrap();
        assert_eq!(compiled.len(), kernels.len());
        let mut functions = 0;
        for (module, Compiled { cubin, log }) in compiled {
            assert_eq!(&cubin[..4], b"\x7fELF", "{module}");
            for (function, bytes) in spills(&log) {
                functions += 1;
                let known = SPILLING.contains(&function.as_str());
                assert!(bytes == 0 || known, "{architecture}: {function} spills {bytes} bytes\n{log}");
            }
        }
        assert!(functions > kernels.len(), "{architecture}: the report names {functions} functions");
    }
}
