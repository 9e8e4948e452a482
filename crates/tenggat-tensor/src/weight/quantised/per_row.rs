//! 8-bit formats with one scale per row.
//!
//! optimum-quanto: `scale = bf16(max|w| / q)` with q = 448 or 127, `code = round(bf16(w / scale))`.
//! torchao: the same scale with q = 448 or 127.5, the latter at least 2⁻²³, and `code = round(w / scale)` in
//! f32; its integers are multiplied by 1/scale instead. Deliberate difference: a row of zeros, whose scale of
//! 0 makes upstream's float8 codes NaN, stays a row of zeros.

use half::bf16;

use tenggat_gpu::float8;

use super::{Format, round_bf16};
use crate::cpu::{Real, vectorised};

/// Smallest scale of torchao's integers.
const MIN_SCALE: f32 = f32::EPSILON;

pub fn quantise_row(format: Format, w: &[bf16], codes: &mut [u8], scales: &mut [u8]) {
    let largest = w.iter().fold(0.0f32, |m, w| m.max(w.to_f32().abs()));
    let levels = match format {
        Format::QInt8 => 127.0,
        Format::Int8 => 127.5,
        _ => float8::MAX,
    };
    let least = if format == Format::Int8 { MIN_SCALE } else { 0.0 };
    let scale = bf16::from_f32(largest / levels).to_f32().max(least);
    scales.copy_from_slice(&bf16::from_f32(scale).to_le_bytes());
    if scale == 0.0 {
        codes.fill(0);
        return;
    }
    let inverse = 1.0 / scale;
    let integer = |x: f32| x.round_ties_even().clamp(-128.0, 127.0) as i8 as u8;
    vectorised(
        #[inline(always)]
        || {
            for (code, w) in codes.iter_mut().zip(w) {
                let w = w.to_f32();
                *code = match format {
                    Format::QInt8 => integer(round_bf16(w / scale)),
                    Format::Int8 => integer(w * inverse),
                    Format::QFloat8 => float8::encode(round_bf16(w / scale)),
                    _ => float8::encode(w / scale),
                };
            }
        },
    );
}

/// Weights of a part of a row, as upstream's linear layers multiply by them: floats rounded to bf16; integers
/// exactly code·scale, because there the product with the codes is scaled afterwards. Rounded to bf16 both
/// are upstream's dequantised weights.
#[inline(always)]
pub fn dequantise<T: Real>(format: Format, codes: &[u8], scale: &[u8], out: &mut [T]) {
    let scale = scale.first_chunk().map_or(0.0, |&b| bf16::from_le_bytes(b).to_f32());
    let put = |x: f32| T::from_f64(f64::from(x));
    if matches!(format, Format::QInt8 | Format::Int8) {
        out.iter_mut().zip(codes).for_each(|(d, &c)| *d = put(f32::from(c as i8) * scale));
    } else {
        out.iter_mut().zip(codes).for_each(|(d, &c)| *d = put(round_bf16(float8::decode(c) * scale)));
    }
}
