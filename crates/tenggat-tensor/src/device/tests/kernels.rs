//! The ops' kernels for every architecture.

use std::collections::{BTreeMap, BTreeSet};

use tenggat_gpu::{ARCHITECTURES, Compiled, compile_all, preload};

use super::arguments;
use crate::ops::{KERNELS, RARE_KERNELS};

/// What kernels take more registers than there are, per architecture, and why that is known and accepted.
const SPILLING: [&str; 0] = [];

/// The architecture whose instructions are counted.
const BUDGETED: &str = "sm_90a";
/// Most instructions of kernels, all branches and what fills the last line of code counted, by NVRTC 13.0.88
/// and a twentieth more.
const BUDGET: [(&str, usize); 14] = [
    ("rms_norm_rope_forward_vec_bf16", 714),
    ("rms_norm_rope_backward_vec_bf16", 722),
    ("gelu_forward_vec_bf16", 294),
    ("gelu_backward_vec_bf16", 369),
    ("layer_norm_forward_vec_bf16", 411),
    ("gated_residual_forward_vec_bf16", 294),
    ("widen_uint3_bf16", 285),
    ("widen_float8_bf16", 176),
    ("quantise_rows_bf16", 420),
    ("scale_sums_bf16", 369),
    ("adamw_vec", 445),
    ("copy_vec_bf16", 201),
    ("cast_vec_f32_bf16", 201),
    ("add_scaled_vec_f32", 210),
];

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
    let (mut parameters, mut budgeted) = (BTreeMap::new(), 0);
    for architecture in ARCHITECTURES {
        let compiled = compile_all(&kernels, architecture, None).unwrap();
        assert_eq!(compiled.len(), kernels.len());
        let mut functions = 0;
        for (module, Compiled { cubin, log }) in compiled {
            assert_eq!(&cubin[..4], b"\x7fELF", "{module}");
            let taken = BTreeSet::from_iter(arguments::parameter_bytes(&cubin));
            assert!(!taken.is_empty(), "{module}");
            let first = parameters.entry(module).or_insert_with(|| taken.clone());
            assert_eq!(*first, taken, "{architecture}: {module}");
            if architecture == BUDGETED {
                budgeted += within_budget(&cubin);
            }
            for (function, bytes) in spills(&log) {
                functions += 1;
                let known = SPILLING.contains(&function.as_str());
                assert!(bytes == 0 || known, "{architecture}: {function} spills {bytes} bytes\n{log}");
            }
        }
        assert!(functions > kernels.len(), "{architecture}: the report names {functions} functions");
    }
    assert_eq!(budgeted, BUDGET.len(), "a budget is of no kernel");
    for module in kernels {
        let taken: Vec<_> = parameters[module.name].iter().cloned().collect();
        arguments::agree_with_code(module, &taken);
    }
}

/// Kernels that a step spends its time in have no more instructions than were counted once, and a few. Their
/// number is that of the machine code, in which each takes 16 bytes. Returns how many were looked at.
fn within_budget(cubin: &[u8]) -> usize {
    let mut seen = 0;
    for (name, code) in arguments::sections(cubin) {
        let Some(kernel) = name.strip_prefix(".text.") else { continue };
        let budget = BUDGET.iter().find(|(budgeted, _)| *budgeted == kernel);
        let Some(&(_, most)) = budget else { continue };
        let instructions = code.len() / 16;
        assert!(instructions <= most, "{kernel}: {instructions} instructions, {most} are its budget");
        // A budget that is far too large says nothing.
        assert!(2 * instructions > most, "{kernel}: only {instructions} instructions; lower its budget");
        seen += 1;
    }
    seen
}
