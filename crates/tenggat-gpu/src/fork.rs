//! Captured work in two streams: neither waits for the other.
//!
//! A small piece of work beside a large one then costs nothing where the large one leaves units idle. Only
//! captured work is split: launched kernel by kernel, the processor would be no faster with two streams than
//! with one.

use crate::backend::Backend;
use crate::streams::{MAIN, SIDE};
use crate::{Cuda, Result};

/// The time during which there are two streams. First the side stream is asked; then, after
/// [`switch`](Self::switch), the main one. Neither may read what the other writes, write what the other
/// reads, or free what the other uses. Dropping it asks the main stream alone again, without waiting for the
/// other.
#[derive(Debug)]
pub struct Fork<'a>(&'a Cuda);

impl Cuda {
    /// Splits the work that is being captured over two streams. `None` if nothing is being captured, or
    /// within another fork: then everything stays in one stream.
    ///
    /// # Errors
    /// The device failed.
    pub fn fork(&self) -> Result<Option<Fork<'_>>> {
        if !self.is_capturing() || self.stream() != MAIN || self.without().streams {
            return Ok(None);
        }
        match self.backend() {
            Backend::Gpu(gpu) => gpu.fork()?,
            Backend::Emulated(emulated) => emulated.fork(),
        }
        let fork = Fork(self);
        fork.enter(SIDE);
        Ok(Some(fork))
    }
}

impl Fork<'_> {
    /// From here on the main stream is asked.
    pub fn switch(&self) {
        self.enter(MAIN);
    }

    /// Later work waits for both streams.
    ///
    /// # Errors
    /// The device failed.
    pub fn join(self) -> Result<()> {
        match self.0.backend() {
            Backend::Gpu(gpu) => gpu.join(),
            Backend::Emulated(emulated) => {
                emulated.join();
                Ok(())
            }
        }
    }

    fn enter(&self, stream: usize) {
        self.0.set_stream(stream);
        self.0.pool().set_stream(Some(stream));
    }
}

impl Drop for Fork<'_> {
    fn drop(&mut self) {
        self.0.set_stream(MAIN);
        self.0.pool().set_stream(None);
    }
}
