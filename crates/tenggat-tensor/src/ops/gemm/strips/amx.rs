//! The kernel of packed bf16 products on the tile unit.
//!
//! Strips keep their order, which serves both passes. A's rows are tiles as they lie; pairs of B's rows are interleaved
//! into tiles once per strip of a task and then serve all its panels.

use std::arch::x86_64::*;
use std::cell::RefCell;

use half::bf16;

use super::kernel::{Segment, Tile as Kernel};
use super::x86::{LANES, pairs};
use super::{WIDTH, x86};
use crate::cpu::amx::{self, COLUMNS, ROWS, STEPS, Step, Sums, Tile};
use crate::cpu::{Level, tiles_are_emulated};

const _: () = assert!(WIDTH == COLUMNS && WIDTH == STEPS);

/// Rows of a tile of C.
pub const HEIGHT: usize = ROWS;

pub fn has_tiles() -> bool {
    Level::current() >= Level::Amx
}

macro_rules! table {
    ($half:literal: $($rows:literal)*) => { [$(sums::<$rows, $half>),*] };
}

pub fn tile(rows: usize, half: bool) -> Kernel<bf16> {
    static KERNELS: [[Kernel<bf16>; HEIGHT]; 2] = [
        table!(false: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16),
        table!(true: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16),
    ];
    KERNELS[usize::from(half)][rows - 1]
}

/// Tiles of a product.
struct Room {
    /// B, two tiles per step.
    b: Vec<Tile>,
    /// A, where a panel has fewer rows than a tile.
    a: Vec<Tile>,
    steps: Vec<Step>,
}

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room { b: Vec::new(), a: Vec::new(), steps: Vec::new() }) };
}

/// # Safety
/// The level is there; the segments' operands are packed and have H rows and `k` steps; `c` has H rows of two vectors, or
/// of one if `HALF`. With `again`, B's are those of this thread's last call.
unsafe fn sums<const H: usize, const HALF: bool>(
    segments: &[Segment<bf16>],
    start: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
    again: bool,
) {
    ROOM.with_borrow_mut(|Room { a, b, steps }| {
        let count: usize = segments.iter().map(|s| s.k.div_ceil(STEPS)).sum();
        grow(b, 2 * count);
        grow(a, if H < ROWS { count } else { 0 });
        steps.clear();
        for s in segments {
            for block in 0..s.k.div_ceil(STEPS) {
                let (at, left) = (steps.len(), s.k - block * STEPS);
                // SAFETY: by the caller, every block begins inside the strips.
                unsafe {
                    if !again {
                        interleave(
                            s.b.add(block * STEPS * WIDTH),
                            left.min(STEPS),
                            &mut b[2 * at..2 * at + 2],
                        );
                    }
                    let mut rows = s.a.add(block * s.a_step);
                    if H < ROWS {
                        // The tile unit always reads 16 rows, and the last panel of a strip has no more behind it.
                        rows.copy_to_nonoverlapping(a[at].0.as_mut_ptr().cast(), H * STEPS);
                        rows = a[at].0.as_ptr().cast();
                    }
                    steps.push(Step { a: rows, b: b[2 * at..].as_ptr() });
                }
            }
        }
        let mut out = Sums([[0.0; COLUMNS]; ROWS]);
        let product = if tiles_are_emulated() { amx::emulated } else { amx::product };
        let columns = if HALF { LANES } else { WIDTH };
        // SAFETY: by the caller; the tiles are those that were just made.
        unsafe {
            product(steps, &mut out);
            if !start.is_null() {
                for row in &mut out.0[..H] {
                    for (j, sum) in row[..columns].iter_mut().enumerate() {
                        *sum += *start.add(j);
                    }
                }
            }
            x86::copy(&out.0[..H], columns, c, stride, add);
        }
    });
}

/// Room for so many tiles; whatever is there stays.
fn grow(tiles: &mut Vec<Tile>, count: usize) {
    if tiles.len() < count {
        tiles.resize(count, Tile::ZERO);
    }
}

/// Rows 2·r and 2·r + 1 of a strip become row r of two tiles; missing rows are zeros.
///
/// # Safety
/// AVX-512 BW is there; `from` has so many rows of a strip.
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
