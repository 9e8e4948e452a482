//! AVX-512 kernels of packed products.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use half::bf16;

use super::WIDTH;
use super::kernel::{Segment, Tile};
use crate::cpu::Level;

/// Lanes of a vector.
pub const LANES: usize = 16;
/// Rows of a tile of C, at most: 14 × 2 sums, two vectors of B and a broadcast fill the 32 registers.
const HEIGHT: usize = 14;

pub fn has_avx512() -> bool {
    Level::current() >= Level::Avx512
}

/// Whether bf16 dot products run at twice the rate of 32-bit multiply-adds, as on AMD since Zen 4 (measured
/// 235 against 117 GFLOP/s). On Intel's cores they run at half of it.
pub fn has_fast_bf16() -> bool {
    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(|| {
        let vendor = __cpuid(0);
        let amd = (vendor.ebx, vendor.edx, vendor.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163);
        amd && Level::current() >= Level::Avx512Bf16
    })
}

macro_rules! table {
    ($tile:ident, $vectors:literal) => {
        [
            $tile::<1, $vectors>,
            $tile::<2, $vectors>,
            $tile::<3, $vectors>,
            $tile::<4, $vectors>,
            $tile::<5, $vectors>,
            $tile::<6, $vectors>,
            $tile::<7, $vectors>,
            $tile::<8, $vectors>,
            $tile::<9, $vectors>,
            $tile::<10, $vectors>,
            $tile::<11, $vectors>,
            $tile::<12, $vectors>,
            $tile::<13, $vectors>,
            $tile::<14, $vectors>,
        ]
    };
}

pub fn tile_f32(rows: usize, half: bool) -> Tile<f32> {
    static TILES: [[Tile<f32>; HEIGHT]; 2] = [table!(sums_f32, 2), table!(sums_f32, 1)];
    TILES[usize::from(half)][rows - 1]
}

pub fn height() -> usize {
    HEIGHT
}

/// Steps of a sum between two visits to C: what a panel of A and a strip of B take stays in the second-level
/// cache.
pub fn block() -> usize {
    1024
}

pub fn tile_bf16(rows: usize, half: bool) -> Tile<bf16> {
    static TILES: [[Tile<bf16>; HEIGHT]; 2] = [table!(sums_bf16, 2), table!(sums_bf16, 1)];
    TILES[usize::from(half)][rows - 1]
}

/// What the sums of a tile start from. A macro: sums that go through a function end up in memory.
macro_rules! start {
    ($height:ident, $vectors:ident, $row:ident) => {{
        let mut sums = [[_mm512_setzero_ps(); $vectors]; $height];
        if !$row.is_null() {
            for sums in &mut sums {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps($row.add(j * LANES));
                }
            }
        }
        sums
    }};
}

/// Writes a tile.
macro_rules! store {
    ($sums:ident, $c:ident, $stride:ident, $add:ident) => {
        for (i, sums) in $sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let to = $c.add(i * $stride + j * LANES);
                let sum = if $add { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum };
                _mm512_storeu_ps(to, sum);
            }
        }
    };
}

/// Fetches H rows of a strip of A that are next: they begin somewhere else, where no processor looks ahead by
/// itself. May point behind the last strip.
#[inline(always)]
fn prefetch<E, const H: usize>(rows: *const E) {
    const LINE: usize = 64;
    for line in 0..H * WIDTH * size_of::<E>() / LINE {
        // SAFETY: fetching ahead reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(rows.cast::<i8>().wrapping_add(line * LINE)) }
    }
}

/// # Safety
/// The processor has AVX-512; the segments' operands are packed, have H rows and `k` steps; `c` has H rows of
/// V vectors.
#[target_feature(enable = "avx512f")]
unsafe fn sums_f32<const H: usize, const V: usize>(
    segments: &[Segment<f32>],
    first: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
    _: bool,
) {
    // SAFETY: by the caller; every step stays inside the strips.
    unsafe {
        let mut sums = start!(H, V, first);
        for s in segments {
            let (mut a, mut b, mut left) = (s.a, s.b, s.k);
            while left > 0 {
                let steps = left.min(WIDTH);
                prefetch::<_, H>(a.wrapping_add(s.a_step));
                for step in 0..steps {
                    let mut lanes = [_mm512_setzero_ps(); V];
                    for (j, lanes) in lanes.iter_mut().enumerate() {
                        *lanes = _mm512_loadu_ps(b.add(j * LANES));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*a.add(i * WIDTH + step));
                        for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                            *sum = _mm512_fmadd_ps(x, lanes, *sum);
                        }
                    }
                    b = b.add(WIDTH);
                }
                a = a.wrapping_add(s.a_step);
                left -= steps;
            }
        }
        store!(sums, c, stride, add);
    }
}

/// Interleaves two rows of a strip, so that a lane holds both steps of a pair: left or right 16 columns.
pub const fn pairs(right: bool) -> [u16; 32] {
    let mut index = [0; 32];
    let mut j = 0;
    while j < LANES {
        let column = if right { LANES + j } else { j };
        index[2 * j] = column as u16;
        index[2 * j + 1] = (WIDTH + column) as u16;
        j += 1;
    }
    index
}

/// Strips stay in their natural order, which serves both passes; pairs along the sum are made in registers.
///
/// # Safety
/// As [`sums_f32`], with AVX512-BF16; where `k` is odd, A is padded to an even number of columns with
/// numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn sums_bf16<const H: usize, const V: usize>(
    segments: &[Segment<bf16>],
    first: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
    _: bool,
) {
    static PAIRS: [[u16; 32]; 2] = [pairs(false), pairs(true)];
    // SAFETY: by the caller; every step stays inside the strips, and vectors of bf16 are vectors of 16-bit
    // integers.
    unsafe {
        let index = [0, 1].map(|j| _mm512_loadu_epi16(PAIRS[j].as_ptr().cast()));
        let mut sums = start!(H, V, first);
        for s in segments {
            let (mut a, mut b, mut left) = (s.a, s.b, s.k);
            while left > 0 {
                let steps = left.min(WIDTH);
                prefetch::<_, H>(a.wrapping_add(s.a_step));
                for step in (0..steps).step_by(2) {
                    let even = _mm512_loadu_epi16(b.cast());
                    let odd = if step + 1 < steps {
                        _mm512_loadu_epi16(b.add(WIDTH).cast())
                    } else {
                        _mm512_setzero_si512()
                    };
                    let mut lanes = [_mm512_setzero_si512(); V];
                    for (lanes, &index) in lanes.iter_mut().zip(&index) {
                        *lanes = _mm512_permutex2var_epi16(even, index, odd);
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let pair = a.add(i * WIDTH + step).cast::<i32>().read_unaligned();
                        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                        for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                            let pairs = std::mem::transmute::<__m512i, __m512bh>(lanes);
                            *sum = _mm512_dpbf16_ps(*sum, x, pairs);
                        }
                    }
                    b = b.wrapping_add(2 * WIDTH);
                }
                a = a.wrapping_add(s.a_step);
                left -= steps;
            }
        }
        store!(sums, c, stride, add);
    }
}

fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

/// Copies a tile `[rows, WIDTH]` to the first `cols` columns of rows `stride` apart.
///
/// # Safety
/// The processor has AVX-512; `c` has these elements.
#[target_feature(enable = "avx512f")]
pub unsafe fn copy(tile: &[[f32; WIDTH]], cols: usize, c: *mut f32, stride: usize, add: bool) {
    for (i, row) in tile.iter().enumerate() {
        for left in (0..cols).step_by(LANES) {
            let mask = mask(cols - left);
            // SAFETY: masked to the columns that the caller vouches for.
            unsafe {
                let to = c.add(i * stride + left);
                let mut values = _mm512_loadu_ps(row.as_ptr().add(left));
                if add {
                    values = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), values);
                }
                _mm512_mask_storeu_ps(to, mask, values);
            }
        }
    }
}

/// Copies the first `cols` columns of a tile's first `rows` rows (all if it has fewer) to columns `stride`
/// apart.
///
/// # Safety
/// The processor has AVX-512; `c` has `cols` runs of `rows` elements.
#[target_feature(enable = "avx512f")]
pub unsafe fn copy_transposed(
    tile: &[[f32; WIDTH]; LANES],
    rows: usize,
    cols: usize,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let mask = mask(rows);
    for left in (0..cols).step_by(LANES) {
        let mut block = [_mm512_setzero_ps(); LANES];
        for (vector, row) in block.iter_mut().zip(tile) {
            // SAFETY: a tile's row has two vectors.
            *vector = unsafe { _mm512_loadu_ps(row.as_ptr().add(left)) };
        }
        for (j, &values) in transpose(block).iter().enumerate().take(cols - left) {
            // SAFETY: masked to the rows that the caller vouches for.
            unsafe {
                let to = c.add((left + j) * stride);
                let mut values = values;
                if add {
                    values = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), values);
                }
                _mm512_mask_storeu_ps(to, mask, values);
            }
        }
    }
}

/// Packs columns of a row-major matrix: `from` points to `rows` ≤ WIDTH rows, `stride` apart, of which `cols`
/// columns become rows of a strip at `to`, multiplied by `alpha`; missing rows are zeros.
macro_rules! columns {
    ($name:ident, $type:ty, $features:literal, $store:expr) => {
        /// # Safety
        /// The processor has the vector unit; `from` has these elements, `to` has `cols` rows of a strip.
        #[target_feature(enable = $features)]
        pub unsafe fn $name(
            from: *const f32,
            (rows, cols, stride): (usize, usize, usize),
            alpha: f32,
            part: usize,
            to: *mut $type,
        ) {
            let alpha = _mm512_set1_ps(alpha);
            for col in (0..cols).step_by(LANES) {
                let mask = mask(cols - col);
                for top in (0..WIDTH).step_by(LANES) {
                    let mut block = [_mm512_setzero_ps(); LANES];
                    for (i, vector) in block.iter_mut().enumerate().take(rows.saturating_sub(top)) {
                        // SAFETY: masked to the columns that the caller vouches for.
                        *vector = unsafe { _mm512_maskz_loadu_ps(mask, from.add((top + i) * stride + col)) };
                    }
                    for (j, &values) in transpose(block).iter().enumerate().take(cols - col) {
                        let values = _mm512_mul_ps(values, alpha);
                        // SAFETY: `to` has this row.
                        unsafe { $store(to.add((col + j) * WIDTH + top), values, part) }
                    }
                }
            }
        }
    };
}

columns!(columns_f32, f32, "avx512f", store_wide);
columns!(columns_bf16, bf16, "avx512f,avx512bf16,avx512bw", store_narrow);

/// Writes a vector, which has one part.
///
/// # Safety
/// `to` has 16 elements.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_wide(to: *mut f32, values: __m512, part: usize) {
    debug_assert_eq!(part, 0);
    // SAFETY: by the caller.
    unsafe { _mm512_storeu_ps(to, values) }
}

/// Writes a part of a vector, rounded to bf16.
///
/// # Safety
/// `to` has 16 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
unsafe fn store_narrow(to: *mut bf16, values: __m512, part: usize) {
    // SAFETY: by the caller.
    unsafe { _mm256_storeu_si256(to.cast(), rounded(values, part)) }
}

/// A part of a vector: what rounding it so often leaves, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
fn rounded(values: __m512, part: usize) -> __m256i {
    // SAFETY: vectors of bf16 are vectors of 16-bit integers.
    let round = |x| unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) };
    let mut left = values;
    for _ in 0..part {
        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(round(left)));
        left = _mm512_sub_ps(left, _mm512_castsi512_ps(wide));
    }
    round(left)
}

/// Rounds 32-bit floats to bf16.
///
/// # Safety
/// The processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub unsafe fn narrow(from: &[f32], alpha: f32, part: usize, to: &mut [bf16]) {
    let alpha = _mm512_set1_ps(alpha);
    let n = from.len().min(to.len());
    for at in (0..n).step_by(LANES) {
        let mask = mask(n - at);
        // SAFETY: masked to both slices.
        unsafe {
            let values = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from.as_ptr().add(at)), alpha);
            _mm256_mask_storeu_epi16(to.as_mut_ptr().add(at).cast(), mask, rounded(values, part));
        }
    }
}

/// Transposes a block of 16 × 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512; LANES]) -> [__m512; LANES] {
    let mut t = [_mm512_setzero_ps(); LANES];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // q[4·g + c]: in every group of four lanes l, column 4·l + c of rows 4·g … 4·g + 3.
    let mut q = [_mm512_setzero_ps(); LANES];
    let lo = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let hi = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    for g in 0..4 {
        q[4 * g] = lo(t[4 * g], t[4 * g + 2]);
        q[4 * g + 1] = hi(t[4 * g], t[4 * g + 2]);
        q[4 * g + 2] = lo(t[4 * g + 1], t[4 * g + 3]);
        q[4 * g + 3] = hi(t[4 * g + 1], t[4 * g + 3]);
    }
    let mut out = [_mm512_setzero_ps(); LANES];
    for c in 0..4 {
        let low = _mm512_shuffle_f32x4::<0x88>(q[c], q[4 + c]); // groups 0 and 2 of both
        let low_odd = _mm512_shuffle_f32x4::<0xdd>(q[c], q[4 + c]); // groups 1 and 3
        let high = _mm512_shuffle_f32x4::<0x88>(q[8 + c], q[12 + c]);
        let high_odd = _mm512_shuffle_f32x4::<0xdd>(q[8 + c], q[12 + c]);
        out[c] = _mm512_shuffle_f32x4::<0x88>(low, high);
        out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(low, high);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd);
    }
    out
}
