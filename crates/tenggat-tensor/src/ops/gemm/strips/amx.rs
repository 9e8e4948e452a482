//! The kernel of packed bf16 products on the tile unit.
//!
//! Strips keep their order, which serves both passes. A's rows are tiles as they lie; pairs of B's rows are
//! interleaved into tiles once per strip of a task and then serve all its panels.

use std::arch::x86_64::*;
use std::cell::RefCell;

use half::bf16;

use super::kernel::{Segment, Tile as Kernel};
use super::x86::{LANES, pairs};
use super::{WIDTH, x86};
use crate::cpu::amx::{self, COLUMNS, ROWS, STEPS, Step, Sums, Tile};
use crate::cpu::{Level, tiles_are_emulated};

const _: () = assert!(WIDTH == COLUMNS && WIDTH == STEPS);

/// Rows of a tile of C, at most: two tiles of the unit over each other.
pub const HEIGHT: usize = 2 * ROWS;
/// Steps of a sum between two visits to C: the strip of B stays in the first-level cache.
pub const BLOCK: usize = 512;

pub fn has_tiles() -> bool {
    Level::current() >= Level::Amx
}

macro_rules! table {
    ($half:literal: $($rows:literal)*) => { [$(sums::<$rows, $half>),*] };
}

pub fn tile(rows: usize, half: bool) -> Kernel<bf16> {
    static KERNELS: [[Kernel<bf16>; HEIGHT]; 2] = [
        table!(false: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32),
        table!(true: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32),
    ];
    KERNELS[usize::from(half)][rows - 1]
}

/// Tiles of a product.
struct Operands {
    /// B, two tiles per step.
    b: Vec<Tile>,
    /// A, where a panel has fewer rows than a tile.
    a: Vec<Tile>,
    steps: Vec<Step>,
}

thread_local! {
    static OPERANDS: RefCell<Operands> = const { RefCell::new(Operands { b: Vec::new(), a: Vec::new(), steps: Vec::new() }) };
}

/// # Safety
/// The processor has AMX; the segments' operands are packed and have H rows and `k` steps; `c` has H rows of
/// two vectors, or of one if `HALF`. With `again`, B's are those of this thread's last call.
unsafe fn sums<const H: usize, const HALF: bool>(
    segments: &[Segment<bf16>],
    start: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
    again: bool,
) {
    let columns = if HALF { LANES } else { WIDTH };
    OPERANDS.with_borrow_mut(|operands| {
        // SAFETY: by the caller; the second tile's first rows are the first one's last, and hold the same.
        unsafe {
            operands.fill(segments, H, again);
            if H <= ROWS {
                let mut out = [Sums([[0.0; COLUMNS]; ROWS])];
                operands.product(&mut out);
                put(&mut out[0].0[..H], columns, start, c, stride, add);
            } else {
                let mut out = [Sums([[0.0; COLUMNS]; ROWS]); 2];
                operands.product(&mut out);
                let [first, second] = &mut out;
                put(&mut first.0, columns, start, c, stride, add);
                put(&mut second.0[HEIGHT - H..], columns, start, c.add(ROWS * stride), stride, add);
            }
        }
    });
}

impl Operands {
    /// Makes the steps of panels of `rows` rows.
    ///
    /// # Safety
    /// As [`sums`].
    unsafe fn fill(&mut self, segments: &[Segment<bf16>], rows: usize, again: bool) {
        let Operands { a, b, steps } = self;
        let count: usize = segments.iter().map(|s| s.k.div_ceil(STEPS)).sum();
        grow(b, 2 * count);
        grow(a, if rows < ROWS { count } else { 0 });
        steps.clear();
        for (i, s) in segments.iter().enumerate() {
            // Parts of A (see `parts.rs`) meet the same B one after the other.
            let seen = i > 0 && (segments[i - 1].b, segments[i - 1].k) == (s.b, s.k);
            for block in 0..s.k.div_ceil(STEPS) {
                let (at, left) = (steps.len(), s.k - block * STEPS);
                // SAFETY: by the caller, every block begins inside the strips.
                unsafe {
                    let mut first = s.a.add(block * s.a_step);
                    if rows < ROWS {
                        // The tile unit always reads 16 rows, and the last panel of a strip has no more
                        // behind it.
                        first.copy_to_nonoverlapping(a[at].0.as_mut_ptr().cast(), rows * STEPS);
                        first = a[at].0.as_ptr().cast();
                    }
                    let pairs = if seen {
                        steps[at - s.k.div_ceil(STEPS)].b
                    } else {
                        let pairs = &mut b[2 * at..2 * at + 2];
                        if !again {
                            interleave(s.b.add(block * STEPS * WIDTH), left.min(STEPS), pairs);
                        }
                        pairs.as_ptr()
                    };
                    let second = first.add(rows.saturating_sub(ROWS) * STEPS);
                    steps.push(Step { a: [first, second], b: pairs });
                }
            }
        }
    }

    /// # Safety
    /// The steps are those of [`Operands::fill`], whose operands are still there; two products need more than
    /// [`ROWS`] rows.
    unsafe fn product<const N: usize>(&self, out: &mut [Sums; N]) {
        let product = if tiles_are_emulated() { amx::emulated } else { amx::product };
        // SAFETY: by the caller.
        unsafe { product(&self.steps, out) }
    }
}

/// Writes rows of a tile, to each of which `start` is added.
///
/// # Safety
/// As [`sums`].
unsafe fn put(
    rows: &mut [[f32; COLUMNS]],
    columns: usize,
    start: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    // SAFETY: by the caller.
    unsafe {
        if !start.is_null() {
            for row in &mut *rows {
                for (j, sum) in row[..columns].iter_mut().enumerate() {
                    *sum += *start.add(j);
                }
            }
        }
        x86::copy(rows, columns, c, stride, add);
    }
}

/// Grows the buffer to this many tiles; what it holds stays.
fn grow(tiles: &mut Vec<Tile>, count: usize) {
    if tiles.len() < count {
        tiles.resize(count, Tile::ZERO);
    }
}

/// Rows 2·r and 2·r + 1 of a strip become row r of two tiles; missing rows are zeros.
///
/// # Safety
/// The processor has AVX-512 BW; `from` has that many rows of a strip.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave(from: *const bf16, rows: usize, tiles: &mut [Tile]) {
    static PAIRS: [[u16; 32]; 2] = [pairs(false), pairs(true)];
    let row = |i: usize| {
        if i < rows {
            // SAFETY: by the caller.
            unsafe { _mm512_loadu_epi16(from.add(i * WIDTH).cast()) }
        } else {
            _mm512_setzero_si512()
        }
    };
    for r in 0..ROWS {
        let (even, odd) = (row(2 * r), row(2 * r + 1));
        for (tile, index) in tiles.iter_mut().zip(&PAIRS) {
            // SAFETY: both are 32 numbers of 16 bits.
            unsafe {
                let index = _mm512_loadu_epi16(index.as_ptr().cast());
                _mm512_storeu_epi16(
                    tile.0[r].as_mut_ptr().cast(),
                    _mm512_permutex2var_epi16(even, index, odd),
                );
            }
        }
    }
}
