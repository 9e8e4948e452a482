//! NVIDIA GPUs: memory, kernels and products of one device, in one main queue.
//!
//! Everything that is asked of a [`Cuda`] is done in the order in which it was asked, some time later; only reading values
//! back waits. Copies that are asked for [`ahead`] go beside that until they are wanted. Libraries are found at run time ([`library`]), kernels are compiled when a device is opened and kept on
//! disk ([`compile`]).
//!
//! A device can also be *emulated*: the same kernels, compiled as C++, run on the processor with host memory in the place
//! of the device's. It takes the same path from op to kernel and shows wrong indices, sums and barriers on machines
//! without a GPU; tests use it.

mod ahead;
mod blas;
mod compile;
pub(crate) mod dnn;
mod emulated;
mod gpu;
mod kernel;
mod lanes;
mod library;
mod memory;
mod recording;
mod staging;
#[cfg(all(test, target_os = "linux"))]
mod stand_in;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use ahead::Coming;
pub(crate) use blas::{Epilogue, Factor, Product};
pub use compile::{ARCHITECTURES, Compiled};
use emulated::Emulated;
use gpu::Gpu;
pub(crate) use kernel::{Grid, Kernel, Mat, Module, int, width};
pub(crate) use memory::Storage;
pub use recording::Recording;

use crate::{DType, Error, Result};

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folders with NVIDIA's libraries, before all other places.
    pub libraries: Vec<PathBuf>,
    /// Folder that keeps compiled kernels and plans for the next time; without one they are made again.
    pub cache: Option<PathBuf>,
    /// Number of the GPU among those that the driver shows.
    pub ordinal: usize,
}

#[derive(Debug)]
enum Machine {
    Gpu(Box<Gpu>),
    Emulated(Emulated),
}

/// One device.
pub struct Cuda {
    machine: Machine,
    pool: memory::Pool,
    is_recording: AtomicBool,
    /// Lane that is asked.
    lane: AtomicUsize,
    /// Integers that kernels read from memory, by value: lengths of prompts come again and again.
    constants: Mutex<HashMap<Vec<i32>, u64>>,
    /// What makes it slower than it could be.
    notes: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Everything on a device names it.
        write!(f, "Cuda({})", self.description())
    }
}

impl Cuda {
    /// The GPU that the options name, with these kernels.
    ///
    /// # Errors
    /// No driver, no GPU, a library that is missing or a kernel that does not compile: the text says which, and what
    /// installs it.
    pub(crate) fn open(options: &Options, kernels: &[&'static Module]) -> Result<Arc<Self>> {
        let (gpu, notes) = Gpu::open(options, kernels)?;
        let cuda = Self::new(Machine::Gpu(Box::new(gpu)));
        notes.into_iter().for_each(|note| cuda.note(note));
        Ok(Arc::new(cuda))
    }

    /// A stand-in with so many bytes of memory that runs kernels on the processor. It needs a C++ compiler (`c++`, or
    /// what `CXX` names).
    ///
    /// # Errors
    /// There is no compiler.
    pub fn emulated(memory_bytes: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::new(Machine::Emulated(Emulated::new(memory_bytes)?))))
    }

    fn new(machine: Machine) -> Self {
        Cuda {
            machine,
            pool: memory::Pool::default(),
            is_recording: AtomicBool::new(false),
            lane: AtomicUsize::new(lanes::MAIN),
            constants: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// What it is, for people.
    pub fn description(&self) -> String {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.description(),
            Machine::Emulated(_) => "emulated GPU".into(),
        }
    }

    /// What it works with, for people.
    pub fn versions(&self) -> String {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.versions(),
            Machine::Emulated(_) => "kernels as C++".into(),
        }
    }

    /// What makes it slower than it could be, for people.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// Free and total memory, bytes.
    ///
    /// # Errors
    /// The device failed.
    pub fn memory(&self) -> Result<(usize, usize)> {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.memory(),
            Machine::Emulated(emulated) => Ok(emulated.memory()),
        }
    }

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// Something that was queued failed.
    pub fn synchronise(&self) -> Result<()> {
        self.expect_direct("waiting for the GPU")?;
        match &self.machine {
            Machine::Gpu(gpu) => gpu.synchronise(),
            Machine::Emulated(_) => Ok(()),
        }
    }

    pub(crate) fn live_bytes(&self) -> usize {
        self.pool.live_bytes()
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.pool.peak_bytes()
    }

    pub(crate) fn trim(&self) {
        self.pool.trim(self);
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.allocate(bytes),
            Machine::Emulated(emulated) => emulated.allocate(bytes),
        }
    }

    fn release(&self, address: u64, bytes: usize) {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.release(address),
            Machine::Emulated(emulated) => emulated.release(address, bytes),
        }
    }

    /// Makes what nobody wrote show itself, where that costs nothing that matters.
    fn poison(&self, address: u64, bytes: usize) -> Result<()> {
        match &self.machine {
            Machine::Gpu(_) => Ok(()),
            // NaN in every type of float.
            Machine::Emulated(_) => self.set_bytes(address, 0xff, bytes),
        }
    }

    /// Sets bytes of the device's memory.
    pub(crate) fn set_bytes(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.set_bytes(self.lane(), address, value, bytes),
            Machine::Emulated(emulated) => emulated.run(self.lane(), move || {
                emulated::set_bytes(address, value, bytes);
                Ok(())
            }),
        }
    }

    /// Copies into the device's memory. `from` may be changed as soon as this returns.
    pub(crate) fn upload(&self, from: &[u8], address: u64) -> Result<()> {
        self.expect_direct("a copy to the GPU")?;
        match &self.machine {
            Machine::Gpu(gpu) => gpu.upload(from, address),
            Machine::Emulated(emulated) => {
                emulated.upload(from, address);
                Ok(())
            }
        }
    }

    /// Address of these integers in the device's memory, where they stay.
    pub(crate) fn constants(&self, values: &[i32]) -> Result<u64> {
        let mut constants = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&address) = constants.get(values) {
            return Ok(address);
        }
        self.expect_direct("a new constant")?;
        let address = self.allocate(constant_bytes(values))?;
        self.upload(bytemuck::cast_slice(values), address)?;
        constants.insert(values.to_vec(), address);
        Ok(address)
    }

    /// Copies out of the device's memory, after all that was asked for before.
    pub(crate) fn download(&self, address: u64, to: &mut [u8]) -> Result<()> {
        self.expect_direct("a copy from the GPU")?;
        match &self.machine {
            Machine::Gpu(gpu) => gpu.download(address, to),
            Machine::Emulated(emulated) => {
                emulated.download(address, to);
                Ok(())
            }
        }
    }

    /// Queues a kernel. `A` mirrors the kernel's structure of arguments, field by field, with `repr(C)`.
    ///
    /// # Errors
    /// There is no kernel for these types, or the launch failed.
    pub(crate) fn launch<A: Copy + Send + Sync + 'static>(
        &self,
        kernel: Kernel,
        types: &[DType],
        grid: Grid,
        args: A,
    ) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        match &self.machine {
            Machine::Gpu(gpu) => gpu.launch(self.lane(), kernel, types, grid, &args),
            Machine::Emulated(emulated) => {
                let call = emulated.call(kernel, types, grid, args)?;
                emulated.run(self.lane(), call)
            }
        }
    }

    /// Queues a matrix product.
    ///
    /// # Errors
    /// The library has no way of computing it, or failed.
    pub(crate) fn product(&self, product: Product) -> Result<()> {
        if product.rows == 0 || product.cols == 0 {
            return Ok(());
        }
        match &self.machine {
            Machine::Gpu(gpu) => gpu.product(self.lane(), product),
            Machine::Emulated(emulated) => emulated.run(self.lane(), move || {
                emulated::product(product);
                Ok(())
            }),
        }
    }

    /// Whether products of 8-bit floats with a scale per row and column are there: on compute capability 9.0 with cuBLAS
    /// 12.9 or newer, by the documentation; the library itself is asked.
    pub fn fp8_products(&self) -> bool {
        match &self.machine {
            Machine::Gpu(gpu) => gpu.fp8_products(),
            Machine::Emulated(_) => true,
        }
    }

    /// Whether a product of 8-bit floats can be computed: not every shape can.
    pub(crate) fn computes_fp8(&self, product: &Product) -> bool {
        product.fits_fp8()
            && match &self.machine {
                Machine::Gpu(gpu) => gpu.computes(product),
                Machine::Emulated(_) => true,
            }
    }

    /// What numbers of rows that differ from batch to batch are filled up to multiples of: there are plans and recordings for
    /// every number of rows, and products and attention go by tiles of this size or larger in any case.
    pub fn row_multiple(&self) -> usize {
        match &self.machine {
            Machine::Gpu(_) => 32,
            // The same on the scale of what it is used for.
            Machine::Emulated(_) => 8,
        }
    }

    /// cuDNN, if it is there.
    pub(crate) fn dnn(&self) -> Option<&dnn::Dnn> {
        match &self.machine {
            // It has one queue.
            Machine::Gpu(gpu) if self.lane() == lanes::MAIN => gpu.dnn(),
            _ => None,
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Tensors and recordings hold the device: all its memory is free by now. The driver would keep it for others that
        // have the device open.
        self.trim();
        let constants = std::mem::take(self.constants.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (values, address) in constants {
            self.release(address, constant_bytes(&values));
        }
    }
}

/// Bytes that integers for kernels take.
fn constant_bytes(values: &[i32]) -> usize {
    size_of_val(values).max(512)
}

/// NVIDIA's libraries that are found on this machine, the driver's aside.
pub fn libraries(options: &Options) -> Vec<PathBuf> {
    library::preload(&options.libraries)
}

/// Whether the driver's library is there, so that there may be a GPU.
pub fn driver_is_there() -> bool {
    // SAFETY: only asks whether a library can be opened.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// A failure that the device or one of its libraries reported.
fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Cuda(format!("{what}: {error}"))
}
