//! CPU matrix product: packed (`strips`) where this machine has its kernels, else on the `gemm` crate, cut
//! into tiles that depend on the shape alone.

use rayon::prelude::*;

use super::strips::{Job, Lane, Strips, Target, Term, pack, pack_transposed, packed_len};
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

impl<T: Real> Operand<'_, T> {
    /// The matrix as it is stored, and whether the operand is its transpose; `None` if it is not of 32-bit
    /// floats.
    fn stored(&self) -> Option<(Mat<'_, f32>, bool)> {
        let transposed = self.col_stride != 1;
        let (rows, cols, stride) = if transposed {
            (self.cols, self.rows, self.col_stride)
        } else {
            (self.rows, self.cols, self.row_stride)
        };
        Some((Mat { data: self.data, rows, cols, stride }.as_f32()?, transposed))
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
/// Each element of `c` is summed by one task in an order fixed by the shapes, so that the result has the same
/// bits for any number of threads.
pub(crate) fn product<T: Real>(
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    beta: T,
    mut c: MatMut<'_, T>,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(c.rows == m && c.cols == n && b.rows == k && a.fits() && b.fits());
    assert!(m == 0 || n == 0 || (m - 1) * c.stride + n <= c.data.len());
    // SAFETY: checked above; `c` is borrowed exclusively.
    if unsafe { packed(alpha, a, b, beta, c.data.as_mut_ptr(), c.stride, true) } {
        return;
    }
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
    // SAFETY: the assertion above covers every element that the kernel writes, and `c` is borrowed
    // exclusively.
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
    // SAFETY: by the caller.
    if unsafe { packed(alpha, a, b, beta, c, stride, false) } {
        return;
    }
    // SAFETY: `fits` bounds every read; the caller vouches for the writes. The crate's `alpha` scales the old
    // `c`.
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

/// The product of packed operands, if the type and the machine have one; packs both.
///
/// # Safety
/// As [`kernel`]; the operands fit.
unsafe fn packed<T: Real>(
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    beta: T,
    c: *mut T,
    stride: usize,
    parallel: bool,
) -> bool {
    let (Some((a_stored, a_transposed)), Some((b_stored, b_transposed))) = (a.stored(), b.stored()) else {
        return false;
    };
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if !f32::available() || k == 0 {
        return false;
    }
    let (alpha, beta, c) = (alpha.to_f64() as f32, beta.to_f64() as f32, c.cast::<f32>());
    if beta != 0.0 && beta != 1.0 {
        for i in 0..m {
            for j in 0..n {
                // SAFETY: inside C, by the caller.
                unsafe { *c.add(i * stride + j) *= beta }
            }
        }
    }
    // C = A·B broadcasts A and runs along B; Cᵀ = Bᵀ·Aᵀ the other way round. Either way, of an operand that
    // is transposed or to be transposed the columns are packed, which takes longer: let that be the
    // smaller.
    let straight = k * (m * usize::from(a_transposed) + n * usize::from(b_transposed));
    let turned = k * (m * usize::from(!a_transposed) + n * usize::from(!b_transposed)) + m * n;
    let turn = turned < straight && m >= HALF_STRIP;
    let (broadcast, lanes) = if turn {
        ((b_stored, !b_transposed, n), (a_stored, !a_transposed, m))
    } else {
        ((a_stored, a_transposed, m), (b_stored, b_transposed, n))
    };
    let (len_a, len_b) = (packed_len(broadcast.2, k), packed_len(k, lanes.2));
    f32::with_scratch(len_a + len_b, |scratch| {
        let (pa, pb) = scratch.split_at_mut(len_a);
        for ((stored, transposed, _), alpha, to) in [(broadcast, alpha, &mut *pa), (lanes, 1.0, &mut *pb)] {
            let pack = if transposed { pack_transposed } else { pack };
            pack(stored, alpha, to, parallel);
        }
        let base = &[Term { a: Strips::new(pa, broadcast.2, k), b: Strips::new(pb, k, lanes.2) }];
        let target = if turn { Target::Columns(stride) } else { Target::Rows(stride) };
        let job = Job { base, extras: &[], start: None, target, add: beta != 0.0 };
        // SAFETY: by the caller, C is m rows of n elements.
        unsafe { if parallel { job.run(c) } else { job.run_serial(c) } }
    });
    true
}

/// Fewer rows than this would leave half of a strip's lanes idle.
const HALF_STRIP: usize = 16;
