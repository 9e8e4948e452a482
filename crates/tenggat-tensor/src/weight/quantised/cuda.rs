//! Quantised matrices in a GPU's memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tenggat_gpu::{Cuda, Grid, Kernel, Module, Prefetch, int};

use super::{Bytes, Format, NextUse, Parts, Quantised, part_bytes};
use crate::{DType, Device, Result, Tensor};

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

/// Weights of a pack.
const PACK: usize = 8;
/// Packs of `uintN` that a thread takes; `PACKS` of `op.cu`.
const PACKS: usize = 4;
/// Most threads that take a row of bytes.
const MOST_THREADS: usize = 512;

/// Mirrors `Widen`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Widen {
    codes: u64,
    scales: u64,
    zero_points: u64,
    to: u64,
    cols: i32,
    packs: i32,
}

/// A quantised matrix `[rows, cols]` for a GPU, which has its arrays in memory all the time or for each use.
#[derive(Debug)]
pub struct Resident {
    format: Format,
    shape: [usize; 2],
    device: Device,
    place: Mutex<Place>,
    /// Where the arrays came from, if they can come from there again.
    host: Option<Quantised>,
}

/// Where the arrays are.
#[derive(Debug)]
enum Place {
    /// In the GPU's memory, to stay.
    Here(Parts<Tensor>),
    /// On their way there, or there, until they are not used for a while.
    Coming(Parts<Prefetch>),
    /// With the host.
    Away,
}

/// Copies the arrays of a matrix to a GPU.
fn copied(matrix: &Quantised, device: &Device) -> Result<Parts<Tensor>> {
    let Parts { codes, scales, zero_points } = matrix.parts();
    let copied = |bytes: &[u8]| -> Result<Tensor> {
        let mut there = Tensor::empty(device, DType::U8, &[bytes.len()])?;
        there.set_bytes(bytes)?;
        Ok(there)
    };
    Ok(Parts { codes: copied(codes)?, scales: copied(scales)?, zero_points: copied(zero_points)? })
}

/// Starts to copy the arrays of a matrix to a GPU.
fn sent(matrix: &Quantised, cuda: &Arc<Cuda>) -> Result<Parts<Prefetch>> {
    let Parts { codes, scales, zero_points } = matrix.parts();
    let sent = |bytes: &Bytes| Prefetch::new(cuda, bytes.len(), Box::new(bytes.clone()));
    Ok(Parts { codes: sent(codes)?, scales: sent(scales)?, zero_points: sent(zero_points)? })
}

impl Resident {
    /// Copies a matrix to a GPU.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn new(matrix: &Quantised, device: &Device) -> Result<Self> {
        let there = copied(matrix, device)?;
        let host = matrix.in_file().then(|| matrix.clone());
        if let Some(file) = &host {
            // Else the host's memory would fill with pages of weights that the GPU holds.
            file.prefetch(NextUse::Later);
        }
        Ok(Self::placed(matrix.format(), matrix.shape(), device, host, Place::Here(there)))
    }

    /// A matrix that stays with the host and is copied to a GPU for each use.
    pub fn away(matrix: Quantised, device: &Device) -> Self {
        Self::placed(matrix.format(), matrix.shape(), device, Some(matrix), Place::Away)
    }

    fn placed(
        format: Format,
        shape: [usize; 2],
        device: &Device,
        host: Option<Quantised>,
        place: Place,
    ) -> Self {
        Resident { format, shape, device: device.clone(), place: Mutex::new(place), host }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives its memory back to the GPU if its arrays lie in a file too: from now on they are copied for each
    /// use. Whether that made room.
    pub fn release(&self) -> bool {
        let mut place = self.place();
        let can_go = self.host.is_some() && matches!(*place, Place::Here(_));
        if can_go {
            *place = Place::Away;
        }
        can_go
    }

    /// Has it copied ahead of a use that is to come, or lets go of such a copy; does nothing if it is there
    /// to stay. A copy that there is no room for is made when it is used.
    pub fn prefetch(&self, next: NextUse) {
        let mut place = self.place();
        let (Some(host), Device::Cuda(cuda)) = (&self.host, &self.device) else { return };
        match (next, &*place) {
            (_, Place::Here(_)) | (NextUse::Soon, Place::Coming(_)) => {}
            (NextUse::Soon, Place::Away) => {
                host.prefetch(NextUse::Soon);
                if let Ok(parts) = sent(host, cuda) {
                    *place = Place::Coming(parts);
                }
            }
            (NextUse::Later, _) => *place = Place::Away,
        }
    }

    /// The arrays, copied anew if they are not there.
    pub(super) fn into_parts(self) -> Result<Parts<Tensor>> {
        match std::mem::replace(&mut *self.place(), Place::Away) {
            Place::Here(parts) => Ok(parts),
            Place::Coming(_) | Place::Away => self.copied(),
        }
    }

    fn copied(&self) -> Result<Parts<Tensor>> {
        let host = self.host.as_ref().expect("only arrays that the host has too are let go of");
        copied(host, &self.device)
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
    pub fn to_dense(&self, dtype: DType) -> Result<Tensor> {
        const OP: &str = "dequantise";
        let mut wide = Tensor::empty(&self.device, dtype, &self.shape)?;
        let kernel = match self.format {
            Format::Uint(bits) => UINT[usize::from(bits) - 2],
            Format::QFloat8 | Format::Float8 => FLOAT8,
            Format::QInt8 | Format::Int8 => INT8,
        };
        let address = |tensor: &Tensor| Ok::<_, crate::Error>(tensor.view().cuda(OP)?.1.data);
        let place = self.place();
        let copied;
        let addresses = |parts: &Parts<Tensor>| {
            Ok::<_, crate::Error>([
                address(&parts.codes)?,
                address(&parts.scales)?,
                address(&parts.zero_points)?,
            ])
        };
        let addresses = match &*place {
            Place::Here(parts) => addresses(parts)?,
            Place::Coming(Parts { codes, scales, zero_points }) => {
                [codes.arrived()?.address(), scales.arrived()?.address(), zero_points.arrived()?.address()]
            }
            Place::Away => {
                copied = self.copied()?;
                addresses(&copied)?
            }
        };
        launch_dequantise(kernel, addresses, &mut wide)?;
        Ok(wide)
    }
}

/// Writes what e4m3 codes `[rows, cols]` with f32 scales, one per row, stand for, rounded to bf16 as `float8`
/// is.
pub(super) fn dequantise_fp8(codes: &Tensor, scales: &Tensor, to: &mut Tensor) -> Result<()> {
    let address = |tensor: &Tensor| Ok::<_, crate::Error>(tensor.view().cuda("dequantise fp8")?.1.data);
    launch_dequantise(FP8, [address(codes)?, address(scales)?, 0], to)
}

fn launch_dequantise(kernel: Kernel, [codes, scales, zero_points]: [u64; 3], to: &mut Tensor) -> Result<()> {
    let dtype = to.dtype();
    let [rows, cols] = to.view().shape();
    let (cuda, mat) = to.view_mut().cuda("dequantise")?;
    let packs = cols.div_ceil(PACK);
    let args =
        Widen { codes, scales, zero_points, to: mat.data, cols: int(cols)?, packs: int(rows * packs)? };
    let grid = match UINT.iter().any(|uint| uint.name == kernel.name) {
        true => Grid::covering((rows * packs).div_ceil(PACKS)),
        // A row in as few turns of a block as there can be, all of them full.
        false => {
            let turns = packs.div_ceil(MOST_THREADS).max(1);
            Grid::threads(rows, packs.div_ceil(turns).next_multiple_of(32).max(32) as u32)
        }
    };
    Ok(cuda.launch(kernel, &[dtype], grid, args)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{self, gpu, randn};

    /// The GPU's weights are the CPU's, bit for bit, in rows that are whole packs and rows that are not.
    #[test]
    fn gpus_dequantise_to_the_same_bits() {
        let Some(gpu) = gpu() else { return };
        // Rows that several blocks share, or several turns of one; rows that are not whole packs.
        for (rows, cols) in [(5, 320), (7, 64), (3, 37), (3, 5120)] {
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
                    let got = resident.to_dense(dtype).unwrap();
                    let expected = matrix.dequantise(&Device::cpu(), dtype).unwrap();
                    assert_eq!(got.to_f64().unwrap(), expected.to_f64().unwrap(), "{name} as {dtype:?}");
                }
            }
        }
    }

    /// A matrix that stays with the host gives the same weights whether it is copied ahead of its use or for
    /// it.
    #[test]
    fn gpus_take_what_comes_ahead() {
        let Some(gpu) = check::open_gpu() else { return };
        let (rows, cols) = (64, 2048);
        let stored = randn(DType::BF16, &[rows, cols], 3);
        let matrix =
            Quantised::quantise(Format::Uint(3), stored.host::<half::bf16>().unwrap(), cols).unwrap();
        let expected = matrix.dequantise(&Device::cpu(), DType::F32).unwrap().to_f32().unwrap();
        let away = Resident::away(matrix, &gpu);
        let idle = gpu.live_bytes();
        for _ in 0..3 {
            for next in [Some(NextUse::Soon), None, Some(NextUse::Later), None] {
                next.into_iter().for_each(|next| away.prefetch(next));
                assert_eq!(matches!(*away.place(), Place::Coming(_)), gpu.live_bytes() > idle);
                assert_eq!(away.to_dense(DType::F32).unwrap().to_f32().unwrap(), expected);
            }
            assert_eq!(gpu.live_bytes(), idle);
        }
        away.prefetch(NextUse::Soon);
        assert!(gpu.live_bytes() > idle && !away.release(), "a copy is not what there was");
    }

    /// Where there is no room to have it copied ahead, it is copied for its use.
    #[test]
    fn what_cannot_come_ahead_comes_later() {
        let bytes = 1 << 20;
        let Some(gpu) = check::emulated_gpu(bytes) else { return };
        let matrix = Quantised::quantise(Format::Int8, &[half::bf16::ONE; 4096], 64).unwrap();
        let expected = matrix.dequantise(&Device::cpu(), DType::F32).unwrap().to_f32().unwrap();
        let away = Resident::away(matrix, &gpu);
        let all = Tensor::empty(&gpu, DType::U8, &[bytes - 4096]).unwrap();
        away.prefetch(NextUse::Soon);
        assert!(matches!(*away.place(), Place::Away));
        drop(all);
        gpu.trim();
        assert_eq!(away.to_dense(DType::F32).unwrap().to_f32().unwrap(), expected);
    }
}
