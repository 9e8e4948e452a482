//! Compiles kernels with NVRTC for one architecture, and keeps what it made.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use crate::error::failed;
use crate::{Error, Module, Result};

const COMMON: &str = include_str!("kernels/common.cuh");

/// Compute capabilities that kernels are written for, as NVRTC names them: Ampere, Ada, Hopper and Blackwell,
/// in the data centre and on the desk.
pub const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"];

/// The name of the code that a compute capability runs; `None` if it is too old.
pub(crate) fn architecture((major, minor): (u32, u32)) -> Option<String> {
    match (major, minor) {
        (..=7, _) => None,
        // Instructions of this architecture alone need the suffix.
        (9, 0) => Some("sm_90a".into()),
        (10, 0) => Some("sm_100a".into()),
        _ => Some(format!("sm_{major}{minor}")),
    }
}

/// A compiled module.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Machine code.
    pub cubin: Vec<u8>,
    /// The compiler's report of registers, spills and shared memory; empty if the code was kept from before.
    pub log: String,
}

/// Compiles every module for an architecture, one of [`ARCHITECTURES`] or newer, several at a time. `cache`
/// is a folder that keeps machine code between runs. Returns names with what they compiled to, in no
/// particular order.
///
/// # Errors
/// NVRTC is not there, or refuses a module: the text has its messages.
pub fn compile_all(
    modules: &[&'static Module],
    architecture: &str,
    cache: Option<&Path>,
) -> Result<Vec<(&'static str, Compiled)>> {
    // SAFETY: only asks whether a library can be opened.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Failed(
            "libnvrtc, which compiles the kernels, was not found: `pip install nvidia-cuda-nvrtc`, or \
             install the CUDA toolkit"
                .into(),
        ));
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(modules.len().max(1));
    let parts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                let mine = modules.iter().skip(first).step_by(threads);
                scope.spawn(move || {
                    mine.map(|m| Ok((m.name, one(m, architecture, cache)?))).collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Result<Vec<_>>>| {
            worker.join().unwrap_or_else(|_| Err(Error::Failed("the compiler of kernels panicked".into())))
        };
        workers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

fn one(module: &Module, architecture: &str, cache: Option<&Path>) -> Result<Compiled> {
    let source = format!("{COMMON}\n#line 1 \"{}.cu\"\n{}", module.name, module.source);
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        "-default-device".into(),
        "--ptxas-options=-v".into(),
    ];
    let kept = cache.map(|folder| kept(folder, module.name, &source, &options));
    if let Some(path) = &kept
        && let Ok(cubin) = std::fs::read(path)
    {
        return Ok(Compiled { cubin, log: String::new() });
    }
    let compiled = compile(module.name, &source, &options)?;
    if let Some(path) = &kept {
        // Kernels that cannot be kept are made again next time.
        let _ = keep(path, &compiled.cubin);
    }
    Ok(compiled)
}

fn kept(folder: &Path, name: &str, source: &str, options: &[String]) -> PathBuf {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let key = format!("{major}.{minor}\n{}\n{source}", options.join(" "));
    let hash = Sha256::digest(key).iter().take(12).map(|b| format!("{b:02x}")).collect::<String>();
    folder.join(format!("{name}-{hash}.cubin"))
}

fn keep(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&beside, cubin)?;
    std::fs::rename(&beside, path)
}

fn compile(name: &str, source: &str, options: &[String]) -> Result<Compiled> {
    let text = |s: &str| CString::new(s).map_err(|e| failed(name, e));
    let program = result::create_program(&text(source)?, Some(&text(&format!("{name}.cu"))?))
        .map_err(|e| failed(name, e))?;
    // SAFETY: the program lives until the end of the block, and buffers are as long as the library says.
    unsafe {
        let compiled = result::compile_program(program, options);
        let log = result::get_program_log(program).map_or_else(|_| String::new(), |log| plain(&log));
        let code = compiled
            .map_err(|e| failed(&format!("kernels `{name}`"), format!("{e}\n{log}")))
            .and_then(|()| {
                let mut len = 0;
                sys::nvrtcGetCUBINSize(program, &raw mut len).result().map_err(|e| failed(name, e))?;
                let mut cubin = vec![0u8; len];
                sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast())
                    .result()
                    .map_err(|e| failed(name, e))?;
                Ok(cubin)
            });
        // Nothing can be done about a program that does not go.
        let _ = result::destroy_program(program);
        Ok(Compiled { cubin: code?, log })
    }
}

fn plain(log: &[std::ffi::c_char]) -> String {
    let bytes: &[u8] = bytemuck::cast_slice(log);
    CStr::from_bytes_until_nul(bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}
