//! `tenggat doctor --gpu`: whether the GPU computes what it should, and how fast it is.

use anyhow::{Context, bail};
use tenggat_plan::WallClock;
use tenggat_tensor::Device;
use tenggat_train::device_check::{self, Check, Outcome, Report, Scope};

use crate::device::{self, Choice};
use crate::gpu_record::Record;
use crate::output::{self, say};

/// Seconds after which no check begins.
const LIMIT_S: f64 = 60.0;

/// Checks the GPU and prints a table, or JSON for a report of a fault.
///
/// # Errors
/// There is no GPU; a check failed; the result cannot be written.
pub fn gpu_check(choice: Choice, json: bool, small: bool) -> anyhow::Result<()> {
    let device = match choice {
        Choice::Auto => device::open_unchecked(Choice::Cuda(0))?,
        choice => device::open_unchecked(choice)?,
    };
    let Device::Cuda(cuda) = &device else {
        bail!("--gpu checks a GPU, not the processor; name one with --device")
    };
    let scope = if small || cuda.driver_version().is_none() { Scope::Small } else { Scope::Full };
    // Emulated kernels take their time.
    let limit_s = if scope == Scope::Full { LIMIT_S } else { f64::INFINITY };
    let mut show = |check: &Check| {
        if !json {
            say!("{}", row(check));
        }
    };
    let report = device_check::run(&device, scope, &WallClock::start(), limit_s, &mut show);
    if json {
        output::json(&report)?;
    } else {
        output::block(&summary(&report));
    }
    if let Some(rates) = report.rates {
        let record = Record { rates: Some(rates), ..Record::read(cuda) };
        record.write(cuda).context("the measurements could not be stored for `tenggat plan`")?;
    }
    let failures: Vec<_> = report.failures().collect();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} of {} checks failed: {}", failures.len(), report.checks.len(), failures.join("; "))
}

fn row(check: &Check) -> String {
    let outcome = match check.outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::Skipped => "skipped",
    };
    format!("{outcome:<8} {:<42} {:>6.2} s  {}", check.name, check.seconds, check.detail)
}

fn summary(report: &Report) -> String {
    let mut rows = vec![("GPU", report.device.clone()), ("with", report.libraries.clone())];
    rows.extend(report.notes.iter().map(|note| ("note", note.clone())));
    if let Some(rates) = &report.rates {
        for (name, flop) in [
            ("products", rates.product_flop),
            ("attention forward", rates.attention_forward_flop),
            ("attention backward", rates.attention_backward_flop),
        ] {
            rows.push((name, format!("{:.0} TFLOP/s", flop / 1e12)));
        }
        for (name, bytes) in [("memory", rates.memory_bytes), ("from the host", rates.host_bytes)] {
            rows.push((name, format!("{:.0} GB/s", bytes / 1e9)));
        }
    }
    rows.into_iter().map(|(name, value)| format!("{name:<20} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_what_failed() {
        let check = Check {
            name: "op: loss, bf16".into(),
            outcome: Outcome::Failed,
            detail: "off by 2.0e-1, at most 8.0e-3".into(),
            seconds: 0.125,
        };
        let row = row(&check);
        assert!(row.starts_with("FAILED") && row.ends_with("at most 8.0e-3"), "{row}");
    }
}
