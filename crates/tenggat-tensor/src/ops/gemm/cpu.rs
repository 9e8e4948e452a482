//! CPU matrix product on the `gemm` crate, cut into tiles that depend on the shape alone.

use rayon::prelude::*;

use crate::cpu::{Mat, MatMut, Real};

/// A matrix with both strides, so that a transpose is free.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Operand<'a, T> {
    pub fn new(m: Mat<'a, T>, transposed: bool) -> Self {
        if transposed {
            Operand { data: m.data, rows: m.cols, cols: m.rows, row_stride: 1, col_stride: m.stride }
        } else {
            Operand { data: m.data, rows: m.rows, cols: m.cols, row_stride: m.stride, col_stride: 1 }
        }
    }

    /// Rows `from..from + n`.
    fn rows_from(self, from: usize, n: usize) -> Self {
        Operand { data: self.data.get(from * self.row_stride..).unwrap_or_default(), rows: n, ..self }
    }

    /// Columns `from..from + n`.
    fn cols_from(self, from: usize, n: usize) -> Self {
        Operand { data: self.data.get(from * self.col_stride..).unwrap_or_default(), cols: n, ..self }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// Smallest work of a parallel tile, in multiply-adds: below it, starting a task costs more than it saves.
const TILE_WORK: usize = 1 << 23;
/// Most tiles that a product is cut into: enough for 64 threads to share evenly.
const MAX_TILES: usize = 128;
/// Columns that a tile keeps while rows can still be cut.
const WIDE: usize = 192;
/// Tile edges are multiples of this, a multiple of every micro-kernel's height and width.
const TILE_STEP: usize = 48;

/// `c = alpha · a · b + beta · c`, on all threads of the current pool.
///
/// Each element of `c` is summed by one task in an order fixed by the shapes, so that the result has the same bits
/// for any number of threads.
pub(crate) fn product<T: Real>(
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    beta: T,
    mut c: MatMut<'_, T>,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let tiles = (m * n * k / TILE_WORK).min(MAX_TILES);
    if tiles < 2 {
        return product_serial(alpha, a, b, beta, &mut c);
    }
    // Cut columns first: b is usually the weight, which every strip of rows packs again.
    let (mut tm, mut tn) = (m, n);
    let pieces = |len: usize, tile: usize| len.div_ceil(tile);
    while pieces(m, tm) * pieces(n, tn) < tiles && tm.max(tn) > TILE_STEP {
        let edge = if tn > WIDE || tn >= tm { &mut tn } else { &mut tm };
        *edge = (*edge / 2).div_ceil(TILE_STEP) * TILE_STEP;
    }
    let (strips, columns) = (pieces(m, tm), pieces(n, tn));
    let out = Shared::new(&mut c);
    (0..strips * columns).into_par_iter().for_each(|tile| {
        let (i, j) = (tile / columns * tm, tile % columns * tn);
        let (rows, cols) = (tm.min(m - i), tn.min(n - j));
        // SAFETY: tiles are disjoint rectangles of `c`, which this call borrows exclusively.
        unsafe { kernel(alpha, a.rows_from(i, rows), b.cols_from(j, cols), beta, out.at(i, j), out.stride) }
    });
}

/// The same on the calling thread only, for ops that are already parallel over something larger.
pub(crate) fn product_serial<T: Real>(
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    beta: T,
    c: &mut MatMut<'_, T>,
) {
    assert!(c.rows == a.rows && c.cols == b.cols);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    assert!((c.rows - 1) * c.stride + c.cols <= c.data.len());
    // SAFETY: the assertion above covers every element that the kernel writes, and `c` is borrowed exclusively.
    unsafe { kernel(alpha, a, b, beta, c.data.as_mut_ptr(), c.stride) }
}

/// Output pointer that tasks share.
pub(crate) struct Shared<T> {
    data: *mut T,
    /// Elements between rows.
    pub stride: usize,
}

impl<T> Shared<T> {
    pub fn new(c: &mut MatMut<'_, T>) -> Self {
        Shared { data: c.data.as_mut_ptr(), stride: c.stride }
    }

    /// # Safety
    /// `(i, j)` lies inside the matrix.
    pub unsafe fn at(&self, i: usize, j: usize) -> *mut T {
        // SAFETY: by the caller.
        unsafe { self.data.add(i * self.stride + j) }
    }
}

// SAFETY: tasks write disjoint rectangles.
unsafe impl<T: Send> Sync for Shared<T> {}

/// The product itself, on the calling thread, into memory that other tasks write beside.
///
/// # Safety
/// `c` points to `a.rows` rows of `b.cols` writable elements, `stride` apart, that nothing else accesses.
pub(crate) unsafe fn kernel<T: Real>(
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    beta: T,
    c: *mut T,
    stride: usize,
) {
    assert!(a.cols == b.rows && a.fits() && b.fits(), "operands of a product do not fit");
    // SAFETY: `fits` bounds every read; the caller vouches for the writes. The crate's `alpha` scales the old `c`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c,
            1,
            stride as isize,
            beta != T::ZERO,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
