//! What a kernel of packed products takes.

/// Part of a sum: `a` broadcast row by row, `b` along the lanes, `k` steps.
#[derive(Debug, Clone, Copy)]
pub struct Segment<E> {
    /// First row of A in the first strip.
    pub a: *const E,
    /// Elements between the strips of A.
    pub a_step: usize,
    /// First step of the strip of B.
    pub b: *const E,
    pub k: usize,
}

/// A tile's sums: rows `[h, WIDTH]` at `c`, `stride` apart, added to what is there if `add`; `start` (a row
/// of WIDTH, or null) is what the sums start from. `again`: every segment's `b` and `k` are those of this
/// thread's last tile, and so is what lies there.
pub type Tile<E> =
    unsafe fn(segments: &[Segment<E>], start: *const f32, c: *mut f32, stride: usize, add: bool, again: bool);
