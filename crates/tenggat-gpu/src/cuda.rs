//! The device, which everything is asked of.
//!
//! Work is queued and done in the order of the calls; only reading values back waits. What is prefetched
//! ([`Prefetch`](crate::Prefetch)) goes beside that until it is wanted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::blas::Product;
use crate::emulated::{self, Emulated, Emulation};
use crate::gpu::Gpu;
use crate::kernel::{Grid, Kernel, Module};
use crate::memory::Pool;
use crate::options::{Options, Without};
use crate::streams::MAIN;
use crate::{DType, Error, Result, blas, dnn};

/// One device.
pub struct Cuda {
    backend: Backend,
    without: Without,
    pool: Pool,
    is_capturing: AtomicBool,
    /// Stream that is asked.
    stream: AtomicUsize,
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
    /// No driver, no GPU, a library that is missing or a kernel that does not compile: the text says which,
    /// and what installs it.
    pub fn open(options: &Options, kernels: &[&'static Module]) -> Result<Arc<Self>> {
        let (gpu, notes) = Gpu::open(options, kernels)?;
        let cuda = Self::new(Backend::Gpu(Box::new(gpu)), options.without);
        notes.into_iter().for_each(|note| cuda.note(note));
        Ok(Arc::new(cuda))
    }

    /// An emulated device with this many bytes of memory, which runs kernels on the processor. It needs a C++
    /// compiler (`c++`, or what `CXX` names).
    ///
    /// # Errors
    /// There is no compiler.
    pub fn emulated(memory_bytes: usize) -> Result<Arc<Self>> {
        Self::emulated_as(&Emulation { memory_bytes, ..Emulation::default() })
    }

    /// The same in another way.
    ///
    /// # Errors
    /// There is no compiler.
    pub fn emulated_as(emulation: &Emulation) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::new(Backend::Emulated(Emulated::new(emulation)?), emulation.without)))
    }

    fn new(backend: Backend, without: Without) -> Self {
        Cuda {
            pool: Pool::new(backend.is_guarded()),
            backend,
            without,
            is_capturing: AtomicBool::new(false),
            stream: AtomicUsize::new(MAIN),
            constants: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// What it is, for people.
    pub fn description(&self) -> String {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.description(),
            Backend::Emulated(_) => "emulated GPU".into(),
        }
    }

    /// What it works with, for people.
    pub fn versions(&self) -> String {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.versions(),
            Backend::Emulated(_) => "kernels as C++".into(),
        }
    }

    /// Version of CUDA that the driver has, `1000 · major + 10 · minor`; `None` for an emulated device.
    pub fn driver_version(&self) -> Option<i32> {
        match &self.backend {
            Backend::Gpu(gpu) => Some(gpu.driver_version()),
            Backend::Emulated(_) => None,
        }
    }

    /// What makes it slower than it could be, for people.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds to [`notes`](Self::notes), once.
    pub fn note(&self, note: String) {
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
        self.backend.memory()
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// Something that was queued failed.
    pub fn synchronise(&self) -> Result<()> {
        self.refuse_while_capturing("waiting for the GPU")?;
        match &self.backend {
            Backend::Gpu(gpu) => gpu.synchronise(),
            Backend::Emulated(_) => Ok(()),
        }
    }

    /// Bytes held by live buffers.
    pub fn live_bytes(&self) -> usize {
        self.pool.live_bytes()
    }

    /// Largest number of bytes ever held at once, live and recycled buffers together.
    pub fn peak_bytes(&self) -> usize {
        self.pool.peak_bytes()
    }

    /// Bytes of the device's memory that are held now, live or not.
    pub fn held_bytes(&self) -> usize {
        self.pool.held_bytes()
    }

    /// Frees recycled buffers.
    pub fn trim(&self) {
        self.pool.trim(&self.backend);
    }

    /// Address and size class of a buffer of at least this many bytes, for [`Buffer`](crate::Buffer).
    pub(crate) fn take(&self, bytes: usize) -> Result<(u64, usize)> {
        let (address, class) = self.pool.take(&self.backend, bytes)?;
        self.poison(address, class)?;
        Ok((address, class))
    }

    pub(crate) fn give_back(&self, address: u64, class: usize) {
        self.pool.give_back(address, class);
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Stream that is asked now.
    pub(crate) fn stream(&self) -> usize {
        self.stream.load(Relaxed)
    }

    /// From now on this stream is asked.
    pub(crate) fn set_stream(&self, stream: usize) {
        self.stream.store(stream, Relaxed);
    }

    /// Whether work is being captured.
    pub fn is_capturing(&self) -> bool {
        self.is_capturing.load(Relaxed)
    }

    /// Notes whether work is being captured; returns what was noted before.
    pub(crate) fn set_capturing(&self, capturing: bool) -> bool {
        self.is_capturing.swap(capturing, Relaxed)
    }

    /// Refuses what cannot be part of a CUDA graph.
    pub(crate) fn refuse_while_capturing(&self, what: &str) -> Result<()> {
        match self.is_capturing() {
            false => Ok(()),
            true => Err(Error::Failed(format!("{what} cannot be recorded"))),
        }
    }

    /// Makes what nobody wrote show itself, where that costs nothing that matters.
    fn poison(&self, address: u64, bytes: usize) -> Result<()> {
        match &self.backend {
            // NaN in every type of float.
            Backend::Emulated(emulated) if emulated.is_poisoned() => self.set_bytes(address, 0xff, bytes),
            _ => Ok(()),
        }
    }

    /// Sets bytes of the device's memory, which the caller owns.
    ///
    /// # Errors
    /// The device failed.
    pub fn set_bytes(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.set_bytes(self.stream(), address, value, bytes),
            Backend::Emulated(emulated) => emulated.run(self.stream(), move || {
                emulated::set_bytes(address, value, bytes);
                Ok(())
            }),
        }
    }

    /// Copies to an address of the device's memory, which the caller owns, behind all work so far. `from` may
    /// be changed as soon as this returns.
    ///
    /// # Errors
    /// Work is being captured, or the device failed.
    pub fn upload(&self, from: &[u8], address: u64) -> Result<()> {
        self.refuse_while_capturing("a copy to the GPU")?;
        match &self.backend {
            Backend::Gpu(gpu) => gpu.upload(from, address),
            Backend::Emulated(emulated) => {
                emulated.upload(from, address);
                Ok(())
            }
        }
    }

    /// Address of these integers in the device's memory, where they stay.
    ///
    /// # Errors
    /// Out of device memory; the device failed; they are new and work is being captured.
    pub fn constants(&self, values: &[i32]) -> Result<u64> {
        let mut constants = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&address) = constants.get(values) {
            return Ok(address);
        }
        self.refuse_while_capturing("a new constant")?;
        let address = self.backend.allocate(constant_bytes(values))?;
        self.upload(bytemuck::cast_slice(values), address)?;
        constants.insert(values.to_vec(), address);
        Ok(address)
    }

    /// Copies from an address of the device's memory, after all work queued before; the bytes are there on
    /// return.
    ///
    /// # Errors
    /// Work is being captured, or the device or queued work failed.
    pub fn download(&self, address: u64, to: &mut [u8]) -> Result<()> {
        self.refuse_while_capturing("a copy from the GPU")?;
        match &self.backend {
            Backend::Gpu(gpu) => gpu.download(address, to),
            Backend::Emulated(emulated) => {
                emulated.download(address, to);
                Ok(())
            }
        }
    }

    /// Queues a kernel. `A` mirrors the kernel's structure of arguments, field by field, with `repr(C)`.
    ///
    /// # Errors
    /// There is no kernel for these types, or the launch failed.
    pub fn launch<A: Copy + Send + Sync + 'static>(
        &self,
        kernel: Kernel,
        types: &[DType],
        grid: Grid,
        args: A,
    ) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        match &self.backend {
            Backend::Gpu(gpu) => gpu.launch(self.stream(), kernel, types, grid, &args),
            Backend::Emulated(emulated) => {
                let call = emulated.call(kernel, types, grid, args)?;
                emulated.run(self.stream(), call)
            }
        }
    }

    /// Queues a matrix product, or a batch of them. A batch that cuBLASLt has no way of computing is computed
    /// one product after another; what it has no way of computing at all, our own kernel computes, slowly.
    ///
    /// # Errors
    /// The library failed; it has no way of computing a product of 8-bit floats; it was not asked about this
    /// shape before work was captured, and cannot be while it is.
    pub fn product(&self, product: Product) -> Result<()> {
        if product.rows == 0 || product.cols == 0 {
            return Ok(());
        }
        match &self.backend {
            Backend::Gpu(gpu) => match gpu.product(self.stream(), product)? {
                None => Ok(()),
                Some(_) if product.batch.count > 1 => product.each().try_for_each(|one| self.product(one)),
                Some(why) => {
                    self.note(format!("some products are computed by a slow kernel: {why}"));
                    self.product_by_kernel(product)
                }
            },
            Backend::Emulated(emulated) => emulated.run(self.stream(), move || {
                emulated::product(product);
                Ok(())
            }),
        }
    }

    /// Queues a matrix product on our own kernel, which stands in for cuBLASLt where that has no way.
    ///
    /// # Errors
    /// It is a product of 8-bit floats, or the launch failed.
    pub fn product_by_kernel(&self, product: Product) -> Result<()> {
        product.each().try_for_each(|product| {
            let Some((kernel, types, grid, args)) = blas::fallback(&product) else {
                return Err(Error::DType { op: "matrix product", dtype: DType::U8 });
            };
            self.launch(kernel, &types, grid, args)
        })
    }

    /// What is not used although the device has it.
    pub fn without(&self) -> Without {
        self.without
    }

    /// Whether the library has a way of computing a product, which is not computed. An emulated device has
    /// one for all.
    pub fn has_a_way(&self, product: &Product) -> bool {
        match &self.backend {
            Backend::Gpu(gpu) => gpu.computes(product),
            Backend::Emulated(_) => true,
        }
    }

    /// Whether products of 8-bit floats can be computed: from compute capability 8.9 on, by the
    /// documentation; the library itself is asked.
    pub fn fp8_products(&self) -> bool {
        match &self.backend {
            Backend::Gpu(gpu) => !self.without.fp8 && gpu.fp8_products(),
            Backend::Emulated(_) => !self.without.fp8,
        }
    }

    /// Whether a product of 8-bit floats can be computed: not every shape can, and a scale per row and column
    /// ([`Factor::scales`](crate::Factor)) only on compute capability 9.0 with cuBLAS 12.9 or newer.
    pub fn computes_fp8(&self, product: &Product) -> bool {
        if self.without.fp8 || self.without.fp8_scales && product.has_scales() {
            return false;
        }
        product.fits_fp8()
            && match &self.backend {
                Backend::Gpu(gpu) => gpu.computes(product),
                Backend::Emulated(_) => true,
            }
    }

    /// What numbers of rows that differ from batch to batch are filled up to multiples of: there are plans
    /// and graphs for every number of rows, and products and attention go by tiles of this size or larger
    /// in any case.
    pub fn row_multiple(&self) -> usize {
        match &self.backend {
            Backend::Gpu(_) => 32,
            // The same on the scale of what it is used for.
            Backend::Emulated(_) => 8,
        }
    }

    /// Why there is no cuDNN although nobody said to go without; `None` if there is, and on an emulated
    /// device.
    pub fn missing_dnn(&self) -> Option<&str> {
        match &self.backend {
            Backend::Gpu(gpu) if !self.without.dnn => gpu.missing_dnn(),
            _ => None,
        }
    }

    /// cuDNN, if it is installed.
    pub fn dnn(&self) -> Option<&dnn::Dnn> {
        match &self.backend {
            // It has one stream.
            Backend::Gpu(gpu) if self.stream() == MAIN => gpu.dnn(),
            _ => None,
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Tensors and graphs hold the device: all its memory is free by now. The driver would keep it for
        // others that have the device open.
        self.trim();
        let constants = std::mem::take(self.constants.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (values, address) in constants {
            self.backend.release(address, constant_bytes(&values));
        }
    }
}

/// Bytes that integers for kernels take.
fn constant_bytes(values: &[i32]) -> usize {
    size_of_val(values).max(1)
}
