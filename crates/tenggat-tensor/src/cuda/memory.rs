//! Device memory, recycled so that a warm training step allocates nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Cuda;
use crate::{Error, Result};

#[derive(Debug, Default)]
struct State {
    free: HashMap<usize, Vec<u64>>,
    live_bytes: usize,
    free_bytes: usize,
    peak_bytes: usize,
}

/// Free lists by size class.
#[derive(Debug, Default)]
pub(super) struct Pool {
    state: Mutex<State>,
}

impl Pool {
    /// Rounds up to one of eight sizes per power of two: at most an eighth is wasted, and captions of nearby length share
    /// buffers. Multiples of 512 bytes, so that the processor's matrix units find their operands aligned.
    fn size_class(bytes: usize) -> usize {
        let step = (bytes.next_power_of_two() / 16).max(512);
        bytes.max(1).div_ceil(step) * step
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the free lists half written: every update below is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, cuda: &Cuda, bytes: usize) -> Result<(u64, usize)> {
        let class = Self::size_class(bytes);
        let recycled = self.state().free.get_mut(&class).and_then(Vec::pop);
        let address = match recycled {
            Some(address) => address,
            None => match cuda.allocate(class) {
                Ok(address) => address,
                Err(_) => {
                    // Recycled buffers of other sizes may be what is in the way.
                    self.trim(cuda);
                    cuda.allocate(class).map_err(|_| {
                        let (free, total) = cuda.memory().unwrap_or_default();
                        Error::OutOfMemory { bytes: class, free, total }
                    })?
                }
            },
        };
        let mut state = self.state();
        if recycled.is_some() {
            state.free_bytes -= class;
        }
        state.live_bytes += class;
        state.peak_bytes = state.peak_bytes.max(state.live_bytes + state.free_bytes);
        Ok((address, class))
    }

    fn give_back(&self, address: u64, class: usize) {
        let mut state = self.state();
        state.live_bytes -= class;
        state.free_bytes += class;
        state.free.entry(class).or_default().push(address);
    }

    pub fn live_bytes(&self) -> usize {
        self.state().live_bytes
    }

    pub fn peak_bytes(&self) -> usize {
        self.state().peak_bytes
    }

    /// Gives recycled buffers back to the device.
    pub fn trim(&self, cuda: &Cuda) {
        let free = {
            let mut state = self.state();
            state.free_bytes = 0;
            std::mem::take(&mut state.free)
        };
        for (class, addresses) in free {
            addresses.into_iter().for_each(|address| cuda.release(address, class));
        }
    }
}

/// Device memory on loan from the pool of its device; returns on drop. Work that is queued may still use it: whoever
/// gets it next queues its own behind.
#[derive(Debug)]
pub(crate) struct Storage {
    cuda: Arc<Cuda>,
    address: u64,
    class: usize,
}

impl Storage {
    /// At least `bytes` bytes, contents unspecified.
    pub fn new(cuda: &Arc<Cuda>, bytes: usize) -> Result<Self> {
        let (address, class) = cuda.pool.take(cuda, bytes)?;
        cuda.poison(address, class)?;
        Ok(Storage { cuda: Arc::clone(cuda), address, class })
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.cuda.pool.give_back(self.address, self.class);
    }
}
