//! `float8_e4m3fn`: sign, 4 exponent bits with bias 7, 3 mantissa bits; largest value 448, no infinities.

/// Largest finite value.
pub const MAX: f32 = 448.0;
/// Smallest value with a leading one.
const MIN_NORMAL: f32 = 1.0 / 64.0;
/// Exponent bias of f32 less that of e4m3.
const BIAS: u32 = 127 - 7;

/// Nearest code, ties to even; values beyond ±448 become ±448. For numbers.
#[inline(always)]
pub fn encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let size = x.abs().min(MAX);
    let code = if size < MIN_NORMAL {
        // Multiples of 2⁻⁹; eight of them carry into the smallest normal, whose code is 8.
        (size * 512.0).round_ties_even() as u32
    } else {
        let bits = size.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (BIAS << 3)
    };
    sign | code as u8
}

/// Value of a code.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), u32::from(code & 7));
    let normal = f32::from_bits((exponent + BIAS) << 23 | mantissa << 20);
    let size = if exponent == 0 { mantissa as f32 / 512.0 } else { normal };
    let size = if code & 0x7f == 0x7f { f32::NAN } else { size };
    if code & 0x80 != 0 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for code in 0..=255u8 {
            if code & 0x7f != 0x7f {
                assert_eq!(encode(decode(code)), code, "{code:#x}");
            }
        }
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
        assert_eq!((decode(0x7e), decode(1), decode(8)), (448.0, 1.0 / 512.0, 1.0 / 64.0));
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        for code in 0..0x7eu8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(encode(middle), code + (code & 1), "tie above {low}");
            assert_eq!(encode(middle * 0.999), code);
            assert_eq!(encode(-middle * 1.001), 0x80 | (code + 1));
        }
        assert_eq!((encode(1e9), encode(-460.0)), (0x7e, 0xfe));
    }
}
