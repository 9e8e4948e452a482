//! `tenggat plan calibrate`: how fast this machine's processor is.

use tenggat_plan::{Clock, WallClock};
use tenggat_tensor::Device;
use tenggat_train::plan::calibrate::{self, Finding};

use crate::output::{say, warning};
use crate::processor;

/// Seconds that a calibration takes if nobody says otherwise.
pub const USUAL_S: f64 = 18.0;

/// Error of a predicted step that says that the measurements were disturbed.
const WORTH_A_WARNING: f64 = 0.2;

/// Measures, prints and stores.
pub fn calibrate(limit_s: f64) -> anyhow::Result<()> {
    anyhow::ensure!(
        (3.0..=600.0).contains(&limit_s),
        "--time {limit_s} s: expected between 3 seconds and 10 minutes"
    );
    let (name, clock) = (processor::name(), WallClock::start());
    say!("{name}: measuring for {limit_s:.0} s; other programs make it look slower");
    let (calibration, findings) =
        calibrate::calibrate(&Device::cpu(), &name, processor::memory_bytes(), &clock, limit_s)?;
    say!("{:<44} {:>10} {:>12}", "kind of work", "time", "10⁹ a second");
    for Finding { what, seconds, result, .. } in findings.iter().filter(|f| !f.is_step) {
        say!("  {what:<42} {:>7.3} ms {:>12.1}", seconds * 1e3, result / 1e9);
    }
    say!("{:<44} {:>10} {:>12}", "whole steps", "measured", "predicted");
    for Finding { what, seconds, result, .. } in findings.iter().filter(|f| f.is_step) {
        let percent = 100.0 * (result / seconds - 1.0);
        say!("  {what:<42} {:>7.2} ms {:>9.2} ms {percent:>+6.1} %", seconds * 1e3, result * 1e3);
    }
    if let Some(text) = disturbed(&findings) {
        warning!("{text}");
    }
    let path = processor::store(&calibration)?;
    say!("stored in {} after {:.0} s", path.display(), clock.now_s());
    Ok(())
}

/// What to say of a calibration whose rates do not explain the whole steps that were measured beside them.
fn disturbed(findings: &[Finding]) -> Option<String> {
    let off = |f: &Finding| (f.result / f.seconds - 1.0).abs();
    let worst = findings.iter().filter(|f| f.is_step).map(off).fold(0.0, f64::max);
    (worst > WORTH_A_WARNING).then(|| {
        format!(
            "the prediction of a whole step is {:.0} % off: other programs were probably running; calibrate \
             again when the machine is idle",
            100.0 * worst
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_calibration_is_told() {
        let step = |seconds, result| Finding { what: "a step".into(), seconds, result, is_step: true };
        // An operation's result is a rate, which is no prediction of its seconds.
        let product = Finding { is_step: false, ..step(0.001, 2e11) };
        assert_eq!(disturbed(&[product, step(1.0, 1.19), step(1.0, 0.81)]), None);
        let told = disturbed(&[step(1.0, 1.1), step(1.0, 0.68)]).unwrap();
        assert!(told.contains("32 % off") && told.contains("calibrate again"), "{told}");
    }
}
