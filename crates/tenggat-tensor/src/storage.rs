//! Memory of a tensor, wherever it is.

use std::borrow::Cow;
use std::sync::Arc;

use tenggat_gpu::{Buffer, Cuda};

use crate::cpu::{self, Element};
use crate::{DType, Device, Error, Result};

/// Memory of a tensor; goes back to the pool of its device on drop.
#[derive(Debug)]
pub(crate) enum Storage {
    /// Host memory.
    Host(cpu::Storage),
    /// Memory of a GPU.
    Cuda(Buffer),
}

impl Storage {
    /// Room for `len` elements, contents unspecified.
    pub fn new(device: &Device, dtype: DType, len: usize) -> Result<Self> {
        Ok(match device {
            Device::Cpu(pool) => Storage::Host(pool.take(dtype, len)),
            Device::Cuda(cuda) => Storage::Cuda(Buffer::new(cuda, len * dtype.bytes())?),
        })
    }

    pub fn device(&self) -> Device {
        match self {
            Storage::Host(storage) => Device::Cpu(storage.pool().clone()),
            Storage::Cuda(storage) => Device::Cuda(Arc::clone(storage.cuda())),
        }
    }

    /// Why there is no host slice of elements of a type.
    pub fn not_host(&self, op: &'static str, dtype: DType) -> Error {
        match self {
            Storage::Host(_) => Error::DType { op, dtype, device: "cpu" },
            Storage::Cuda(_) => Error::Place { op, expected: "host memory", got: "a GPU" },
        }
    }

    /// Its elements, if they are of this type and in host memory.
    pub fn slice<T: Element>(&self) -> Option<&[T]> {
        match self {
            Storage::Host(storage) => storage.slice(),
            Storage::Cuda(_) => None,
        }
    }

    /// Its elements, if they are of this type and in host memory.
    pub fn slice_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        match self {
            Storage::Host(storage) => storage.slice_mut(),
            Storage::Cuda(_) => None,
        }
    }

    /// The GPU that holds it, and the address of its first byte.
    pub fn cuda(&self, op: &'static str) -> Result<(&Arc<Cuda>, u64)> {
        match self {
            Storage::Host(_) => Err(Error::Place { op, expected: "a GPU", got: "host memory" }),
            Storage::Cuda(storage) => Ok((storage.cuda(), storage.address())),
        }
    }

    /// Its first `len` elements in memory order.
    pub fn bytes(&self, dtype: DType, len: usize) -> Result<Cow<'_, [u8]>> {
        match self {
            Storage::Host(storage) => storage.bytes(dtype, len).map(Cow::Borrowed),
            Storage::Cuda(storage) => {
                let mut bytes = vec![0; len * dtype.bytes()];
                storage.cuda().download(storage.address(), &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Takes over the first elements in memory order.
    pub fn set_bytes(&mut self, dtype: DType, bytes: &[u8]) -> Result<()> {
        match self {
            Storage::Host(storage) => {
                storage.bytes_mut(dtype, bytes.len() / dtype.bytes())?.copy_from_slice(bytes);
                Ok(())
            }
            Storage::Cuda(storage) => Ok(storage.cuda().upload(bytes, storage.address())?),
        }
    }
}
