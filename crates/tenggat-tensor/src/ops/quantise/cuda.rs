//! Quantised matrices in a GPU's memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Format, Parts, Quantised, Use, part_bytes};
use crate::cuda::{Grid, Kernel, Mat, Module, int};
use crate::error::expect_shape;
use crate::{DType, Device, Result, Tensor, ViewMut};

pub(crate) const MODULE: Module =
    Module { name: "quantise", source: concat!(include_str!("op.cu"), include_str!("fp8.cu")) };

const UINT: [Kernel; 6] = [
    Kernel::new(&MODULE, "widen_uint2"),
    Kernel::new(&MODULE, "widen_uint3"),
    Kernel::new(&MODULE, "widen_uint4"),
    Kernel::new(&MODULE, "widen_uint5"),
    Kernel::new(&MODULE, "widen_uint6"),
    Kernel::new(&MODULE, "widen_uint7"),
];
const FLOAT8: Kernel = Kernel::new(&MODULE, "widen_float8");
const INT8: Kernel = Kernel::new(&MODULE, "widen_int8");
const FP8: Kernel = Kernel::new(&MODULE, "widen_fp8");

/// Weights that a thread takes.
const PER_THREAD: usize = 8;

/// Mirrors `Widen`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Widen {
    codes: u64,
    scales: u64,
    zero_points: u64,
    rows: i64,
    cols: i32,
    to: Mat,
}

/// A quantised matrix `[rows, cols]` whose arrays are in a GPU's memory.
#[derive(Debug)]
pub struct Resident {
    format: Format,
    shape: [usize; 2],
    device: Device,
    /// The arrays; `None` once they were [released](Resident::release).
    there: Mutex<Option<Parts<Tensor>>>,
    /// Where they came from, if that is a file.
    file: Option<Quantised>,
}

/// Copies the arrays of a matrix to a GPU.
fn place(matrix: &Quantised, device: &Device) -> Result<Parts<Tensor>> {
    let Parts { codes, scales, zero_points } = matrix.parts();
    let place = |bytes: &[u8]| -> Result<Tensor> {
        let mut there = Tensor::empty(device, DType::U8, &[bytes.len()])?;
        there.set_bytes(bytes)?;
        Ok(there)
    };
    Ok(Parts { codes: place(codes)?, scales: place(scales)?, zero_points: place(zero_points)? })
}

impl Resident {
    /// Copies a matrix to a GPU.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn new(matrix: &Quantised, device: &Device) -> Result<Self> {
        let there = place(matrix, device)?;
        let file = matrix.in_file().then(|| matrix.clone());
        if let Some(file) = &file {
            // Else the host's memory would fill with pages of weights that the GPU holds.
            file.expect(Use::Later);
        }
        Ok(Resident {
            format: matrix.format(),
            shape: matrix.shape(),
            device: device.clone(),
            there: Mutex::new(Some(there)),
            file,
        })
    }

    fn there(&self) -> MutexGuard<'_, Option<Parts<Tensor>>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives its memory back to the GPU if its arrays lie in a file too: from now on they are copied for every use. Whether
    /// that made room.
    pub fn release(&self) -> bool {
        self.file.is_some() && self.there().take().is_some()
    }

    /// Tells its file what is to come, if it was [released](Resident::release).
    pub fn expect(&self, coming: Use) {
        if let Some(file) = self.file.as_ref().filter(|_| self.there().is_none()) {
            file.expect(coming);
        }
    }

    /// The arrays, copied anew if they are not there.
    pub(super) fn into_parts(self) -> Result<Parts<Tensor>> {
        let there = self.there().take();
        there.map_or_else(|| self.copied(), Ok)
    }

    fn copied(&self) -> Result<Parts<Tensor>> {
        let file = self.file.as_ref().expect("only arrays that lie in a file are released");
        place(file, &self.device)
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The GPU that holds it.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Bytes of storage, scales included.
    pub fn bytes(&self) -> usize {
        let [rows, cols] = self.shape;
        let Parts { codes, scales, zero_points } = part_bytes(self.format, rows, cols);
        codes + scales + zero_points
    }

    /// The weights that it stands for, `[rows, cols]`, as f32 or bf16.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn widened(&self, dtype: DType) -> Result<Tensor> {
        let mut wide = Tensor::empty(&self.device, dtype, &self.shape)?;
        self.dequantise(wide.view_mut())?;
        Ok(wide)
    }

    /// Writes the weights that it stands for, `[rows, cols]`, as f32 or bf16.
    ///
    /// # Errors
    /// Shapes differ, or the device failed.
    pub fn dequantise(&self, to: ViewMut<'_>) -> Result<()> {
        const OP: &str = "dequantise";
        expect_shape(OP, "weights", &self.shape, &to.shape())?;
        let kernel = match self.format {
            Format::Uint(bits) => UINT[usize::from(bits) - 2],
            Format::QFloat8 | Format::Float8 => FLOAT8,
            Format::QInt8 | Format::Int8 => INT8,
        };
        let address = |tensor: &Tensor| Ok::<_, crate::Error>(tensor.view().cuda(OP)?.1.data);
        let there = self.there();
        let copied;
        let Parts { codes, scales, zero_points } = match &*there {
            Some(parts) => parts,
            None => {
                copied = self.copied()?;
                &copied
            }
        };
        widen(kernel, [address(codes)?, address(scales)?, address(zero_points)?], self.shape, to)
    }
}

/// The same of e4m3 codes `[rows, cols]` with f32 scales, one per row, rounded to bf16 as `float8` is.
pub(super) fn dequantise_fp8(codes: &Tensor, scales: &Tensor, to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "dequantise fp8";
    let address = |tensor: &Tensor| Ok::<_, crate::Error>(tensor.view().cuda(OP)?.1.data);
    widen(FP8, [address(codes)?, address(scales)?, 0], to.shape(), to)
}

fn widen(
    kernel: Kernel,
    [codes, scales, zero_points]: [u64; 3],
    [rows, cols]: [usize; 2],
    to: ViewMut<'_>,
) -> Result<()> {
    let (cuda, mat) = to.cuda("dequantise")?;
    let args = Widen { codes, scales, zero_points, rows: rows as i64, cols: int(cols), to: mat };
    cuda.launch(kernel, &[to.dtype()], Grid::covering(rows * cols.div_ceil(PER_THREAD)), args)
}

#[cfg(test)]
mod tests {
    use super::super::super::check::{gpu, randn};
    use super::*;

    /// The GPU's weights are the CPU's, bit for bit, in rows that are whole packs and rows that are not.
    #[test]
    fn gpus_dequantise_to_the_same_bits() {
        let Some(gpu) = gpu() else { return };
        for (rows, cols) in [(5, 320), (7, 64), (3, 37)] {
            let stored = randn(DType::BF16, &[rows, cols], 3);
            let stored = stored.host::<half::bf16>().unwrap();
            for name in
                ["uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "qfloat8", "float8", "qint8", "int8"]
            {
                let format: Format = name.parse().unwrap();
                if !format.fits(cols) {
                    continue;
                }
                let matrix = Quantised::quantise(format, stored, cols).unwrap();
                let resident = Resident::new(&matrix, &gpu).unwrap();
                assert_eq!((resident.bytes(), resident.shape()), (matrix.bytes(), [rows, cols]));
                for dtype in [DType::F32, DType::BF16] {
                    let mut got = Tensor::empty(&gpu, dtype, &[rows, cols]).unwrap();
                    resident.dequantise(got.view_mut()).unwrap();
                    let expected = matrix.dequantise(&Device::cpu(), dtype).unwrap();
                    assert_eq!(got.to_f64().unwrap(), expected.to_f64().unwrap(), "{name} as {dtype:?}");
                }
            }
        }
    }
}
