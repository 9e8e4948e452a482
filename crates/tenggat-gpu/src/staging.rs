//! Copies to a GPU by way of page-locked host memory.
//!
//! Ordinary memory the driver copies itself, once the stream has come that far, and the caller waits for it.
//! From page-locked memory the GPU fetches when its turn comes, and nobody waits unless the whole ring is
//! under way. Unmeasured on a card.

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use rayon::prelude::*;
use std::ffi::c_void;
use std::sync::Arc;

use crate::Result;
use crate::error::failed;

/// Bytes of a piece, and pieces of a ring: as much as the batches of a few steps take.
const PIECE: usize = 4 << 20;
const PIECES: usize = 8;
/// Bytes that a thread copies at a time; one thread is slower than the bus.
const PART: usize = 512 << 10;
/// The driver keeps a copy of so much of ordinary memory and returns at once (CUDA C++ programming guide,
/// "Concurrent Execution between Host and Device").
pub(crate) const SMALL: usize = 64 << 10;

/// A piece of page-locked memory.
#[derive(Debug)]
struct Piece {
    memory: *mut c_void,
    /// When the last copy from it is done.
    free: CudaEvent,
}

/// Page-locked memory that copies go through, in turns. The context has to be the calling thread's own.
#[derive(Debug)]
pub(crate) struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

// SAFETY: memory and events may be used from any thread.
unsafe impl Send for Staging {}

impl Staging {
    pub fn new(context: &Arc<CudaContext>) -> std::result::Result<Self, DriverError> {
        let mut staging = Staging { pieces: Vec::with_capacity(PIECES), next: 0 };
        for _ in 0..PIECES {
            let free = context.new_event(None)?;
            // SAFETY: freed once, when the piece is dropped.
            let memory = unsafe { result::malloc_host(PIECE, 0) }?;
            staging.pieces.push(Piece { memory, free });
        }
        Ok(staging)
    }

    /// Queues a copy into memory of the device that the caller owns. `from` may be changed as soon as this
    /// returns.
    pub fn copy(&mut self, from: &[u8], address: u64, stream: &CudaStream) -> Result<()> {
        let error = |e| failed("copy to the GPU", e);
        for (i, part) in from.chunks(PIECE).enumerate() {
            let piece = &self.pieces[self.next];
            self.next = (self.next + 1) % self.pieces.len();
            piece.free.synchronize().map_err(error)?;
            // SAFETY: the piece is at least as long, and the last copy from it is done.
            let memory = unsafe { std::slice::from_raw_parts_mut(piece.memory.cast::<u8>(), part.len()) };
            memory
                .par_chunks_mut(PART)
                .zip(part.par_chunks(PART))
                .for_each(|(to, from)| to.copy_from_slice(from));
            let to = address + (i * PIECE) as u64;
            // SAFETY: the caller owns this range of an allocation, and the piece is not touched before its
            // event.
            unsafe { result::memcpy_htod_async(to, memory, stream.cu_stream()) }.map_err(error)?;
            piece.free.record(stream).map_err(error)?;
        }
        Ok(())
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // Nothing can be done about a device that failed, or memory that does not go.
        let _ = self.free.synchronize();
        // SAFETY: the driver gave it, and the last copy from it is done.
        let _ = unsafe { result::free_host(self.memory) };
    }
}
