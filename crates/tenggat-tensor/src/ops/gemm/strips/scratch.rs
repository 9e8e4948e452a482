//! Memory for packed operands.

use super::{Lane, WIDTH};

/// Scratch that is handed out piece by piece, each at the start of a cache line.
#[derive(Debug)]
pub(crate) struct Scratch<'a>(&'a mut [f32]);

impl<'a> Scratch<'a> {
    /// Hands out this memory, which is aligned to a cache line.
    pub fn new(memory: &'a mut [f32]) -> Self {
        Scratch(memory)
    }

    /// The same memory, to be handed out for a while.
    pub fn reborrow(&mut self) -> Scratch<'_> {
        Scratch(&mut *self.0)
    }

    /// The next `len` elements of f32, split off to be handed out separately: by another thread, or later.
    pub fn split(&mut self, cost: usize) -> Scratch<'a> {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(cost);
        self.0 = rest;
        Scratch(piece)
    }

    /// Elements of f32 that hold `len` elements of E.
    pub fn cost<E>(len: usize) -> usize {
        (len * size_of::<E>()).div_ceil(size_of::<f32>()).next_multiple_of(WIDTH)
    }

    /// The next `len` elements, contents unspecified.
    pub fn take<E: Lane>(&mut self, len: usize) -> &'a mut [E] {
        let Scratch(piece) = self.split(Self::cost::<E>(len));
        // SAFETY: the piece holds `len` elements of E, whose alignment is no stricter, and any bits are
        // numbers.
        unsafe { std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), len) }
    }
}
