//! A frozen weight, in any of the ways that it can be stored.

use super::packed::Packed;
use super::quantised::{Fp8, NextUse, Quantised, Resident};
use crate::{DType, Device, Error, Result, Tensor};

/// A frozen weight as it is stored.
#[derive(Debug)]
pub enum Weight {
    /// `[out, in]` in the computing type, or in bf16 and widened part by part as it is used.
    Dense(Tensor),
    /// `[out, in]` in 2 to 8 bits in host memory or in a file, dequantised part by part as it is used.
    Quantised(Quantised),
    /// In the order in which the processor multiplies it.
    Packed(Packed),
    /// `[out, in]` in 2 to 8 bits for a GPU, in its memory or copied there for each use, dequantised whole as
    /// it is used.
    Resident(Box<Resident>),
    /// `[out, in]` in 8-bit floats in a GPU's memory, which its tensor cores multiply as they are. Products
    /// round their other operand to 8-bit floats too.
    Fp8(Box<Fp8>),
}

impl Weight {
    /// The weight packed, if this processor multiplies packed ones of its type faster. Products of a bf16
    /// weight then round their other operand to bf16 too, which not every caller wants: with `exact` they
    /// stay as they are.
    ///
    /// # Errors
    /// Out of memory.
    pub fn packed(self, exact: bool) -> Result<Self> {
        match self {
            Weight::Dense(w) => Ok(Packed::pack(&w, exact)?.map_or(Weight::Dense(w), Weight::Packed)),
            other => Ok(other),
        }
    }

    /// The weight in the device's memory. Nothing changes on the CPU.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn into_device(self, device: &Device) -> Result<Self> {
        match (self, device) {
            (Weight::Dense(w), _) => Ok(Weight::Dense(w.into_device(device)?)),
            (Weight::Quantised(w), Device::Cuda(_)) => {
                Ok(Weight::Resident(Box::new(Resident::new(&w, device)?)))
            }
            (other, _) => Ok(other),
        }
    }

    /// The weight for a device that does not keep it: a quantised one stays with the host, and a GPU copies
    /// it for each use. Others, and all on a CPU, as [`Weight::into_device`].
    ///
    /// # Errors
    /// Out of device memory.
    pub fn lent_to(self, device: &Device) -> Result<Self> {
        match (self, device) {
            (Weight::Quantised(w), Device::Cuda(_)) => {
                Ok(Weight::Resident(Box::new(Resident::away(w, device))))
            }
            (other, _) => other.into_device(device),
        }
    }

    /// The weight as a GPU multiplies 8-bit floats, where it lies in the memory of one that does and its
    /// shape allows it; else as it is. Takes 2 bytes per weight in place of what it took before.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn into_fp8(self) -> Result<Self> {
        let device = match &self {
            Weight::Dense(w) => w.device(),
            Weight::Resident(w) => w.device(),
            Weight::Quantised(_) | Weight::Packed(_) | Weight::Fp8(_) => return Ok(self),
        };
        if !device.fp8_products() || !Fp8::fits(self.shape()) {
            return Ok(self);
        }
        Ok(match self {
            Weight::Dense(w) => Weight::Fp8(Box::new(Fp8::from_dense(&w)?)),
            Weight::Resident(w) => Weight::Fp8(Box::new(Fp8::from_resident(*w)?)),
            other => other,
        })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Weight::Resident(w) => w.shape(),
            Weight::Fp8(w) => w.shape(),
            Weight::Dense(w) => [w.shape()[0], w.shape()[1]],
            Weight::Quantised(w) => w.shape(),
            Weight::Packed(w) => w.shape(),
        }
    }

    /// Tells whoever holds it that it is read soon, or not for a while. Only quantised weights can lie in a
    /// file.
    pub fn prefetch(&self, next: NextUse) {
        match self {
            Weight::Quantised(w) => w.prefetch(next),
            Weight::Resident(w) => w.prefetch(next),
            Weight::Dense(_) | Weight::Packed(_) | Weight::Fp8(_) => {}
        }
    }

    /// Gives the GPU back the memory of a weight that lies in a file too and is copied for every use from now
    /// on. Whether that made room.
    pub fn release(&self) -> bool {
        if let Weight::Resident(w) = self { w.release() } else { false }
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(w) => w.len() * w.dtype().bytes(),
            Weight::Quantised(w) => w.bytes(),
            Weight::Packed(w) => w.bytes(),
            Weight::Resident(w) => w.bytes(),
            Weight::Fp8(w) => w.bytes(),
        }
    }

    /// The weights that a GPU multiplies by, if they are not stored so: `[out, in]` in the computing type.
    pub(crate) fn scratch(&self, dtype: DType) -> Result<Option<Tensor>> {
        match self {
            Weight::Resident(w) => Ok(Some(w.to_dense(dtype)?)),
            Weight::Fp8(w) => Ok(Some(w.to_dense(dtype)?)),
            Weight::Dense(w) if w.dtype() != dtype => Ok(Some(w.to_dtype(dtype)?)),
            _ => Ok(None),
        }
    }

    /// The matrix itself, where it is one.
    pub(crate) fn dense(&self, op: &'static str) -> Result<&Tensor> {
        match self {
            Weight::Dense(w) => Ok(w),
            _ => Err(Error::Place { op, expected: "a GPU", got: "host memory" }),
        }
    }
}
