//! Element types of packed operands.

use half::bf16;

use super::kernel::Tile;
#[cfg(target_arch = "x86_64")]
use super::{amx, x86};

/// A type that operands are packed in.
pub(crate) trait Lane: Copy + Send + Sync + 'static {
    /// 0.
    const ZERO: Self;
    /// `alpha · from`, rounded; of a part past the first, what the parts before it leave.
    fn narrow(from: &[f32], alpha: f32, part: usize, to: &mut [Self]);
    /// Elements that [`Lane::operand`] needs for this many sums.
    fn scratch_len(sums: usize) -> usize;
    /// Packed sums as packed operands: as they are, or a part of them rounded into `scratch`.
    fn operand<'a>(sums: &'a [f32], part: usize, scratch: &'a mut [Self]) -> &'a [Self];
    /// Packs a part of `cols` columns of `rows` ≤ WIDTH rows, `stride` apart, as rows of a strip: `alpha ·`
    /// each, zeros for missing rows.
    ///
    /// # Safety
    /// `from` has these elements, `to` has `cols` rows of a strip, and this type is
    /// [`available`](Lane::available).
    unsafe fn columns(from: *const f32, shape: (usize, usize, usize), alpha: f32, part: usize, to: *mut Self);
    /// Whether this machine multiplies packed operands of this type faster than unpacked ones.
    fn available() -> bool;
    /// Rows of a tile, at most: no more than WIDTH.
    fn height() -> usize;
    /// Steps of a sum that tiles take before C is visited: a multiple of WIDTH.
    fn block() -> usize;
    /// The kernel for tiles of 1 to [`height`](Lane::height) rows; the half-wide one leaves the right 16
    /// columns alone.
    fn tile(rows: usize, half: bool) -> Tile<Self>;
}

macro_rules! lane {
    ($type:ty, $zero:expr, $available:path, $height:path, $block:path, $tile:path, $columns:path, $narrow:expr, $scratch_len:expr, $operand:expr) => {
        impl Lane for $type {
            const ZERO: Self = $zero;

            fn available() -> bool {
                #[cfg(target_arch = "x86_64")]
                return $available();
                #[cfg(not(target_arch = "x86_64"))]
                false
            }

            fn height() -> usize {
                #[cfg(target_arch = "x86_64")]
                return $height();
                #[cfg(not(target_arch = "x86_64"))]
                1
            }

            fn block() -> usize {
                #[cfg(target_arch = "x86_64")]
                return $block();
                #[cfg(not(target_arch = "x86_64"))]
                super::WIDTH
            }

            fn tile(rows: usize, half: bool) -> Tile<Self> {
                #[cfg(target_arch = "x86_64")]
                return $tile(rows, half);
                #[cfg(not(target_arch = "x86_64"))]
                unreachable!("no kernel for {rows} rows, half {half}: `available` says so")
            }

            unsafe fn columns(
                from: *const f32,
                shape: (usize, usize, usize),
                alpha: f32,
                part: usize,
                to: *mut Self,
            ) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: by the caller.
                unsafe {
                    $columns(from, shape, alpha, part, to);
                }
                #[cfg(not(target_arch = "x86_64"))]
                unreachable!("{from:?} {shape:?} {alpha} {part} {to:?}: `available` says so")
            }

            fn scratch_len(sums: usize) -> usize {
                $scratch_len(sums)
            }

            fn operand<'a>(sums: &'a [f32], part: usize, scratch: &'a mut [Self]) -> &'a [Self] {
                $operand(sums, part, scratch)
            }

            #[inline(always)]
            fn narrow(from: &[f32], alpha: f32, part: usize, to: &mut [Self]) {
                $narrow(from, alpha, part, to)
            }
        }
    };
}
lane!(
    f32,
    0.0,
    x86::has_avx512,
    x86::height,
    x86::block,
    x86::tile_f32,
    x86::columns_f32,
    scale,
    |_| 0,
    as_they_are
);
lane!(
    bf16,
    bf16::ZERO,
    fast_bf16::available,
    fast_bf16::height,
    fast_bf16::block,
    fast_bf16::tile,
    x86::columns_bf16,
    round,
    |sums| sums,
    rounded
);

/// The faster of two ways to multiply bf16.
#[cfg(target_arch = "x86_64")]
mod fast_bf16 {
    use super::*;

    pub fn available() -> bool {
        amx::has_tiles() || x86::has_fast_bf16()
    }

    pub fn height() -> usize {
        if amx::has_tiles() { amx::HEIGHT } else { x86::height() }
    }

    pub fn block() -> usize {
        if amx::has_tiles() { amx::BLOCK } else { x86::block() }
    }

    pub fn tile(rows: usize, half: bool) -> Tile<bf16> {
        if amx::has_tiles() { amx::tile(rows, half) } else { x86::tile_bf16(rows, half) }
    }
}

/// Whether exact products (see `parts.rs`) are faster made of bf16 ones.
pub(crate) fn splits() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::has_tiles();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn as_they_are<'a>(sums: &'a [f32], part: usize, _: &'a mut [f32]) -> &'a [f32] {
    debug_assert_eq!(part, 0);
    sums
}

fn rounded<'a>(sums: &'a [f32], part: usize, scratch: &'a mut [bf16]) -> &'a [bf16] {
    round(sums, 1.0, part, scratch);
    scratch
}

#[inline(always)]
fn scale(from: &[f32], alpha: f32, part: usize, to: &mut [f32]) {
    debug_assert_eq!(part, 0);
    if alpha == 1.0 {
        to.copy_from_slice(from);
    } else {
        to.iter_mut().zip(from).for_each(|(d, &s)| *d = alpha * s);
    }
}

fn round(from: &[f32], alpha: f32, part: usize, to: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if bf16::available() {
        // SAFETY: `available` found the vector unit that the function needs.
        return unsafe { x86::narrow(from, alpha, part, to) };
    }
    to.iter_mut().zip(from).for_each(|(d, &s)| {
        let left = (0..part).fold(alpha * s, |left, _| left - bf16::from_f32(left).to_f32());
        *d = bf16::from_f32(left);
    });
}
