//! The memory pool when the device is full.

use std::sync::Arc;

use tenggat_gpu::{Buffer, Cuda, Error, Result};

/// Bytes of a piece that the device is filled with, and most pieces.
const PIECE: usize = 256 << 20;
const MOST: usize = 4096;
/// Bytes at the end of each piece that are written and read again.
const MARK: usize = 512;

/// What filling the device came to.
pub(super) enum Filled {
    /// So many bytes were held, and given back.
    Whole(usize),
    /// What was wrong.
    Wrong(String),
    /// It has the host's memory, which is not to be filled.
    Unlimited,
}

/// Fills the device until it refuses, and checks that what it holds is whole and that memory comes back.
///
/// # Errors
/// The device failed.
pub(super) fn under_pressure(cuda: &Arc<Cuda>) -> Result<Filled> {
    cuda.trim();
    let (free, total) = cuda.memory()?;
    if total == usize::MAX {
        return Ok(Filled::Unlimited);
    }
    let piece = PIECE.min(total / 16).next_multiple_of(MARK);
    let mark = |address: u64| address + (piece - MARK) as u64;
    let mut held: Vec<Buffer> = Vec::new();
    loop {
        match Buffer::new(cuda, piece) {
            Ok(next) => {
                cuda.upload(&[held.len() as u8; MARK], mark(next.address()))?;
                held.push(next);
            }
            Err(Error::OutOfMemory { .. }) => break,
            Err(e) => return Ok(Filled::Wrong(format!("running out of memory is reported as: {e}"))),
        }
        if held.len() == MOST {
            return Ok(Filled::Wrong(format!("{MOST} pieces of {piece} bytes fit into {free} free bytes")));
        }
    }
    for (i, buffer) in held.iter().enumerate() {
        let mut found = [0u8; MARK];
        cuda.download(mark(buffer.address()), &mut found)?;
        if found != [i as u8; MARK] {
            return Ok(Filled::Wrong(format!("piece {i} of {} does not hold what was written", held.len())));
        }
    }
    let taken = held.len() * piece;
    drop(held);
    cuda.trim();
    let (after, _) = cuda.memory()?;
    if after + piece < free {
        return Ok(Filled::Wrong(format!("{free} bytes were free before, {after} afterwards")));
    }
    Ok(Filled::Whole(taken))
}
