//! Measuring how fast this machine is, so that plans for it are right.
//!
//! Every kind of work alone, and in turn with it whole steps of small transformers, by which
//! [`Calibration::settle`] corrects what the parts alone get wrong: in a step they share caches with their
//! neighbours.

mod ops;
pub mod rehearsal;
pub mod timing;

use tenggat_models::Result;
use tenggat_plan::{Calibration, Clock, Work};
use tenggat_tensor::Device;

use rehearsal::Rehearsal;
use timing::Trial;

const fn step(heads: usize, side: usize, batch: usize, rank: usize) -> Rehearsal {
    Rehearsal {
        layers: 4,
        heads,
        head_dim: 64,
        joint_dim: 128,
        grid: (side, side),
        text_tokens: 24,
        batch,
        rank,
    }
}

/// The steps that are run whole: narrow and wide, few and many tokens, low and high rank; deep enough that a
/// block finds nothing of its last time in the caches.
const STEPS: [Rehearsal; 6] = [
    step(3, 8, 1, 4),
    step(3, 16, 2, 64),
    step(4, 12, 1, 16),
    step(6, 20, 1, 4),
    step(8, 8, 1, 64),
    step(8, 16, 1, 16),
];

/// One result of a calibration, to be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What was measured.
    pub what: String,
    /// Seconds of one run.
    pub seconds: f64,
    /// FLOP/s or bytes/s of an operation; of a whole step, seconds as the settled rates predict it.
    pub result: f64,
    /// Whether it is a whole step.
    pub is_step: bool,
}

/// Calibrates the device within about `limit_s` seconds on `clock`; `name` tells the device from others.
///
/// # Errors
/// The device failed, or a small model could not be written to the system's folder for such.
pub fn calibrate(
    device: &Device,
    name: &str,
    memory_bytes: f64,
    clock: &dyn Clock,
    limit_s: f64,
) -> Result<(Calibration, Vec<Finding>)> {
    let began_s = clock.now_s();
    let models = STEPS.iter().map(|step| step.model(device)).collect::<Result<Vec<_>>>()?;
    let mut trials = Vec::new();
    let ops = ops::all(device)?.map(|op| {
        trials.push(op.trial);
        (op.name, op.units)
    });
    for (step, model) in STEPS.iter().zip(&models) {
        let mut stage = step.stage(model)?;
        trials.push(Trial::new(move || stage.step()));
    }
    timing::in_turn(&mut trials, clock, limit_s - (clock.now_s() - began_s))?;

    let seconds: Vec<f64> = trials.iter().map(Trial::seconds).collect();
    let (of_ops, of_steps) = seconds.split_at(ops.len());
    let mut per_s = [0.0; 14];
    let mut findings = Vec::new();
    for (i, ((what, units), &seconds)) in ops.iter().zip(of_ops).enumerate() {
        per_s[i] = units / seconds;
        findings.push(Finding { what: (*what).to_owned(), seconds, result: per_s[i], is_step: false });
    }
    let rates = ops::rates(per_s);
    let mut calibration = Calibration { device: name.to_owned(), activation_bytes: 4.0, rates, memory_bytes };
    let steps: Vec<(Work, f64)> =
        STEPS.iter().map(|step| step.step_config().work()).zip(of_steps.iter().copied()).collect();
    calibration.settle(&steps);
    for (step, (work, seconds)) in STEPS.iter().zip(&steps) {
        let result = calibration.rates.step_seconds(work);
        findings.push(Finding { what: step.name(), seconds: *seconds, result, is_step: true });
    }
    Ok((calibration, findings))
}
