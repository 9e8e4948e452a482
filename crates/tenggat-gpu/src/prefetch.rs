//! Copies to a device that are made while it works on something else.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::copier::{Source, Transfer};
use crate::{Buffer, Cuda, Result};

/// A buffer whose contents are on their way.
#[derive(Debug)]
pub struct Prefetch {
    // Dropped first: memory goes back to the pool once the copy can no longer write to it.
    delivery: Delivery,
    buffer: Buffer,
}

#[derive(Debug)]
struct Delivery {
    cuda: Arc<Cuda>,
    state: State,
}

#[derive(Debug)]
enum State {
    Gpu(Arc<Transfer>),
    /// What is done when it is waited for, unless it was done at once.
    Emulated(Mutex<Option<Deferred>>),
}

struct Deferred(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deferred")
    }
}

impl Prefetch {
    /// Starts to copy the `bytes` bytes of `from` to a device.
    ///
    /// # Errors
    /// Work is being captured, there is no room, or the device failed.
    pub fn new(cuda: &Arc<Cuda>, bytes: usize, from: Source) -> Result<Self> {
        cuda.refuse_while_capturing("a copy to the GPU")?;
        let buffer = Buffer::new(cuda, bytes)?;
        let address = buffer.address();
        let state = match cuda.backend() {
            Backend::Gpu(gpu) => State::Gpu(gpu.send(from, address)?),
            Backend::Emulated(emulated) => {
                let copy = move || emulated_copy(&from, address);
                State::Emulated(Mutex::new(emulated.defer(copy).map(Deferred)))
            }
        };
        Ok(Prefetch { delivery: Delivery { cuda: Arc::clone(cuda), state }, buffer })
    }

    /// The buffer, for work that is queued from now on.
    ///
    /// # Errors
    /// The copy failed.
    pub fn arrived(&self) -> Result<&Buffer> {
        self.delivery.receive()?;
        Ok(&self.buffer)
    }

    /// The buffer, whether or not its contents have arrived.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

fn emulated_copy(from: &Source, address: u64) {
    let bytes: &[u8] = (**from).as_ref();
    // SAFETY: the buffer that owns this address lives until the copy was made, and is as long as `from`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

impl Delivery {
    /// Makes what is queued from now on wait for the copy. The calling thread waits only until the copying
    /// thread has taken the bytes.
    fn receive(&self) -> Result<()> {
        match (&self.state, self.cuda.backend()) {
            (State::Gpu(transfer), Backend::Gpu(gpu)) => gpu.receive(transfer),
            (State::Emulated(deferred), _) => {
                let deferred = deferred.lock().unwrap_or_else(PoisonError::into_inner).take();
                deferred.into_iter().for_each(|Deferred(copy)| copy());
                Ok(())
            }
            (State::Gpu(_), Backend::Emulated(_)) => Ok(()),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // The memory is recycled next: whoever gets it must not be overtaken. A failure has been told, or
        // nobody asks.
        let _ = self.receive();
    }
}
