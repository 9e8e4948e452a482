//! Host buffers, recycled so that a warm training step allocates nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use half::bf16;

use super::Element;
use super::element::CACHE_LINE;
use crate::{DType, Error, Result};

/// Memory of one tensor, longer by [`CACHE_LINE`] elements than it may use, so that what it uses can be
/// aligned.
#[derive(Debug)]
pub enum Buffer {
    /// f32 elements.
    F32(Vec<f32>),
    /// f64 elements.
    F64(Vec<f64>),
    /// bfloat16 elements.
    BF16(Vec<bf16>),
    /// Bytes.
    U8(Vec<u8>),
}

impl Buffer {
    fn new(dtype: DType, len: usize) -> Self {
        let len = len + CACHE_LINE;
        match dtype {
            DType::F32 => Buffer::F32(vec![0.0; len]),
            DType::F64 => Buffer::F64(vec![0.0; len]),
            DType::BF16 => Buffer::BF16(vec![bf16::ZERO; len]),
            DType::U8 => Buffer::U8(vec![0; len]),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Buffer::F32(_) => DType::F32,
            Buffer::F64(_) => DType::F64,
            Buffer::BF16(_) => DType::BF16,
            Buffer::U8(_) => DType::U8,
        }
    }

    /// Elements that it may use.
    fn len(&self) -> usize {
        let all = match self {
            Buffer::F32(v) => v.len(),
            Buffer::F64(v) => v.len(),
            Buffer::BF16(v) => v.len(),
            Buffer::U8(v) => v.len(),
        };
        all - CACHE_LINE
    }

    fn bytes(&self) -> usize {
        self.len() * self.dtype().bytes()
    }

    fn fill_nan(&mut self) {
        match self {
            Buffer::F32(v) => v.fill(f32::NAN),
            Buffer::F64(v) => v.fill(f64::NAN),
            Buffer::BF16(v) => v.fill(bf16::NAN),
            // No byte says that nobody wrote it; this one is an unlikely code.
            Buffer::U8(v) => v.fill(0xaa),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    free: HashMap<(DType, usize), Vec<Buffer>>,
    live_bytes: usize,
    free_bytes: usize,
    peak_bytes: usize,
}

/// Free lists by element type and size class.
#[derive(Debug)]
pub struct Pool {
    state: Mutex<State>,
    poison: bool,
}

impl Pool {
    pub(crate) fn new(poison: bool) -> Self {
        Pool { state: Mutex::default(), poison }
    }

    /// Rounds up to one of eight sizes per power of two: at most an eighth is wasted, and captions of nearby
    /// length share buffers.
    fn size_class(len: usize) -> usize {
        let step = (len.next_power_of_two() / 16).max(16);
        len.max(1).div_ceil(step) * step
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the free lists half written: every update below is whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A buffer of at least `len` elements, contents unspecified.
    pub(crate) fn take(self: &Arc<Self>, dtype: DType, len: usize) -> Storage {
        let class = Self::size_class(len);
        let recycled = {
            let mut state = self.state();
            let buffer = state.free.get_mut(&(dtype, class)).and_then(Vec::pop);
            let bytes = class * dtype.bytes();
            if buffer.is_some() {
                state.free_bytes -= bytes;
            }
            state.live_bytes += bytes;
            state.peak_bytes = state.peak_bytes.max(state.live_bytes + state.free_bytes);
            buffer
        };
        let mut buffer = recycled.unwrap_or_else(|| Buffer::new(dtype, class));
        if self.poison {
            buffer.fill_nan();
        }
        Storage { buffer: Some(buffer), pool: Arc::clone(self) }
    }

    fn give_back(&self, buffer: Buffer) {
        let mut state = self.state();
        state.live_bytes -= buffer.bytes();
        state.free_bytes += buffer.bytes();
        state.free.entry((buffer.dtype(), buffer.len())).or_default().push(buffer);
    }

    pub(crate) fn live_bytes(&self) -> usize {
        self.state().live_bytes
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.state().peak_bytes
    }

    pub(crate) fn trim(&self) {
        let mut state = self.state();
        state.free_bytes = 0;
        state.free.clear();
    }
}

/// A buffer on loan from a pool; returns on drop.
#[derive(Debug)]
pub(crate) struct Storage {
    /// `None` only while dropping.
    buffer: Option<Buffer>,
    pool: Arc<Pool>,
}

impl Storage {
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Its elements, the first at the start of a cache line.
    pub fn slice<T: Element>(&self) -> Option<&[T]> {
        let buffer = self.buffer.as_ref()?;
        let (all, n) = (T::slice(buffer)?, buffer.len());
        let from = all.as_ptr().align_offset(CACHE_LINE);
        all.get(from..from + n)
    }

    pub fn slice_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        let buffer = self.buffer.as_mut()?;
        let n = buffer.len();
        let all = T::slice_mut(buffer)?;
        let from = all.as_ptr().align_offset(CACHE_LINE);
        all.get_mut(from..from + n)
    }
}

impl Storage {
    /// Its first `len` elements in memory order.
    pub fn bytes(&self, dtype: DType, len: usize) -> Result<&[u8]> {
        fn of<T: Element + bytemuck::Pod>(storage: &Storage, len: usize) -> Option<&[u8]> {
            storage.slice::<T>()?.get(..len).map(bytemuck::cast_slice)
        }
        let bytes = match dtype {
            DType::F32 => of::<f32>(self, len),
            DType::F64 => of::<f64>(self, len),
            DType::BF16 => of::<bf16>(self, len),
            DType::U8 => of::<u8>(self, len),
        };
        bytes.ok_or(Error::DType { op: "bytes", dtype, device: "cpu" })
    }

    /// Its first `len` elements in memory order.
    pub fn bytes_mut(&mut self, dtype: DType, len: usize) -> Result<&mut [u8]> {
        fn of<T: Element + bytemuck::Pod>(storage: &mut Storage, len: usize) -> Option<&mut [u8]> {
            storage.slice_mut::<T>()?.get_mut(..len).map(bytemuck::cast_slice_mut)
        }
        let bytes = match dtype {
            DType::F32 => of::<f32>(self, len),
            DType::F64 => of::<f64>(self, len),
            DType::BF16 => of::<bf16>(self, len),
            DType::U8 => of::<u8>(self, len),
        };
        bytes.ok_or(Error::DType { op: "bytes", dtype, device: "cpu" })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_at_most_an_eighth_of_a_large_buffer() {
        for len in [1, 15, 16, 100, 1000, 12_345, 1 << 20, (1 << 20) + 1] {
            let class = Pool::size_class(len);
            assert!(class >= len, "{len} -> {class}");
            assert!(len < 128 || class - len <= len / 8, "{len} -> {class}");
        }
    }

    #[test]
    fn a_returned_buffer_is_used_again() {
        let pool = Arc::new(Pool::new(false));
        let first = pool.take(DType::F32, 1000);
        let address = first.slice::<f32>().unwrap().as_ptr();
        assert_eq!(address as usize % CACHE_LINE, 0);
        drop(first);
        assert_eq!(pool.live_bytes(), 0);
        let second = pool.take(DType::F32, 990);
        assert_eq!(second.slice::<f32>().unwrap().as_ptr(), address);
        assert_eq!(pool.peak_bytes(), Pool::size_class(1000) * 4);
    }
}
