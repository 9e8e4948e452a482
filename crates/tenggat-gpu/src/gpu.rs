//! A GPU through the CUDA driver.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaGraph, CudaStream, result, sys};

use crate::blas::{Blas, Product};
use crate::compile::{Compiled, architecture, compile_all};
use crate::copier::{Copier, Source, Transfer};
use crate::dnn::Dnn;
use crate::error::failed;
use crate::library::preload;
use crate::staging::{SMALL, Staging};
use crate::streams::SIDE;
use crate::{DType, Error, Grid, Kernel, Module, Options, Result};

/// A context with its streams.
#[derive(Debug)]
pub(crate) struct Gpu {
    // Fields are dropped in this order: the libraries go before the streams and the context that they use.
    blas: Blas,
    /// cuDNN, or why there is none.
    dnn: Result<Dnn, String>,
    /// There from the first time that it is wanted.
    copier: Mutex<Option<Copier>>,
    /// Page-locked memory, if the driver has given any.
    staging: Mutex<Option<Staging>>,
    stream: Arc<CudaStream>,
    /// For captured work that goes in two streams.
    side: Arc<CudaStream>,
    context: Arc<CudaContext>,
    name: String,
    architecture: String,
    /// Folder that keeps compiled kernels.
    cache: Option<PathBuf>,
    /// Modules, by name, and the functions that were looked up in them.
    modules: Mutex<HashMap<&'static str, Loaded<sys::CUmodule>>>,
    functions: Mutex<HashMap<String, Loaded<sys::CUfunction>>>,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // The libraries free what they have in the context of this thread. Nothing can be done about one that
        // is gone.
        if self.bind().is_err() {
            return;
        }
        let _ = self.stream.synchronize();
        for module in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            // SAFETY: loaded once, and nothing runs any more. Nothing can be done about one that does not go.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

/// A handle of the driver, which may be used from any thread.
#[derive(Debug, Clone, Copy)]
struct Loaded<T>(T);

// SAFETY: the driver's handles are not bound to the thread that made them.
unsafe impl<T> Send for Loaded<T> {}
// SAFETY: the driver's handles may be used from several threads at once: it locks what it changes.
unsafe impl<T> Sync for Loaded<T> {}

/// Makes compiled kernels known to the driver, in the context of the calling thread.
fn load(name: &str, compiled: &Compiled) -> Result<Loaded<sys::CUmodule>> {
    // SAFETY: the image is a whole CUBIN, which the driver copies.
    let handle = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
    handle.map(Loaded).map_err(|e| failed(&format!("kernels `{name}`"), e))
}

/// An executable CUDA graph.
pub(crate) struct Exec(Mutex<CudaGraph>);

// SAFETY: the driver's handles are not bound to the thread that made them, and the lock keeps others off
// them.
unsafe impl Send for Exec {}
// SAFETY: every use of the graph goes through the mutex.
unsafe impl Sync for Exec {}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exec")
    }
}

impl Gpu {
    /// The GPU, and what makes it slower than it could be.
    pub fn open(options: &Options, kernels: &[&'static Module]) -> Result<(Self, Vec<String>)> {
        preload(&options.libraries);
        // SAFETY: only asks whether a library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Failed(
                "libcuda, the driver's library, was not found: install NVIDIA's driver, and in a container \
                 start it with `--gpus all`"
                    .into(),
            ));
        }
        let context = CudaContext::new(options.ordinal)
            .map_err(|e| failed(&format!("GPU {} does not open", options.ordinal), e))?;
        // SAFETY: memory is not the bindings' own, and streams wait for one another where this module says
        // so.
        unsafe { context.disable_event_tracking() };
        let driver = |what: &'static str| move |e| failed(what, e);
        let stream = context.new_stream().map_err(driver("stream"))?;
        let side = context.new_stream().map_err(driver("stream"))?;
        let name = context.name().map_err(driver("name of the GPU"))?;
        let (major, minor) = context.compute_capability().map_err(driver("compute capability"))?;
        let Some(architecture) = architecture((major as u32, minor as u32)) else {
            return Err(Error::Failed(format!(
                "{name} has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed"
            )));
        };
        let cache = options.cache.as_deref();
        let mut modules = HashMap::new();
        for (module, compiled) in compile_all(kernels, &architecture, cache)? {
            modules.insert(module, load(module, &compiled)?);
        }
        let blas = Blas::open([stream.cu_stream(), side.cu_stream()], !options.without.timing)?;
        let mut notes = Vec::new();
        let mut note = |what: &str, e: &dyn std::fmt::Display| notes.push(format!("{what}: {e}"));
        let dnn = match options.without.dnn {
            true => Err("TENGGAT_WITHOUT says so".into()),
            false => Dnn::open(stream.cu_stream().cast(), cache.map(Into::into)).map_err(|e| e.to_string()),
        };
        let dnn = dnn.inspect_err(|e| note("attention runs without tensor cores", e));
        let staging = Staging::new(&context)
            .inspect_err(|e| note("copies to the GPU are slow without page-locked memory", e));
        let gpu = Gpu {
            blas,
            dnn,
            copier: Mutex::default(),
            staging: Mutex::new(staging.ok()),
            stream,
            side,
            context,
            name,
            architecture,
            cache: options.cache.clone(),
            modules: Mutex::new(modules),
            functions: Mutex::default(),
        };
        Ok((gpu, notes))
    }

    pub fn description(&self) -> String {
        self.name.clone()
    }

    /// Versions of the libraries in use.
    pub fn versions(&self) -> String {
        let dnn = self.dnn.as_ref().map_or("no cuDNN".into(), |dnn| {
            let version = dnn.version();
            format!("cuDNN {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
        });
        // SAFETY: the library was loaded when the device was opened.
        let blas = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
        format!("kernels for {}, cuBLASLt {blas}, {dnn}", self.architecture)
    }

    /// Version of CUDA that the driver has; 0 if it does not say.
    pub fn driver_version(&self) -> i32 {
        let mut version = 0;
        // SAFETY: the driver was loaded when the device was opened, and writes one number.
        let _ = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        version
    }

    /// cuDNN, ready for calls from this thread.
    pub fn dnn(&self) -> Option<&Dnn> {
        self.bind().ok().and(self.dnn.as_ref().ok())
    }

    /// Why there is no cuDNN, unless that was requested.
    pub fn missing_dnn(&self) -> Option<&str> {
        self.dnn.as_ref().err().map(String::as_str)
    }

    /// Makes the context the calling thread's own, as every call of the driver needs it.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| failed("context", e))
    }

    /// Bytes of device memory that are free, and bytes in all.
    ///
    /// # Errors
    /// The driver failed.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        result::mem_get_info().map_err(|e| failed("memory of the GPU", e))
    }

    /// Waits until all work queued on the main stream is done.
    ///
    /// # Errors
    /// Earlier work failed.
    pub fn synchronise(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| failed("GPU", e))
    }

    /// Allocates device memory and returns its device address. The memory is not initialised.
    ///
    /// # Errors
    /// Out of device memory, or the driver failed.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: the pool frees it.
        unsafe { result::malloc_sync(bytes) }.map_err(|e| failed("allocation", e))
    }

    pub fn release(&self, address: u64) {
        if self.bind().is_ok() {
            // SAFETY: `allocate` gave it, and the pool gives it back once. Freeing waits for work that uses
            // it. Nothing can be done about memory that does not go.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    /// The stream of a number.
    fn stream(&self, stream: usize) -> sys::CUstream {
        if stream == SIDE { self.side.cu_stream() } else { self.stream.cu_stream() }
    }

    /// What is asked of the side stream from now on waits for what was asked of the main one so far.
    ///
    /// # Errors
    /// The driver failed.
    pub fn fork(&self) -> Result<()> {
        self.side.join(&self.stream).map_err(|e| failed("second stream", e))
    }

    /// What is asked of the main stream from now on waits for what was asked of the side stream so far.
    ///
    /// # Errors
    /// The driver failed.
    pub fn join(&self) -> Result<()> {
        self.stream.join(&self.side).map_err(|e| failed("second stream", e))
    }

    /// Queues a fill on a stream: `bytes` bytes from device address `address` on become `value`.
    ///
    /// # Errors
    /// The driver failed.
    pub fn set_bytes(&self, stream: usize, address: u64, value: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller owns this range of an allocation.
        unsafe { result::memset_d8_async(address, value, bytes, self.stream(stream)) }
            .map_err(|e| failed("memset", e))
    }

    /// Copies to device address `address`. The bytes are staged in page-locked memory before this returns, so
    /// `from` may be reused; the copy itself is queued on the main stream.
    ///
    /// # Errors
    /// The driver failed.
    pub fn upload(&self, from: &[u8], address: u64) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(staging) = staging.as_mut().filter(|_| from.len() > SMALL) {
            return staging.copy(from, address, &self.stream);
        }
        // SAFETY: the caller owns this range of an allocation. The driver copies ordinary memory before it
        // returns.
        unsafe { result::memcpy_htod_async(address, from, self.stream.cu_stream()) }
            .map_err(|e| failed("copy to the GPU", e))
    }

    /// Starts to copy into memory that is the caller's from here on in the main stream.
    ///
    /// # Errors
    /// The thread of copies stopped, or the driver failed.
    pub fn send(&self, from: Source, address: u64) -> Result<Arc<Transfer>> {
        let mut copier = self.copier.lock().unwrap_or_else(PoisonError::into_inner);
        let copier = match &mut *copier {
            Some(copier) => copier,
            none => none.insert(Copier::new(&self.context)?),
        };
        copier.send(from, address, &self.stream)
    }

    /// Makes the main stream wait for a copy.
    ///
    /// # Errors
    /// The copy failed.
    pub fn receive(&self, transfer: &Transfer) -> Result<()> {
        transfer.receive(&self.stream)
    }

    /// Copies from device address `address`, after all work queued before. The bytes are in `to` on return.
    ///
    /// # Errors
    /// Earlier work or the copy failed.
    pub fn download(&self, address: u64, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller owns this range of an allocation, and `to` is waited for.
        unsafe { result::memcpy_dtoh_async(to, address, self.stream.cu_stream()) }
            .map_err(|e| failed("copy from the GPU", e))?;
        self.synchronise()
    }

    /// Queues a kernel on a stream, with its arguments as one structure.
    ///
    /// # Errors
    /// The driver failed.
    pub fn launch<A: Copy>(
        &self,
        stream: usize,
        kernel: Kernel,
        types: &[DType],
        grid: Grid,
        args: &A,
    ) -> Result<()> {
        self.bind()?;
        let name = kernel.function(types);
        let function = self.function(kernel, &name)?;
        let [x, y, z] = grid.extents()?;
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one structure by value, which `A` mirrors; the driver copies it before it
        // returns.
        unsafe {
            let stream = self.stream(stream);
            let threads = (grid.threads, 1, 1);
            result::launch_kernel(function, (x, y, z), threads, grid.shared, stream, &mut params)
        }
        .map_err(|e| failed(&format!("kernel `{name}`"), e))
    }

    fn function(&self, kernel: Kernel, name: &str) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = functions.get(name) {
            return Ok(there.0);
        }
        let module = self.module(kernel.module)?;
        let text = CString::new(name).map_err(|e| failed(name, e))?;
        // SAFETY: modules stay loaded as long as the device.
        let function = unsafe { result::module::get_function(module.0, text) }
            .map_err(|e| failed(&format!("kernel `{name}`"), e))?;
        functions.insert(name.into(), Loaded(function));
        Ok(function)
    }

    /// The kernels of a module, which are compiled now if they were not when the device was opened.
    fn module(&self, module: &'static Module) -> Result<Loaded<sys::CUmodule>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = modules.get(module.name) {
            return Ok(*there);
        }
        let compiled = compile_all(&[module], &self.architecture, self.cache.as_deref())?;
        let (name, compiled) = compiled.first().ok_or_else(|| failed(module.name, "nothing was compiled"))?;
        let loaded = load(name, compiled)?;
        modules.insert(module.name, loaded);
        Ok(loaded)
    }

    /// From now on work is captured.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn begin_capture(&self) -> Result<()> {
        // Relaxed: memory may have to be allocated meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.stream.begin_capture(mode).map_err(|e| failed("recording", e))
    }

    /// The captured work.
    ///
    /// # Errors
    /// The captured work cannot be a graph.
    pub fn end_capture(&self) -> Result<Exec> {
        let graph =
            self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(|e| failed("recording", e))?;
        let graph = graph.ok_or_else(|| Error::Failed("recording: the driver made no graph of it".into()))?;
        graph.upload().map_err(|e| failed("recording", e))?;
        Ok(Exec(Mutex::new(graph)))
    }

    /// Ends a capture of which nothing is wanted, if one is under way.
    pub fn abandon_capture(&self) {
        let status = self.stream.capture_status();
        if !matches!(status, Ok(sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)) {
            // A failed capture ends with an error; there is nothing more to be done about it.
            let _ = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        }
    }

    /// Queues captured work.
    ///
    /// # Errors
    /// The driver failed.
    pub fn replay(&self, graph: &Exec) -> Result<()> {
        let graph = graph.0.lock().unwrap_or_else(PoisonError::into_inner);
        graph.launch().map_err(|e| failed("recorded work", e))
    }

    /// Queues a product, or says why there is no way of computing it; see [`Blas::product`].
    ///
    /// # Errors
    /// As [`Blas::product`].
    pub fn product(&self, stream: usize, product: Product) -> Result<Option<String>> {
        self.bind()?;
        self.blas.product(stream, product)
    }

    /// Whether products of 8-bit floats can be computed.
    pub fn fp8_products(&self) -> bool {
        self.bind().is_ok() && self.blas.computes_fp8()
    }

    /// Whether there is a way of computing a product.
    pub fn computes(&self, product: &Product) -> bool {
        self.bind().is_ok() && self.blas.computes(product)
    }
}
