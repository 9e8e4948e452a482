//! What a device is made of: a card, or the processor in its place.

use crate::Result;
use crate::emulated::Emulated;
use crate::gpu::Gpu;

#[derive(Debug)]
pub(crate) enum Backend {
    Gpu(Box<Gpu>),
    Emulated(Emulated),
}

impl Backend {
    /// Whether each allocation is as long as was asked for, and ends at a page that nobody may touch.
    pub fn is_guarded(&self) -> bool {
        matches!(self, Backend::Emulated(emulated) if emulated.memory().is_guarded())
    }

    /// Address of so many bytes of device memory, aligned to 512, or guarded to 16.
    ///
    /// # Errors
    /// There is no room, or the device failed.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        match self {
            Backend::Gpu(gpu) => gpu.allocate(bytes),
            Backend::Emulated(emulated) => emulated.memory().allocate(bytes),
        }
    }

    /// Frees what [`allocate`](Self::allocate) gave for so many bytes.
    pub fn release(&self, address: u64, bytes: usize) {
        match self {
            Backend::Gpu(gpu) => gpu.release(address),
            Backend::Emulated(emulated) => emulated.memory().release(address, bytes),
        }
    }

    /// Free and total memory, bytes.
    ///
    /// # Errors
    /// The device failed.
    pub fn memory(&self) -> Result<(usize, usize)> {
        match self {
            Backend::Gpu(gpu) => gpu.memory(),
            Backend::Emulated(emulated) => Ok(emulated.memory().free_and_total()),
        }
    }
}
