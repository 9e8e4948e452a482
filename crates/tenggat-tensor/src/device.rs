//! Where tensors live.

use std::sync::Arc;

use crate::cpu::Pool;

/// A place that holds tensors and runs ops. Cheap to clone: clones share one buffer pool.
#[derive(Debug, Clone)]
pub enum Device {
    /// Host memory; ops run on the global rayon pool.
    Cpu(Arc<Pool>),
}

impl Device {
    /// A CPU device with an empty buffer pool.
    pub fn cpu() -> Self {
        Device::Cpu(Arc::new(Pool::new(false)))
    }

    /// A CPU device that fills every buffer it hands out with NaN, so that an op that reads what nobody wrote shows
    /// itself. For tests.
    pub fn cpu_poisoned() -> Self {
        Device::Cpu(Arc::new(Pool::new(true)))
    }

    /// Short name for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu(_) => "cpu",
        }
    }

    /// Bytes held by live tensors.
    pub fn live_bytes(&self) -> usize {
        match self {
            Device::Cpu(pool) => pool.live_bytes(),
        }
    }

    /// Largest number of bytes ever held at once, live tensors and recycled buffers together.
    pub fn peak_bytes(&self) -> usize {
        match self {
            Device::Cpu(pool) => pool.peak_bytes(),
        }
    }

    /// Gives recycled buffers back to the system, as after a phase whose shapes will not come again.
    pub fn trim(&self) {
        match self {
            Device::Cpu(pool) => pool.trim(),
        }
    }
}
