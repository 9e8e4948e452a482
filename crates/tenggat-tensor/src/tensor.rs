//! Owned tensors and borrowed matrix views.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

use crate::cpu::{Element, Mat, MatMut, Storage};
use crate::error::expect_shape;
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
        let Device::Cpu(pool) = device;
        let storage = pool.take(dtype, shape.iter().product());
        Ok(Tensor { storage, dtype, shape: shape.to_vec() })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let mut tensor = Self::empty(device, dtype, shape)?;
        tensor.fill(0.0);
        Ok(tensor)
    }

    /// A tensor on the same device and of the same type with another shape, contents unspecified.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn empty_like(&self, shape: &[usize]) -> Result<Self> {
        Self::empty(&self.device(), self.dtype, shape)
    }

    /// A tensor with these values, rounded to `dtype`.
    ///
    /// # Errors
    /// The shape does not have as many elements as `data`.
    pub fn from_f64(device: &Device, dtype: DType, data: &[f64], shape: &[usize]) -> Result<Self> {
        Self::from_iter(device, dtype, data.len(), data.iter().copied(), shape)
    }

    /// A tensor with these values, rounded to `dtype`.
    ///
    /// # Errors
    /// The shape does not have as many elements as `data`.
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
        let mut tensor = Self::empty(device, dtype, shape)?;
        fn put<T: Element>(slice: &mut [T], values: impl Iterator<Item = f64>) {
            slice.iter_mut().zip(values).for_each(|(d, x)| *d = T::from_f64(x));
        }
        match dtype {
            DType::F32 => put::<f32>(tensor.host_mut()?, values),
            DType::F64 => put::<f64>(tensor.host_mut()?, values),
            DType::BF16 => put::<bf16>(tensor.host_mut()?, values),
            DType::U8 => put::<u8>(tensor.host_mut()?, values),
        }
        Ok(tensor)
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        Device::Cpu(self.storage.pool().clone())
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
        let mut out = Self::empty(&self.device(), dtype, &self.shape)?;
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
            DType::F32 => from::<f32>(self.host()?, &mut out)?,
            DType::F64 => from::<f64>(self.host()?, &mut out)?,
            DType::BF16 => from::<bf16>(self.host()?, &mut out)?,
            DType::U8 => from::<u8>(self.host()?, &mut out)?,
        }
        Ok(out)
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f64) {
        let n = self.len();
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
    }

    /// The elements as a host slice.
    ///
    /// # Errors
    /// The element type is another, or the tensor is not in host memory.
    pub fn host<T: Element>(&self) -> Result<&[T]> {
        let n = self.len();
        self.storage.slice().map(|s| &s[..n]).ok_or(Error::DType {
            op: "host slice",
            dtype: self.dtype,
            device: "cpu",
        })
    }

    /// The elements as a writable host slice.
    ///
    /// # Errors
    /// The element type is another, or the tensor is not in host memory.
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let (n, dtype) = (self.len(), self.dtype);
        self.storage.slice_mut().map(|s| &mut s[..n]).ok_or(Error::DType {
            op: "host slice",
            dtype,
            device: "cpu",
        })
    }

    /// The values as f32.
    ///
    /// # Errors
    /// Reading back from the device failed.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            DType::F32 => self.host::<f32>()?.to_vec(),
            DType::F64 => self.host::<f64>()?.iter().map(|&x| x as f32).collect(),
            DType::BF16 => self.host::<bf16>()?.iter().map(|x| x.to_f32()).collect(),
            DType::U8 => self.host::<u8>()?.iter().map(|&x| x.into()).collect(),
        })
    }

    /// The values as f64.
    ///
    /// # Errors
    /// Reading back from the device failed.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        Ok(match self.dtype {
            DType::F32 => self.host::<f32>()?.iter().map(|&x| x.into()).collect(),
            DType::F64 => self.host::<f64>()?.to_vec(),
            DType::BF16 => self.host::<bf16>()?.iter().map(|x| x.to_f64()).collect(),
            DType::U8 => self.host::<u8>()?.iter().map(|&x| x.into()).collect(),
        })
    }

    /// The elements in memory order, for files: little-endian as long as the machine is.
    ///
    /// # Errors
    /// Reading back from the device failed.
    pub fn to_bytes(&self) -> Result<Cow<'_, [u8]>> {
        let bytes: &[u8] = match self.dtype {
            DType::F32 => bytemuck::cast_slice(self.host::<f32>()?),
            DType::F64 => bytemuck::cast_slice(self.host::<f64>()?),
            DType::BF16 => bytemuck::cast_slice(self.host::<bf16>()?),
            DType::U8 => self.host::<u8>()?,
        };
        Ok(Cow::Borrowed(bytes))
    }

    /// Takes over elements that [`Tensor::to_bytes`] gave.
    ///
    /// # Errors
    /// Their number differs.
    pub fn set_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        expect_shape("set bytes", "bytes", &[self.len() * self.dtype.bytes()], &[bytes.len()])?;
        let own: &mut [u8] = match self.dtype {
            DType::F32 => bytemuck::cast_slice_mut(self.host_mut::<f32>()?),
            DType::F64 => bytemuck::cast_slice_mut(self.host_mut::<f64>()?),
            DType::BF16 => bytemuck::cast_slice_mut(self.host_mut::<bf16>()?),
            DType::U8 => self.host_mut::<u8>()?,
        };
        own.copy_from_slice(bytes);
        Ok(())
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
            Device::Cpu(self.storage.pool().clone())
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
        let data = self.storage.slice::<T>().ok_or(Error::DType { op, dtype: self.dtype, device: "cpu" })?;
        Ok(Mat { data: &data[self.offset..end], rows: self.rows, cols: self.cols, stride: self.stride })
    }
}

impl<'a> ViewMut<'a> {
    shape_methods!();

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
        let data =
            self.storage.slice_mut::<T>().ok_or(Error::DType { op, dtype: self.dtype, device: "cpu" })?;
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
