//! Typed matrices over host slices: what CPU kernels work on.

use rayon::prelude::*;

use super::Element;
use crate::DType;

/// Rows of `cols` elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<'a, T> Mat<'a, T> {
    #[inline]
    pub fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.stride..i * self.stride + self.cols]
    }
}

impl<'a, T: Element> Mat<'a, T> {
    /// The same matrix if it is of 32-bit floats.
    pub fn as_f32(self) -> Option<Mat<'a, f32>> {
        let Mat { data, rows, cols, stride } = self;
        (T::DTYPE == DType::F32).then(|| {
            // SAFETY: each element type has a tag of its own, so T is f32.
            let data = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) };
            Mat { data, rows, cols, stride }
        })
    }
}

/// Writable rows of `cols` elements, `stride` elements apart.
pub(crate) struct MatMut<'a, T> {
    pub data: &'a mut [T],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<T: Send> MatMut<'_, T> {
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.stride..i * self.stride + self.cols]
    }

    /// Rows `from..from + n`.
    pub fn rows_mut(&mut self, from: usize, n: usize) -> MatMut<'_, T> {
        let (cols, stride) = (self.cols, self.stride);
        let end = if n == 0 { from * stride } else { (from + n - 1) * stride + cols };
        MatMut { data: &mut self.data[from * stride..end], rows: n, cols, stride }
    }

    /// Parallel blocks of `rows` whole rows (the last may be shorter), each as `(first row, block)`.
    /// The blocks depend on the shape alone, so results do not depend on the number of threads.
    pub fn par_blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (usize, MatMut<'_, T>)> {
        let (cols, stride) = (self.cols, self.stride);
        self.data.par_chunks_mut(rows * stride).enumerate().map(move |(i, data)| {
            let n = (data.len() + stride - cols) / stride;
            (i * rows, MatMut { data, rows: n, cols, stride })
        })
    }
}
