//! Matrix products on packed operands: the fast path of 32-bit floats, and of bfloat16 with 32-bit sums.
//!
//! A packed matrix `[rows, cols]` is cut into strips of [`WIDTH`] columns; a strip is its rows one after the
//! other, the last strip padded with zeros. One layout serves both sides of a product `C = A·B`: of B a strip
//! holds, step by step of the sum, what goes along the vector lanes; of A it holds, row by row, what is
//! broadcast to them. So the packed weight of a layer serves its forward pass as B and its backward pass,
//! `dXᵀ = Wᵀ·dYᵀ`, as A.
//!
//! Tiles of C are [`Lane::height`] × [`WIDTH`], kept in registers over the sum: the blocking of Goto and van
//! de Geijn, "Anatomy of high-performance matrix multiplication", 2008, without its packing loops.

#[cfg(target_arch = "x86_64")]
mod amx;
mod cut;
mod kernel;
mod lane;
mod pack;
mod parts;
mod product;
mod scratch;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use lane::{Lane, splits};
pub(crate) use pack::{pack, pack_transposed, packed_len};
use pack::{pack_part, pack_part_transposed};
pub(crate) use parts::Parts;
pub(crate) use product::{Extra, Job, Target, Term, run_all};
pub(crate) use scratch::Scratch;

/// Columns of a strip: two vectors of 16 lanes.
pub(crate) const WIDTH: usize = 32;

/// A packed matrix, or some of its rows.
#[derive(Debug)]
pub(crate) struct Strips<'a, E> {
    data: &'a [E],
    /// Rows of a whole strip.
    height: usize,
    rows: usize,
    cols: usize,
}

impl<E> Clone for Strips<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Strips<'_, E> {}

impl<'a, E> Strips<'a, E> {
    /// A matrix `[rows, cols]` that lies packed in `data`.
    pub fn new(data: &'a [E], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= packed_len(rows, cols));
        Strips { data, height: rows, rows, cols }
    }

    /// Rows `from..from + n`.
    pub fn rows_from(self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.rows);
        Strips { data: &self.data[from * WIDTH..], rows: n, ..self }
    }

    /// Where a row of a strip begins.
    fn at(&self, strip: usize, row: usize) -> *const E {
        debug_assert!(row < self.rows && strip * WIDTH < self.cols);
        self.data[(strip * self.height + row) * WIDTH..].as_ptr()
    }
}
