//! Owned tensors and borrowed matrix views.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use tenggat_gpu::{self as gpu, Cuda};

use crate::cpu::{Element, Mat, MatMut};
use crate::error::expect_shape;
use crate::storage::Storage;
use crate::{DType, Device, Error, Result};

/// An owned, contiguous, row-major array on one device.
#[derive(Debug)]
pub struct Tensor {
    storage: Storage,
    dtype: DType,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor whose contents are unspecified: the caller writes all of it before reading any.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn empty(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let storage = Storage::new(device, dtype, shape.iter().product())?;
        Ok(Tensor { storage, dtype, shape: shape.to_vec() })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let mut tensor = Self::empty(device, dtype, shape)?;
        tensor.fill(0.0)?;
        Ok(tensor)
    }

    /// A tensor on the same device and of the same type with another shape, contents unspecified.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn empty_like(&self, shape: &[usize]) -> Result<Self> {
        Self::empty(&self.device(), self.dtype, shape)
    }

    /// An uninitialised tensor of the type that holds this tensor's sums and statistics ([`DType::wide`]).
    ///
    /// # Errors
    /// Out of device memory.
    pub fn empty_wide(&self, shape: &[usize]) -> Result<Self> {
        Self::empty(&self.device(), self.dtype.wide(), shape)
    }

    /// A tensor with these values, rounded to `dtype`.
    ///
    /// # Errors
    /// The shape does not have as many elements as `data`, the device is out of memory, or the copy to it
    /// failed.
    pub fn from_f64(device: &Device, dtype: DType, data: &[f64], shape: &[usize]) -> Result<Self> {
        Self::from_iter(device, dtype, data.len(), data.iter().copied(), shape)
    }

    /// A tensor with these values, rounded to `dtype`.
    ///
    /// # Errors
    /// The shape does not have as many elements as `data`, the device is out of memory, or the copy to it
    /// failed.
    pub fn from_f32(device: &Device, dtype: DType, data: &[f32], shape: &[usize]) -> Result<Self> {
        Self::from_iter(device, dtype, data.len(), data.iter().map(|&x| f64::from(x)), shape)
    }

    fn from_iter(
        device: &Device,
        dtype: DType,
        len: usize,
        values: impl Iterator<Item = f64>,
        shape: &[usize],
    ) -> Result<Self> {
        expect_shape("tensor", "elements", &[shape.iter().product()], &[len])?;
        let host = if let Device::Cpu(_) = device { device } else { &Device::cpu() };
        let mut tensor = Self::empty(host, dtype, shape)?;
        fn put<T: Element>(slice: &mut [T], values: impl Iterator<Item = f64>) {
            slice.iter_mut().zip(values).for_each(|(d, x)| *d = T::from_f64(x));
        }
        match dtype {
            DType::F32 => put::<f32>(tensor.host_mut()?, values),
            DType::F64 => put::<f64>(tensor.host_mut()?, values),
            DType::BF16 => put::<bf16>(tensor.host_mut()?, values),
            DType::U8 => put::<u8>(tensor.host_mut()?, values),
        }
        tensor.into_device(device)
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// The same tensor on another device; nothing is copied if it already lies there.
    ///
    /// # Errors
    /// Out of device memory, or the copy failed.
    pub fn into_device(self, device: &Device) -> Result<Self> {
        match (self.device(), device) {
            (Device::Cpu(_), Device::Cpu(_)) => Ok(self),
            (Device::Cuda(a), Device::Cuda(b)) if Arc::ptr_eq(&a, b) => Ok(self),
            _ => {
                let mut there = Self::empty(device, self.dtype, &self.shape)?;
                there.set_bytes(&self.to_bytes()?)?;
                Ok(there)
            }
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape, outermost axis first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same values under another shape.
    ///
    /// # Errors
    /// The number of elements differs.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        expect_shape("reshape", "elements", &[self.len()], &[shape.iter().product()])?;
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// A copy in its own memory.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn duplicate(&self) -> Result<Self> {
        self.to_dtype(self.dtype)
    }

    /// A copy rounded to another element type.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        self.range_to_dtype(0..self.len(), dtype)?.reshape(&self.shape)
    }

    /// A copy of some elements in their order, rounded to another element type.
    ///
    /// # Errors
    /// There are fewer elements, or out of device memory.
    pub fn range_to_dtype(&self, range: Range<usize>, dtype: DType) -> Result<Self> {
        let elements = self.matrix(range.start, 1, range.len())?;
        let mut out = Self::empty(&self.device(), dtype, &[range.len()])?;
        if let Device::Cuda(_) = self.device() {
            crate::ops::copy::cast(elements, out.view_mut())?;
            return Ok(out);
        }
        fn cast<A: Element, B: Element>(from: &[A], to: &mut [B]) {
            to.iter_mut().zip(from).for_each(|(d, s)| *d = B::from_f64(s.to_f64()));
        }
        fn from<A: Element>(from: &[A], to: &mut Tensor) -> Result<()> {
            match to.dtype {
                DType::F32 => cast::<A, f32>(from, to.host_mut()?),
                DType::F64 => cast::<A, f64>(from, to.host_mut()?),
                DType::BF16 => cast::<A, bf16>(from, to.host_mut()?),
                DType::U8 => cast::<A, u8>(from, to.host_mut()?),
            }
            Ok(())
        }
        match self.dtype {
            DType::F32 => from::<f32>(&self.host()?[range], &mut out)?,
            DType::F64 => from::<f64>(&self.host()?[range], &mut out)?,
            DType::BF16 => from::<bf16>(&self.host()?[range], &mut out)?,
            DType::U8 => from::<u8>(&self.host()?[range], &mut out)?,
        }
        Ok(out)
    }

    /// Sets every element.
    ///
    /// # Errors
    /// The device failed.
    pub fn fill(&mut self, value: f64) -> Result<()> {
        let n = self.len();
        if let Device::Cuda(_) = self.device() {
            return crate::ops::copy::fill(value, self.view_mut());
        }
        fn put<T: Element>(storage: &mut Storage, n: usize, value: f64) {
            if let Some(s) = storage.slice_mut::<T>() {
                s[..n].fill(T::from_f64(value));
            }
        }
        match self.dtype {
            DType::F32 => put::<f32>(&mut self.storage, n, value),
            DType::F64 => put::<f64>(&mut self.storage, n, value),
            DType::BF16 => put::<bf16>(&mut self.storage, n, value),
            DType::U8 => put::<u8>(&mut self.storage, n, value),
        }
        Ok(())
    }

    /// The elements as a host slice.
    ///
    /// # Errors
    /// The element type is another, or the tensor is not in host memory.
    pub fn host<T: Element>(&self) -> Result<&[T]> {
        let n = self.len();
        let missing = || self.storage.not_host("host slice", self.dtype);
        self.storage.slice().map(|s| &s[..n]).ok_or_else(missing)
    }

    /// The elements as a writable host slice.
    ///
    /// # Errors
    /// The element type is another, or the tensor is not in host memory.
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let (n, missing) = (self.len(), self.storage.not_host("host slice", self.dtype));
        self.storage.slice_mut().map(|s| &mut s[..n]).ok_or(missing)
    }

    /// The values as f32.
    ///
    /// # Errors
    /// Reading back from the device failed.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.values(|x| x as f32)
    }

    /// The values as f64.
    ///
    /// # Errors
    /// Reading back from the device failed.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        self.values(|x| x)
    }

    /// All values, each through f64, which holds every type's exactly.
    fn values<V>(&self, of: impl Fn(f64) -> V) -> Result<Vec<V>> {
        fn each<T: Element + bytemuck::Pod, V>(bytes: &[u8], of: impl Fn(f64) -> V) -> Vec<V> {
            bytes
                .chunks_exact(size_of::<T>())
                .map(|b| of(bytemuck::pod_read_unaligned::<T>(b).to_f64()))
                .collect()
        }
        let bytes = self.to_bytes()?;
        Ok(match self.dtype {
            DType::F32 => each::<f32, V>(&bytes, of),
            DType::F64 => each::<f64, V>(&bytes, of),
            DType::BF16 => each::<bf16, V>(&bytes, of),
            DType::U8 => each::<u8, V>(&bytes, of),
        })
    }

    /// The elements in memory order, for files: little-endian as long as the machine is.
    ///
    /// # Errors
    /// Reading back from the device failed.
    pub fn to_bytes(&self) -> Result<Cow<'_, [u8]>> {
        self.storage.bytes(self.dtype, self.len())
    }

    /// Takes over elements that [`Tensor::to_bytes`] gave.
    ///
    /// # Errors
    /// Their number differs, or the device failed.
    pub fn set_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        expect_shape("set bytes", "bytes", &[self.len() * self.dtype.bytes()], &[bytes.len()])?;
        self.storage.set_bytes(self.dtype, bytes)
    }

    /// The tensor as a matrix: the last axis is the columns, all others are rows.
    pub fn view(&self) -> View<'_> {
        let (rows, cols) = self.rows_and_columns();
        View { storage: &self.storage, dtype: self.dtype, offset: 0, rows, cols, stride: cols }
    }

    /// The tensor as a writable matrix: the last axis is the columns, all others are rows.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let (rows, cols) = self.rows_and_columns();
        ViewMut { storage: &mut self.storage, dtype: self.dtype, offset: 0, rows, cols, stride: cols }
    }

    /// `rows` × `cols` elements starting at element `offset`, as a matrix.
    ///
    /// # Errors
    /// The range lies outside the tensor.
    pub fn matrix(&self, offset: usize, rows: usize, cols: usize) -> Result<View<'_>> {
        self.check_range(offset, rows * cols)?;
        Ok(View { storage: &self.storage, dtype: self.dtype, offset, rows, cols, stride: cols })
    }

    /// `rows` × `cols` elements starting at element `offset`, as a writable matrix.
    ///
    /// # Errors
    /// The range lies outside the tensor.
    pub fn matrix_mut(&mut self, offset: usize, rows: usize, cols: usize) -> Result<ViewMut<'_>> {
        self.check_range(offset, rows * cols)?;
        Ok(ViewMut { storage: &mut self.storage, dtype: self.dtype, offset, rows, cols, stride: cols })
    }

    fn rows_and_columns(&self) -> (usize, usize) {
        self.shape.split_last().map_or((1, 1), |(&cols, outer)| (outer.iter().product(), cols))
    }

    fn check_range(&self, offset: usize, len: usize) -> Result<()> {
        if offset + len > self.len() {
            return Err(Error::shape("matrix", "end of range", &[self.len()], &[offset + len]));
        }
        Ok(())
    }
}

/// A borrowed matrix: `rows` rows of `cols` elements, `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    storage: &'a Storage,
    dtype: DType,
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

/// A writable borrowed matrix: `rows` rows of `cols` elements, `stride` elements apart.
#[derive(Debug)]
pub struct ViewMut<'a> {
    storage: &'a mut Storage,
    dtype: DType,
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

/// Elements from the first of a matrix to one past its last.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + cols }
}

macro_rules! shape_methods {
    () => {
        /// Rows.
        pub fn rows(&self) -> usize {
            self.rows
        }

        /// Columns.
        pub fn cols(&self) -> usize {
            self.cols
        }

        /// `[rows, columns]`.
        pub fn shape(&self) -> [usize; 2] {
            [self.rows, self.cols]
        }

        /// Element type.
        pub fn dtype(&self) -> DType {
            self.dtype
        }

        /// The device that holds it.
        pub fn device(&self) -> Device {
            self.storage.device()
        }

        /// The GPU that holds it, and the matrix as kernels see it that count its rows and columns in 32
        /// bits.
        pub(crate) fn cuda(&self, op: &'static str) -> Result<(Arc<Cuda>, gpu::Mat)> {
            let (cuda, address) = self.storage.cuda(op)?;
            let data = address + (self.offset * self.dtype.bytes()) as u64;
            Ok((Arc::clone(cuda), gpu::Mat::new(data, [self.rows, self.cols], self.stride)?))
        }

        /// The same for kernels that count elements in 64 bits: flat buffers may be of any length.
        pub(crate) fn cuda_flat(&self, op: &'static str) -> Result<(Arc<Cuda>, gpu::Mat)> {
            let (cuda, address) = self.storage.cuda(op)?;
            let data = address + (self.offset * self.dtype.bytes()) as u64;
            let mat = gpu::Mat::of_any_length(data, [self.rows, self.cols], self.stride);
            Ok((Arc::clone(cuda), mat))
        }

        /// Only these columns.
        ///
        /// # Panics
        /// If the range lies outside the matrix: ranges come from the model's dimensions, checked at load.
        pub fn columns(self, range: Range<usize>) -> Self {
            assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
            Self { offset: self.offset + range.start, cols: range.len(), ..self }
        }

        /// Only these rows.
        ///
        /// # Panics
        /// If the range lies outside the matrix: ranges come from the model's dimensions, checked at load.
        pub fn row_range(self, range: Range<usize>) -> Self {
            assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
            Self { offset: self.offset + range.start * self.stride, rows: range.len(), ..self }
        }
    };
}

impl<'a> View<'a> {
    shape_methods!();

    /// The same elements in rows of another length.
    ///
    /// # Errors
    /// There are gaps between the rows, or another number of elements.
    pub fn rows_of(self, cols: usize) -> Result<View<'a>> {
        let len = self.rows * self.cols;
        if cols == 0 || self.stride != self.cols || !len.is_multiple_of(cols) {
            return Err(Error::shape(
                "rows of",
                "rows without gaps",
                &[self.rows, self.stride],
                &[self.rows, cols],
            ));
        }
        Ok(View { rows: len / cols, cols, stride: cols, ..self })
    }

    /// The matrix in host memory.
    pub(crate) fn cpu<T: Element>(&self, op: &'static str) -> Result<Mat<'a, T>> {
        let end = self.offset + extent(self.rows, self.cols, self.stride);
        let data = self.storage.slice::<T>().ok_or_else(|| self.storage.not_host(op, self.dtype))?;
        Ok(Mat { data: &data[self.offset..end], rows: self.rows, cols: self.cols, stride: self.stride })
    }
}

impl<'a> ViewMut<'a> {
    shape_methods!();

    /// Whether a GPU holds it.
    pub(crate) fn on_gpu(&self) -> bool {
        matches!(self.storage, Storage::Cuda(_))
    }

    /// The same elements in rows of another length.
    ///
    /// # Errors
    /// There are gaps between the rows, or another number of elements.
    pub fn rows_of(self, cols: usize) -> Result<ViewMut<'a>> {
        let rows = self.as_view().rows_of(cols)?.rows();
        Ok(ViewMut { rows, cols, stride: cols, ..self })
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { storage: self.storage, ..*self }
    }

    /// The same matrix, read only.
    pub fn as_view(&self) -> View<'_> {
        View {
            storage: self.storage,
            dtype: self.dtype,
            offset: self.offset,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        }
    }

    /// The matrix in host memory.
    pub(crate) fn cpu<T: Element>(self, op: &'static str) -> Result<MatMut<'a, T>> {
        let end = self.offset + extent(self.rows, self.cols, self.stride);
        let missing = self.storage.not_host(op, self.dtype);
        let data = self.storage.slice_mut::<T>().ok_or(missing)?;
        Ok(MatMut {
            data: &mut data[self.offset..end],
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_bring_every_type_back() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::U8] {
            let device = Device::cpu();
            let from = Tensor::from_f64(&device, dtype, &[0.0, 3.0, 200.0], &[3]).unwrap();
            let bytes = from.to_bytes().unwrap().into_owned();
            assert_eq!(bytes.len(), 3 * dtype.bytes());
            let mut to = Tensor::zeros(&device, dtype, &[3]).unwrap();
            to.set_bytes(&bytes).unwrap();
            assert_eq!(to.to_f64().unwrap(), [0.0, 3.0, 200.0]);
            assert!(to.set_bytes(&bytes[1..]).is_err());
        }
    }
}
