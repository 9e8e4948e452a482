//! What is known of a GPU from one run to the next: what failed when it was checked, and how fast it is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tenggat_gpu::{Cuda, Options, Without};
use tenggat_plan::{Machine, WallClock};
use tenggat_tensor::Device;
use tenggat_train::device_check::{self, MeasuredRates, Outcome, Report, Scope};

use crate::assets;
use crate::output::{note, warning};

/// Seconds after which no check begins before the first run on a card.
const LIMIT_S: f64 = 10.0;

/// What is known of a card with its driver and libraries.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Whether it was checked before a first run.
    pub checked: bool,
    /// What runs go without since then, as `TENGGAT_WITHOUT` names it.
    pub without: Vec<String>,
    /// What was measured.
    pub rates: Option<MeasuredRates>,
}

impl Record {
    /// The file of a card; an emulated one has none.
    fn file(cuda: &Cuda) -> Option<PathBuf> {
        let key = format!("{} {} {}", cuda.description(), cuda.driver_version()?, cuda.versions());
        let words = key.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let name = words.map(str::to_lowercase).collect::<Vec<_>>().join("-");
        Some(assets::cache_folder().ok()?.join("gpu").join(format!("{name}.json")))
    }

    /// What is known; nothing if there is no file that can be read.
    pub fn read(cuda: &Cuda) -> Self {
        let text = Self::file(cuda).and_then(|file| std::fs::read_to_string(file).ok());
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, cuda: &Cuda) -> anyhow::Result<()> {
        let Some(file) = Self::file(cuda) else { return Ok(()) };
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        tenggat_train::files::atomic::write(&file, serde_json::to_string_pretty(self)?.as_bytes())?;
        Ok(())
    }
}

/// Replaces the catalogue's rates by those measured on this card.
pub fn apply_rates(cuda: &Cuda, machine: &mut Machine) {
    if let Some(rates) = Record::read(cuda).rates {
        rates.apply(machine);
    }
}

/// Checks a card before the first run on it, with this driver and these libraries. Returns the options to
/// open it with again, if it should go without something that failed.
pub fn before_first_run(cuda: &Cuda, device: &Device, options: &Options) -> Option<Options> {
    if options.without.check || cuda.driver_version().is_none() {
        return None;
    }
    let mut record = Record::read(cuda);
    if !record.checked {
        note!("checking this GPU before its first run, which takes about ten seconds");
        let report = device_check::run(device, Scope::Short, &WallClock::start(), LIMIT_S, &mut |_| {});
        for check in report.checks.iter().filter(|check| check.outcome == Outcome::Failed) {
            warning!(
                "the GPU fails the check `{}`: {}; `tenggat doctor --gpu` says more",
                check.name,
                check.detail
            );
        }
        record = Record { checked: true, without: safer(&report, cuda.dnn().is_some()), ..record };
        if let Err(e) = record.write(cuda) {
            warning!("this GPU will be checked again before the next run: {e}");
        }
    }
    let without: Without = record.without.join(",").parse().unwrap_or_default();
    if without == Without::default() {
        return None;
    }
    warning!("the GPU is used without {}, which failed when it was checked", record.without.join(", "));
    Some(Options { without: options.without.and(without), ..options.clone() })
}

/// What runs go without where checks failed: attention on our own kernels, launches one by one, products in
/// bf16.
fn safer(report: &Report, has_dnn: bool) -> Vec<String> {
    let mut without: Vec<String> = Vec::new();
    for name in report.failures() {
        let part = match name {
            // What is not installed is not to be gone without, but to be installed.
            name if name.contains("attention") && !name.contains("causal") && has_dnn => "dnn",
            name if name.starts_with("CUDA graphs") => "graphs",
            name if name.starts_with("products of 8-bit") => "fp8",
            _ => continue,
        };
        if !without.iter().any(|there| there == part) {
            without.push(part.into());
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_train::device_check::Check;

    /// What failed is gone without, under a name that the options know.
    #[test]
    fn runs_go_without_what_failed() {
        let failed = |name: &str| Check {
            name: name.into(),
            outcome: Outcome::Failed,
            detail: String::new(),
            seconds: 0.0,
        };
        let report = |names: &[&str]| Report {
            device: String::new(),
            libraries: String::new(),
            notes: Vec::new(),
            checks: names.iter().map(|name| failed(name)).collect(),
            rates: None,
        };
        let all = report(&[
            "op: attention, bf16",
            "attention on cuDNN",
            "CUDA graphs against single launches",
            "products of 8-bit floats",
            "op: loss, bf16",
        ]);
        assert_eq!(safer(&all, true), ["dnn", "graphs", "fp8"]);
        assert!(safer(&all, true).join(",").parse::<Without>().unwrap().fp8);
        assert_eq!(safer(&report(&["attention on cuDNN", "op: causal attention, bf16"]), false), [""; 0]);
        assert_eq!(safer(&report(&["op: causal attention, bf16"]), true), [""; 0]);
    }
}
