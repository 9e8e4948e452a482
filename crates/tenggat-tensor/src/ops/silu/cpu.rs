//! SiLU and its derivative, of one element.

use super::cuda;
use crate::cpu::Real;
use crate::ops::activation::Activation;

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

pub struct Silu;

impl Activation for Silu {
    const FORWARD: (&'static str, tenggat_gpu::Kernel) = ("silu forward", cuda::FORWARD);
    const BACKWARD: (&'static str, tenggat_gpu::Kernel) = ("silu backward", cuda::BACKWARD);

    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let s = sigmoid(x);
        s + x * s * (T::ONE - s)
    }
}
