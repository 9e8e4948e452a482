//! Which machines a job is planned for.

use anyhow::bail;
use tenggat_plan::{GPUS, Gpu, Machine, Trainer};

use crate::processor;

/// Name of this machine's processor on the command line.
const CPU: &str = "cpu";
/// Name of everything there is.
const ALL: &str = "all";

/// The machines of `--gpu`. Without it: this machine's processor if it is calibrated and `fits` says that it holds the
/// job, else all GPUs.
pub fn chosen(
    gpu: Option<&str>,
    trainer: Trainer,
    fits: impl Fn(&Machine) -> bool,
) -> anyhow::Result<Vec<Machine>> {
    let here = trainer == Trainer::Tenggat;
    let gpus = || GPUS.iter().map(Machine::from);
    Ok(match gpu.map(str::to_lowercase).as_deref() {
        Some(CPU) if !here => bail!("{trainer} does not train on processors; name a GPU, or `all`"),
        Some(CPU) => vec![processor::calibrated().unwrap_or_else(processor::uncalibrated)],
        Some(ALL) => gpus().chain(processor::calibrated().filter(|_| here)).collect(),
        Some(name) => vec![Machine::from(Gpu::find(name)?)],
        None => match processor::calibrated().filter(|machine| here && fits(machine)) {
            Some(machine) => vec![machine],
            None => gpus().collect(),
        },
    })
}
