//! Which device a command works on.

use std::str::FromStr;

use tenggat_gpu::Options;
use tenggat_plan::{Machine, parse_bytes};
use tenggat_tensor::Device;

use crate::gpu_record::{apply_rates, before_first_run};
use crate::output::{self, warning};
use crate::{assets, processor};

/// What `--device` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// A GPU if there is one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
    /// A GPU's kernels on the processor, slowly, with this many bytes of memory: for tests.
    Emulated(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is not the number of a GPU"));
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            "emulated" => Ok(Choice::Emulated(usize::MAX)),
            _ => match (text.strip_prefix("cuda:"), text.strip_prefix("emulated:")) {
                (Some(which), _) => number(which).map(Choice::Cuda),
                (_, Some(memory)) => parse_bytes(memory)
                    .map(|b| Choice::Emulated(b.round() as usize))
                    .map_err(|e| e.to_string()),
                _ => Err("expected auto, cpu, cuda, or cuda:1 for the second GPU".into()),
            },
        }
    }
}

impl Choice {
    /// Whether a command may work on a GPU, as far as that can be told without opening one.
    pub fn may_be_a_gpu(self) -> bool {
        match self {
            Choice::Auto => tenggat_gpu::driver_is_there(),
            Choice::Cpu => false,
            Choice::Cuda(_) | Choice::Emulated(_) => true,
        }
    }
}

/// How GPUs are opened: as the environment says ([`Options::from_env`]), compiled kernels kept in the cache.
pub fn options(ordinal: usize) -> anyhow::Result<Options> {
    Ok(Options { cache: Some(assets::cache_folder()?.join("kernels")), ordinal, ..Options::from_env()? })
}

/// Opens the requested device. A GPU is checked before the first run on it, and used without what fails
/// there.
///
/// # Errors
/// As [`open_unchecked`].
pub fn open(choice: Choice) -> anyhow::Result<Device> {
    let device = open_unchecked(choice)?;
    let Device::Cuda(cuda) = &device else { return Ok(device) };
    let ordinal = if let Choice::Cuda(ordinal) = choice { ordinal } else { 0 };
    let Some(options) = before_first_run(cuda, &device, &options(ordinal)?) else { return Ok(device) };
    drop(device);
    Ok(Device::cuda(&options)?)
}

/// Opens the requested device.
///
/// A GPU that is there but does not open is an error where it was asked for by name; `auto` then says so and
/// takes the processor.
pub fn open_unchecked(choice: Choice) -> anyhow::Result<Device> {
    let device = match choice {
        Choice::Cpu => Device::cpu(),
        Choice::Cuda(ordinal) => Device::cuda(&options(ordinal)?)?,
        Choice::Emulated(memory_bytes) => Device::emulated_with(memory_bytes)?,
        Choice::Auto if tenggat_gpu::driver_is_there() => match Device::cuda(&options(0)?) {
            Ok(device) => device,
            Err(e) => {
                output::complaint("warning", &format!("the GPU is not used: {e}"));
                Device::cpu()
            }
        },
        Choice::Auto => Device::cpu(),
    };
    if let Device::Cuda(gpu) = &device {
        gpu.notes().iter().for_each(|note| warning!("{note}"));
    }
    Ok(device)
}

/// The device as planning sees it: the processor with assumed rates, or the GPU with what memory is free, and
/// with the rates that `tenggat doctor --gpu` measured, if it did.
pub fn machine(device: &Device) -> anyhow::Result<Machine> {
    Ok(match (device.description(), device.memory()?) {
        // An emulated one has the host's memory.
        (Some(_), Some((usize::MAX, _))) | (None, _) | (_, None) => processor::uncalibrated(),
        (Some(name), Some((free, _))) => {
            let mut machine = Machine::gpu(&name, free as f64);
            if let Device::Cuda(cuda) = device {
                apply_rates(cuda, &mut machine);
            }
            machine
        }
    })
}
