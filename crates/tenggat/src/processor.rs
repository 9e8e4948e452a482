//! This machine's processor: its name, its memory, and what a calibration found out about it.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use sysinfo::System;
use tenggat_plan::{Calibration, Machine};

use crate::assets;

/// Share of the memory that a run may use unless it is told otherwise.
const SHARE: f64 = 0.5;

/// Name that tells the processor, and the number of threads in use, from others.
pub fn name() -> String {
    let brand = System::new().ok().and_then(|mut system| {
        system.refresh_cpu_all();
        let brand = system.cpus().first()?.brand().trim().to_owned();
        (!brand.is_empty()).then_some(brand)
    });
    let brand = brand.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let threads = rayon::current_num_threads();
    format!("{brand}, {threads} {}", if threads == 1 { "thread" } else { "threads" })
}

/// Memory that a process may use, bytes: the machine's, or less where a container sets a limit. 0 if nobody
/// knows.
pub fn memory_bytes() -> f64 {
    let Ok(mut system) = System::new() else { return 0.0 };
    system.refresh_memory();
    let machine = system.total_memory();
    let container = system.cgroup_limits().map_or(machine, |limits| limits.total_memory);
    machine.min(container) as f64
}

/// Memory that a run may use unless it is told otherwise, bytes: half of [`memory_bytes`], for the machine
/// has other things to do. `None` if nobody knows.
pub fn usable_bytes() -> Option<f64> {
    Some(SHARE * memory_bytes()).filter(|bytes| *bytes > 0.0)
}

/// Keeps a calibration for later plans and returns the file.
pub fn store(calibration: &Calibration) -> anyhow::Result<PathBuf> {
    let path = file(&calibration.device)?;
    let text = serde_json::to_vec_pretty(calibration)?;
    tenggat_train::files::atomic::write(&path, &text)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The processor as it was calibrated; `None` if it was not, or not with as many threads.
pub fn calibrated() -> Option<Machine> {
    let name = name();
    let path = file(&name).ok()?;
    let text = fs::read(&path).ok()?;
    match serde_json::from_slice::<Calibration>(&text) {
        Ok(calibration) if calibration.device == name => Some(Machine::from(&calibration)),
        Ok(_) => None,
        Err(e) => {
            tracing::warn!("cannot parse {} ({e}); run `tenggat plan calibrate`", path.display());
            None
        }
    }
}

/// The processor with assumed rates.
pub fn uncalibrated() -> Machine {
    Machine::uncalibrated_cpu(&name(), rayon::current_num_threads(), memory_bytes())
}

fn file(name: &str) -> anyhow::Result<PathBuf> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let slug: String = name.chars().map(letter).collect();
    let words: Vec<&str> = slug.split('-').filter(|word| !word.is_empty()).collect();
    Ok(assets::cache_folder()?.join("calibration").join(format!("{}.json", words.join("-"))))
}
