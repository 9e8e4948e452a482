//! The checks in their order, each within the time that is left.

use tenggat_gpu::Cuda;
use tenggat_models::Result;
use tenggat_plan::Clock;
use tenggat_tensor::{DType, Device};

use super::memory::{self, Filled};
use super::rates::MeasuredRates;
use super::report::{Check, Outcome, Report};
use super::scope::Scope;
use super::{ops, products, step};

/// What a check came to: the outcome and what is to be said of it.
type Found = (Outcome, String);

struct Suite<'a> {
    clock: &'a dyn Clock,
    until_s: f64,
    show: &'a mut dyn FnMut(&Check),
    checks: Vec<Check>,
}

impl Suite<'_> {
    /// Runs a check if there is time left. An error of the device is a failure like any other.
    fn check(&mut self, name: impl Into<String>, work: impl FnOnce() -> Result<Found>) {
        let began_s = self.clock.now_s();
        let (outcome, detail) = match began_s < self.until_s {
            true => work().unwrap_or_else(|e| (Outcome::Failed, e.to_string())),
            false => (Outcome::Skipped, "no time was left".into()),
        };
        let check = Check { name: name.into(), outcome, detail, seconds: self.clock.now_s() - began_s };
        (self.show)(&check);
        self.checks.push(check);
    }
}

/// Passed if the error is at most the limit.
fn within((error, limit): (f64, f64)) -> Found {
    let outcome = if error <= limit { Outcome::Passed } else { Outcome::Failed };
    (outcome, format!("off by {error:.1e}, at most {limit:.1e}"))
}

/// Checks a GPU. No check begins after `limit_s` seconds; each is shown when it is over.
pub fn run(
    device: &Device,
    scope: Scope,
    clock: &dyn Clock,
    limit_s: f64,
    show: &mut dyn FnMut(&Check),
) -> Report {
    let Device::Cuda(cuda) = device else {
        let (device, libraries) = ("cpu".into(), String::new());
        return Report { device, libraries, notes: Vec::new(), checks: Vec::new(), rates: None };
    };
    let mut suite = Suite { clock, until_s: clock.now_s() + limit_s, show, checks: Vec::new() };
    let types: &[DType] = if scope == Scope::Short { &[DType::BF16] } else { &[DType::F32, DType::BF16] };
    for &dtype in types {
        for name in ops::names() {
            let text = format!("op: {name}, {}", if dtype == DType::F32 { "f32" } else { "bf16" });
            suite.check(text, || Ok(within(ops::compare(device, dtype, name)?)));
        }
    }
    suite.check("products: a way for each of a step", || Ok(ways(cuda)));
    suite.check("attention on cuDNN", || Ok(attention(cuda)));
    if scope != Scope::Short {
        suite.check("blocks against the CPU", || Ok(within(step::against_cpu(device, scope, clock)?)));
    }
    suite.check("CUDA graphs against single launches", || {
        let captured = step::graphs(device, scope, clock)?;
        Ok(match captured.compared {
            Some(compared) => within(compared),
            None if cuda.without().graphs => (Outcome::Skipped, "TENGGAT_WITHOUT says so".into()),
            None => (Outcome::Failed, format!("nothing was captured: {}", captured.notes.join("; "))),
        })
    });
    suite.check("products of 8-bit floats", || match device.fp8_products() {
        true => Ok(within(step::in_8_bits(device, scope, clock)?)),
        false => Ok((Outcome::Skipped, "this device does not multiply 8-bit floats".into())),
    });
    if scope != Scope::Short {
        suite.check("memory when the device is full", || {
            Ok(match memory::under_pressure(cuda)? {
                Filled::Whole(bytes) => {
                    (Outcome::Passed, format!("{:.1} GB held and given back", bytes as f64 / 1e9))
                }
                Filled::Wrong(why) => (Outcome::Failed, why),
                Filled::Unlimited => (Outcome::Skipped, "it has the host's memory".into()),
            })
        });
    }
    let mut rates = None;
    if scope == Scope::Full {
        suite.check("rates", || {
            let measured = MeasuredRates::measure(device, clock)?;
            rates = Some(measured);
            Ok((Outcome::Passed, format!("products at {:.0} TFLOP/s", measured.product_flop / 1e12)))
        });
    }
    let checks = suite.checks;
    Report { device: cuda.description(), libraries: cuda.versions(), notes: cuda.notes(), checks, rates }
}

fn ways(cuda: &Cuda) -> Found {
    match products::without_a_way(cuda) {
        (asked, missing) if missing.is_empty() => (Outcome::Passed, format!("{asked} products")),
        (asked, missing) => (
            Outcome::Failed,
            // A few tell what they have in common.
            format!(
                "{} of {asked} have none and go through a slow kernel: {}{}",
                missing.len(),
                missing[..missing.len().min(3)].join(", "),
                if missing.len() > 3 { ", …" } else { "" }
            ),
        ),
    }
}

/// Whether attention ran on cuDNN in the checks before.
fn attention(cuda: &Cuda) -> Found {
    let note = cuda.notes().into_iter().find(|note| note.starts_with("attention"));
    match (cuda.dnn(), note) {
        (_, Some(note)) => (Outcome::Failed, note),
        (Some(_), None) => (Outcome::Passed, cuda.versions()),
        (None, None) => (Outcome::Skipped, "an emulated device has none".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenggat_plan::WallClock;

    fn emulated() -> Option<Device> {
        match Device::emulated_with(1 << 30) {
            Ok(device) => Some(device),
            Err(e) => {
                tenggat_skip::skipped_without_cxx(e);
                None
            }
        }
    }

    /// An emulated device passes everything that it can be asked.
    #[test]
    fn an_emulated_device_passes() {
        let Some(device) = emulated() else { return };
        let mut shown = 0;
        let report = run(&device, Scope::Small, &WallClock::start(), 1e6, &mut |_| shown += 1);
        assert_eq!(report.failures().collect::<Vec<_>>(), [] as [&str; 0], "{report:#?}");
        let of = |outcome| report.checks.iter().filter(|check| check.outcome == outcome).count();
        assert_eq!(
            (shown, of(Outcome::Skipped)),
            (report.checks.len(), 1),
            "attention on cuDNN: {report:#?}"
        );
        assert!(of(Outcome::Passed) > 2 * 19 && report.rates.is_none());
    }

    /// Time that is over leaves checks out, and says so.
    #[test]
    fn what_there_is_no_time_for_is_left_out() {
        let Some(device) = emulated() else { return };
        let report = run(&device, Scope::Short, &WallClock::start(), 0.0, &mut |_| {});
        assert!(report.checks.iter().all(|check| check.outcome == Outcome::Skipped));
        assert!(report.failures().next().is_none());
    }

    #[test]
    fn errors_beyond_the_limit_fail() {
        assert_eq!(within((0.5, 0.5)).0, Outcome::Passed);
        assert_eq!(within((0.6, 0.5)).0, Outcome::Failed);
        assert_eq!(within((f64::INFINITY, 0.5)).0, Outcome::Failed);
        assert_eq!(within((f64::NAN, 0.5)).0, Outcome::Failed);
    }
}
