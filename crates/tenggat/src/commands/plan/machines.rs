//! Which machines a job is planned for.

use anyhow::bail;
use tenggat_plan::{GPUS, Gpu, Machine, Program};

use crate::processor;

/// Name of this machine's processor on the command line.
pub const CPU: &str = "cpu";
/// Name of everything there is.
const ALL: &str = "all";

/// The machines of `--gpu`. Without it: this machine's processor if it is calibrated and `fits` says that it
/// holds the job, else all GPUs.
pub fn chosen(
    gpu: Option<&str>,
    program: Program,
    fits: impl Fn(&Machine) -> bool,
) -> anyhow::Result<Vec<Machine>> {
    let here = program == Program::Tenggat;
    let gpus = || GPUS.iter().map(Machine::from);
    Ok(match gpu {
        Some(text) if Gpu::is_description(text) => vec![Machine::from(&Gpu::described(text)?)],
        Some(name) => match name.to_lowercase().as_str() {
            CPU if !here => bail!("{program} does not train on processors; name a GPU, or `all`"),
            CPU => vec![processor::calibrated().unwrap_or_else(processor::uncalibrated)],
            ALL => gpus().chain(processor::calibrated().filter(|_| here)).collect(),
            names => {
                let machine = |name: &str| Gpu::find(name.trim()).map(Machine::from);
                names.split(',').map(machine).collect::<Result<_, _>>()?
            }
        },
        None => match processor::calibrated().filter(|machine| here && fits(machine)) {
            Some(machine) => vec![machine],
            None => gpus().collect(),
        },
    })
}
