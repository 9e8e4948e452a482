//! Vectorised loops: one generic binary, the widest instructions of the machine it runs on.

use super::Real;

/// Runs a loop compiled for the widest vector unit present (AVX-512, AVX2 + FMA, or the build's baseline).
///
/// Mark the closure `#[inline(always)]`: unless it is inlined, it is compiled for the build's baseline
/// instead.
///
/// Rust never fuses `a * b + c` by itself, so the results do not depend on the unit chosen.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Partial sums of a reduction; a compiler may not reorder float additions by itself.
const LANES: usize = 32;

/// Σ f(i) for i in 0..n, in an order fixed by `n`.
#[inline(always)]
pub(crate) fn sum<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    if whole < n {
        // In an array of its own: lanes that are indexed by a variable would not stay in registers.
        let mut rest = [T::ZERO; LANES];
        for i in whole..n {
            rest[i - whole] = f(i);
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += x);
    }
    // Of widths that the compiler knows, halves are added as vectors.
    fold::<T, 16>(&mut lanes);
    fold::<T, 8>(&mut lanes);
    fold::<T, 4>(&mut lanes);
    fold::<T, 2>(&mut lanes);
    lanes[0] + lanes[1]
}

/// Adds the second `HALF` lanes to the first.
#[inline(always)]
fn fold<T: Real, const HALF: usize>(lanes: &mut [T; LANES]) {
    for l in 0..HALF {
        let other = lanes[HALF + l];
        lanes[l] += other;
    }
}

/// e^x in f32 without branches or calls, so that loops over it vectorise. Relative error below 2e-7 on
/// [-87, 88]; saturates outside, never NaN for a number.
///
/// Cody and Waite's reduction x = n·ln 2 + r with |r| ≤ ln 2 / 2, and the Taylor polynomial of degree 7 in r.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to the nearest integer
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // The low bits of `shifted` hold n; 2^n has the exponent n + 127.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -86.9 + f64::from(i) * 174.8 / 2e6;
            let x = x as f32;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_f32(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(-1e9) < 1e-37 && exp_f32(1e9).is_finite());
    }

    #[test]
    fn sums_every_element_once() {
        for n in [0, 1, 31, 32, 33, 100, 1000] {
            assert_eq!(sum(n, |i| i as f64), (n * n.saturating_sub(1) / 2) as f64);
        }
    }
}
