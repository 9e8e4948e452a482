//! Element types of host buffers.

use std::cell::RefCell;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use half::bf16;

use super::Buffer;
use crate::DType;

/// A type that a host buffer can hold.
pub trait Element: Copy + Send + Sync + Debug + 'static {
    /// Its tag.
    const DTYPE: DType;
    /// Rounds from f64.
    fn from_f64(x: f64) -> Self;
    /// Widens to f64, exactly.
    fn to_f64(self) -> f64;
    #[doc(hidden)]
    fn slice(buffer: &Buffer) -> Option<&[Self]>;
    #[doc(hidden)]
    fn slice_mut(buffer: &mut Buffer) -> Option<&mut [Self]>;
}

macro_rules! element {
    ($t:ty, $tag:ident, $from:expr, $to:expr) => {
        impl Element for $t {
            const DTYPE: DType = DType::$tag;
            #[inline]
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            #[inline]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            fn slice(buffer: &Buffer) -> Option<&[Self]> {
                match buffer {
                    Buffer::$tag(v) => Some(v),
                    _ => None,
                }
            }
            fn slice_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
                match buffer {
                    Buffer::$tag(v) => Some(v),
                    _ => None,
                }
            }
        }
    };
}
element!(f32, F32, |x| x as f32, |x: f32| f64::from(x));
element!(f64, F64, |x| x, |x| x);
element!(bf16, BF16, bf16::from_f64, bf16::to_f64);
element!(u8, U8, |x: f64| x.round() as u8, |x: u8| f64::from(x));

/// Bytes of a cache line. As a number of elements, more than enough to align a buffer.
pub(super) const CACHE_LINE: usize = 64;

/// A type that ops compute in.
pub trait Real:
    Element
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// e^x; in f32 an approximation without calls, see `simd`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The larger of two; `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// Lends scratch of `len` elements of the calling thread, aligned to a cache line, contents unspecified,
    /// kept from call to call. A call from inside `work` gets memory of its own, kept in the same way.
    #[doc(hidden)]
    fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [Self]) -> R) -> R;
}

macro_rules! real {
    ($t:ident, $exp:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                if self > other { self } else { other }
            }
            fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [Self]) -> R) -> R {
                // A stack: a call from inside `work` takes the next buffer, and next time gets the same one.
                thread_local!(static FREE: RefCell<Vec<Vec<$t>>> = const { RefCell::new(Vec::new()) });
                let mut scratch = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
                if scratch.len() < len + CACHE_LINE {
                    scratch = vec![0.0; len + CACHE_LINE];
                }
                let from = scratch.as_ptr().align_offset(CACHE_LINE);
                let result = work(&mut scratch[from..from + len]);
                FREE.with_borrow_mut(|free| free.push(scratch));
                result
            }
        }
    };
}
real!(f32, super::simd::exp_f32);
real!(f64, f64::exp);
