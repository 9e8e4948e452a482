//! Where tensors live.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tenggat_gpu::{Cuda, Options};

use crate::cpu::Pool;
use crate::{DType, Error, Result, ops};

/// A place that holds tensors and runs ops. Cheap to clone: clones share one buffer pool.
#[derive(Debug, Clone)]
pub enum Device {
    /// Host memory; ops run on the global rayon pool.
    Cpu(Arc<Pool>),
    /// A GPU; ops are queued.
    Cuda(Arc<Cuda>),
}

impl Device {
    /// A CPU device with an empty buffer pool.
    pub fn cpu() -> Self {
        Device::Cpu(Arc::new(Pool::new(false)))
    }

    /// A CPU device that fills every buffer it hands out with NaN, so that an op that reads what nobody wrote
    /// shows itself. For tests.
    pub fn cpu_poisoned() -> Self {
        Device::Cpu(Arc::new(Pool::new(true)))
    }

    /// The GPU that the options name.
    ///
    /// # Errors
    /// No driver, no GPU, or a library is missing: the text says which, and what installs it.
    pub fn cuda(options: &Options) -> Result<Self> {
        Ok(Device::Cuda(Cuda::open(options, ops::KERNELS)?))
    }

    /// A GPU whose kernels run on the processor, slowly. For tests.
    ///
    /// # Errors
    /// There is no C++ compiler.
    pub fn emulated() -> Result<Self> {
        Self::emulated_with(usize::MAX)
    }

    /// The same with this many bytes of memory.
    ///
    /// # Errors
    /// There is no C++ compiler.
    pub fn emulated_with(memory_bytes: usize) -> Result<Self> {
        Ok(Device::Cuda(Cuda::emulated(memory_bytes)?))
    }

    /// Type of activations and of frozen weights that are not quantised: what the device multiplies fastest
    /// without harm to training.
    pub fn activations(&self) -> DType {
        match self {
            Device::Cpu(_) => DType::F32,
            Device::Cuda(_) => DType::BF16,
        }
    }

    /// What numbers of rows that differ from batch to batch are filled up to multiples of.
    pub fn row_multiple(&self) -> usize {
        match self {
            Device::Cpu(_) => 1,
            Device::Cuda(cuda) => cuda.row_multiple(),
        }
    }

    /// What it is, for people; `None` for the CPU, which the system names.
    pub fn description(&self) -> Option<String> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda.description()),
        }
    }

    /// Free and total memory of its own, bytes; `None` for the CPU, whose memory is the machine's.
    ///
    /// # Errors
    /// The device failed.
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        match self {
            Device::Cpu(_) => Ok(None),
            Device::Cuda(cuda) => Ok(Some(cuda.memory()?)),
        }
    }

    /// Whether it multiplies 8-bit floats faster than wider ones ([`Fp8`](crate::weight::Fp8)).
    pub fn fp8_products(&self) -> bool {
        match self {
            Device::Cpu(_) => false,
            Device::Cuda(cuda) => cuda.fp8_products(),
        }
    }

    /// Does `aside`, then `main`. Captured for a GPU ([`Cuda::capture`]), they may be done at the same time,
    /// before whatever comes next: neither reads what the other writes, writes what the other reads, or
    /// lets go of what the other uses. `shared` is for what both change on the host, and for tensors of
    /// which each writes a part of its own.
    ///
    /// # Errors
    /// Those of both; the device failed.
    pub fn both<C, A, B, E: From<Error>>(
        &self,
        shared: &mut C,
        aside: impl FnOnce(&mut C) -> Result<A, E>,
        main: impl FnOnce(&mut C) -> Result<B, E>,
    ) -> Result<(A, B), E> {
        match self {
            Device::Cpu(_) => Ok((aside(shared)?, main(shared)?)),
            Device::Cuda(cuda) => {
                let Some(fork) = cuda.fork().map_err(Error::from)? else {
                    return Ok((aside(shared)?, main(shared)?));
                };
                let a = aside(shared)?;
                fork.switch();
                let b = main(shared)?;
                fork.join().map_err(Error::from)?;
                Ok((a, b))
            }
        }
    }

    /// Waits until all that was asked of it is done.
    ///
    /// # Errors
    /// Something that was queued failed.
    pub fn synchronise(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => Ok(cuda.synchronise()?),
        }
    }

    /// Short name for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu(_) => "cpu",
            Device::Cuda(_) => "cuda",
        }
    }

    /// Bytes held by live tensors.
    pub fn live_bytes(&self) -> usize {
        match self {
            Device::Cpu(pool) => pool.live_bytes(),
            Device::Cuda(cuda) => cuda.live_bytes(),
        }
    }

    /// Largest number of bytes ever held at once, live tensors and recycled buffers together.
    pub fn peak_bytes(&self) -> usize {
        match self {
            Device::Cpu(pool) => pool.peak_bytes(),
            Device::Cuda(cuda) => cuda.peak_bytes(),
        }
    }

    /// Gives recycled buffers back to the system, as after a phase whose shapes will not come again.
    pub fn trim(&self) {
        match self {
            Device::Cpu(pool) => pool.trim(),
            Device::Cuda(cuda) => cuda.trim(),
        }
    }
}
