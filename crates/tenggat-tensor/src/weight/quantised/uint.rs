//! `uintN`: asymmetric integers in groups of 64, in bf16 arithmetic.
//!
//! Per group, each operation rounded to bf16: `range = max(w, 0) − min(w, 0)`; `scale = max(range / (2ᴺ − 1),
//! 2⁻²³)`; `zero = clamp(−round(min / scale))`; `code = clamp(round(w · (1 / scale)) + zero)`; back, `(code −
//! zero) · scale`. Rounding is half to even. Arithmetic in f32 would differ from what recovery adapters were
//! trained on.

use half::bf16;

use super::round_bf16;
use crate::cpu::Real;

/// Inputs that share a scale and a zero point.
pub const GROUP: usize = 64;
/// Smallest scale.
const MIN_SCALE: f32 = f32::EPSILON;
/// Widths of the shards that codes are cut into.
const SHARDS: [u8; 3] = [4, 2, 1];

/// Bytes of a packed group.
pub const fn group_bytes(bits: u8) -> usize {
    GROUP / 8 * bits as usize
}

pub fn quantise_row(bits: u8, w: &[bf16], codes: &mut [u8], scales: &mut [u8], zeros: &mut [u8]) {
    let (w, packed) = (w.as_chunks::<GROUP>().0, codes.chunks_exact_mut(group_bytes(bits)));
    for (((w, packed), scale), zero) in w.iter().zip(packed).zip(scales.as_chunks_mut::<2>().0).zip(zeros) {
        let mut codes = [0; GROUP];
        let (s, z) = quantise_group(bits, w, &mut codes);
        *scale = bf16::from_f32(s).to_le_bytes();
        *zero = z;
        pack_group(bits, &codes, packed);
    }
}

/// Codes, scale and zero point of one group.
fn quantise_group(bits: u8, w: &[bf16; GROUP], codes: &mut [u8; GROUP]) -> (f32, u8) {
    let last = f32::from((1u16 << bits) - 1);
    let (mut low, mut high) = (0.0f32, 0.0f32);
    for w in w {
        (low, high) = (low.min(w.to_f32()), high.max(w.to_f32()));
    }
    let scale = round_bf16(round_bf16(high - low) / last).max(MIN_SCALE);
    let zero = (-round_bf16(low / scale).round_ties_even()).clamp(0.0, last);
    let inverse = round_bf16(1.0 / scale);
    for (code, w) in codes.iter_mut().zip(w) {
        let steps = round_bf16(w.to_f32() * inverse).round_ties_even();
        *code = round_bf16(steps + zero).clamp(0.0, last) as u8;
    }
    (scale, zero as u8)
}

/// Cuts codes into shards: a shard of width k is `8·k` bytes, and chunk j of its codes stands at bits `j·k`
/// of them.
fn pack_group(bits: u8, codes: &[u8; GROUP], packed: &mut [u8]) {
    packed.fill(0);
    let (mut at, mut shift) = (0, 0);
    for width in SHARDS.into_iter().filter(|width| bits & width != 0) {
        let len = 8 * width as usize;
        for (j, chunk) in codes.chunks_exact(len).enumerate() {
            for (byte, code) in packed[at..at + len].iter_mut().zip(chunk) {
                *byte |= (code >> shift & ((1 << width) - 1)) << (j * width as usize);
            }
        }
        (at, shift) = (at + len, shift + width);
    }
}

/// Plain codes of packed groups.
pub fn unpack(bits: u8, packed: &[u8]) -> Vec<u8> {
    packed.chunks_exact(group_bytes(bits)).flat_map(|group| unpack_any(bits, group)).collect()
}

#[inline(always)]
fn unpack_any(bits: u8, packed: &[u8]) -> [u8; GROUP] {
    match bits {
        2 => unpack_group::<2>(packed),
        3 => unpack_group::<3>(packed),
        4 => unpack_group::<4>(packed),
        5 => unpack_group::<5>(packed),
        6 => unpack_group::<6>(packed),
        _ => unpack_group::<7>(packed),
    }
}

/// The number of bits is a constant, so that every loop has constant bounds and becomes a few vector
/// instructions.
#[inline(always)]
fn unpack_group<const BITS: u8>(packed: &[u8]) -> [u8; GROUP] {
    let mut codes = [0u8; GROUP];
    let (mut at, mut shift) = (0, 0);
    if BITS & 4 != 0 {
        unpack_shard::<4, 32>(packed, at, shift, &mut codes);
        (at, shift) = (at + 32, shift + 4);
    }
    if BITS & 2 != 0 {
        unpack_shard::<2, 16>(packed, at, shift, &mut codes);
        (at, shift) = (at + 16, shift + 2);
    }
    if BITS & 1 != 0 {
        unpack_shard::<1, 8>(packed, at, shift, &mut codes);
    }
    codes
}

#[inline(always)]
fn unpack_shard<const WIDTH: usize, const LEN: usize>(
    packed: &[u8],
    at: usize,
    shift: u8,
    codes: &mut [u8; GROUP],
) {
    let Some(shard) = packed[at..].first_chunk::<LEN>() else { return };
    for (j, chunk) in codes.as_chunks_mut::<LEN>().0.iter_mut().enumerate() {
        for (code, byte) in chunk.iter_mut().zip(shard) {
            *code |= (byte >> (j * WIDTH) & ((1 << WIDTH) - 1)) << shift;
        }
    }
}

/// Weights of whole groups.
#[inline(always)]
pub fn dequantise<T: Real>(bits: u8, codes: &[u8], scales: &[u8], zeros: &[u8], out: &mut [T]) {
    match bits {
        2 => widen_groups::<2, T>(codes, scales, zeros, out),
        3 => widen_groups::<3, T>(codes, scales, zeros, out),
        4 => widen_groups::<4, T>(codes, scales, zeros, out),
        5 => widen_groups::<5, T>(codes, scales, zeros, out),
        6 => widen_groups::<6, T>(codes, scales, zeros, out),
        _ => widen_groups::<7, T>(codes, scales, zeros, out),
    }
}

#[inline(always)]
fn widen_groups<const BITS: u8, T: Real>(codes: &[u8], scales: &[u8], zeros: &[u8], out: &mut [T]) {
    let groups = codes.chunks_exact(group_bytes(BITS)).zip(scales.as_chunks::<2>().0).zip(zeros);
    for (out, ((codes, &scale), &zero)) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(groups) {
        let (scale, zero) = (bf16::from_le_bytes(scale).to_f32(), i32::from(zero));
        let codes = unpack_group::<BITS>(codes);
        for (out, &code) in out.iter_mut().zip(&codes) {
            let steps = (i32::from(code) - zero) as f32;
            *out = T::from_f64(f64::from(round_bf16(steps * scale)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_code() {
        for bits in 2..=7u8 {
            let codes: [u8; GROUP] = std::array::from_fn(|i| (i * 37 % (1 << bits)) as u8);
            let mut packed = vec![0xff; group_bytes(bits)];
            pack_group(bits, &codes, &mut packed);
            assert_eq!(unpack(bits, &packed), codes, "{bits} bits");
        }
    }
}
