//! GELU and its derivative, of one element.

use super::cuda;
use crate::cpu::Real;
use crate::ops::activation::Activation;

/// √(2/π).
const SCALE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044715;

/// σ(2u) of the file `mod.rs`.
#[inline(always)]
fn gate<T: Real>(x: T) -> T {
    let minus_two_u = T::from_f64(-2.0 * SCALE) * (x + T::from_f64(CUBIC) * x * x * x);
    T::ONE / (T::ONE + minus_two_u.exp())
}

pub struct Gelu;

impl Activation for Gelu {
    const FORWARD: (&'static str, tenggat_gpu::Kernel) = ("gelu forward", cuda::FORWARD);
    const BACKWARD: (&'static str, tenggat_gpu::Kernel) = ("gelu backward", cuda::BACKWARD);

    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * gate(x)
    }

    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let s = gate(x);
        let slope = T::from_f64(2.0 * SCALE) + T::from_f64(6.0 * SCALE * CUBIC) * x * x;
        s + x * s * (T::ONE - s) * slope
    }
}
