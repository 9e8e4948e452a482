//! One allocation of device memory.

use std::sync::Arc;

use crate::{Cuda, Result};

/// Device memory on loan from the pool of its device; returns on drop. Work that is queued may still use it:
/// whoever gets it next queues its own behind.
#[derive(Debug)]
pub struct Buffer {
    cuda: Arc<Cuda>,
    address: u64,
    class: usize,
}

impl Buffer {
    /// At least `bytes` bytes, contents unspecified.
    ///
    /// # Errors
    /// Out of device memory, or the device failed.
    pub fn new(cuda: &Arc<Cuda>, bytes: usize) -> Result<Self> {
        let (address, class) = cuda.take(bytes)?;
        Ok(Buffer { cuda: Arc::clone(cuda), address, class })
    }

    /// The device that holds it.
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.cuda.give_back(self.address, self.class);
    }
}
