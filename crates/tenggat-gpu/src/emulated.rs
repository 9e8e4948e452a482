//! Kernels on the processor.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;
use sha2::{Digest, Sha256};

use crate::blas::{Epilogue, Product};
use crate::error::failed;
use crate::streams::{MAIN, SIDE, STREAMS};
use crate::{DType, Error, Grid, Kernel, Module, Result, float8};

const HEADER: &str = include_str!("kernels/emulate.hpp");
const COMMON: &str = include_str!("kernels/common.cuh");
/// What the device's own allocator promises.
const ALIGNMENT: usize = 512;

/// Runs a function in every thread of every block.
type Run = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, *const u32, u32);

/// A processor that takes the place of a GPU.
#[derive(Debug)]
pub(crate) struct Emulated {
    compiler: PathBuf,
    folder: PathBuf,
    /// Bytes that it pretends to have, and bytes in use.
    memory: usize,
    used: AtomicUsize,
    modules: Mutex<HashMap<&'static str, libloading::Library>>,
    /// Copies that were prefetched.
    copies: AtomicUsize,
    /// What is being captured, if anything is.
    captured: Mutex<Option<Vec<Captured>>>,
}

/// Something that was asked for and can be done at any time.
pub(crate) struct Call(Box<dyn Fn() -> Result<()> + Send + Sync>);

impl Call {
    fn run(&self) -> Result<()> {
        (self.0)()
    }
}

/// A part of captured work.
#[derive(Debug)]
pub(crate) enum Captured {
    /// For a stream.
    Call(usize, Call),
    /// From here on streams do not wait for one another.
    Fork,
    /// From here on they are one.
    Join,
}

/// Runs captured work. Between fork and join the streams take turns of so many calls. Whoever relies on an
/// order that is not promised gets other numbers.
pub(crate) fn replay(work: &[Captured], side_first: bool, turn: usize) -> Result<()> {
    let mut streams: [VecDeque<&Call>; STREAMS] = Default::default();
    let mut is_forked = false;
    for part in work {
        match part {
            Captured::Call(stream, call) if is_forked => streams[*stream].push_back(call),
            Captured::Call(_, call) => call.run()?,
            Captured::Fork => is_forked = true,
            Captured::Join => {
                is_forked = false;
                let mut stream = if side_first { SIDE } else { MAIN };
                while streams.iter().any(|calls| !calls.is_empty()) {
                    let some = turn.min(streams[stream].len());
                    streams[stream].drain(..some).try_for_each(Call::run)?;
                    stream = (stream + 1) % STREAMS;
                }
            }
        }
    }
    Ok(())
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Call")
    }
}

/// Shared memory and fibers are static in each module: one launch at a time.
static TURN: Mutex<()> = Mutex::new(());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a fiber gets.
#[derive(Clone, Copy)]
struct Launch<A> {
    function: unsafe extern "C" fn(A),
    args: A,
}

extern "C" fn enter<A: Copy>(call: *mut c_void) {
    // SAFETY: `Emulated::call` passes a `Launch<A>` that outlives the run, and the kernel takes an `A` by
    // value.
    unsafe {
        let call = &*call.cast::<Launch<A>>();
        (call.function)(call.args);
    }
}

/// The folder that keeps compiled kernels: what lies in it is run, so it must be nobody else's to write.
#[cfg(target_os = "linux")]
fn kept_kernels() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let user = std::fs::metadata("/proc/self")?.uid();
    let folder = std::env::temp_dir().join(format!("tenggat-emulated-kernels-{user}"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let found = std::fs::symlink_metadata(&folder)?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 {
        return Ok(folder);
    }
    Err(std::io::Error::other(format!("{} is another user's, or others may write to it", folder.display())))
}

/// The folder that keeps compiled kernels; temporary folders are each user's own here.
#[cfg(not(target_os = "linux"))]
fn kept_kernels() -> std::io::Result<PathBuf> {
    let folder = std::env::temp_dir().join("tenggat-emulated-kernels");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

impl Emulated {
    /// One with so many bytes of memory.
    pub fn new(memory: usize) -> Result<Self> {
        let compiler = PathBuf::from(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
        let there = Command::new(&compiler).arg("--version").output().is_ok_and(|out| out.status.success());
        if !there {
            return Err(Error::Failed(format!(
                "no C++ compiler `{}`: install g++ or clang, or name one in CXX",
                compiler.display()
            )));
        }
        let folder = kept_kernels().map_err(|e| failed("folder of emulated kernels", e))?;
        Ok(Emulated {
            compiler,
            folder,
            memory,
            used: AtomicUsize::new(0),
            modules: Mutex::default(),
            copies: AtomicUsize::new(0),
            captured: Mutex::default(),
        })
    }

    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|e| failed("allocation", e))?;
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.memory {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::Failed("out of memory".into()));
        }
        // SAFETY: pools ask for at least 512 bytes.
        let address = unsafe { alloc(layout) };
        if address.is_null() { Err(Error::Failed("out of memory".into())) } else { Ok(address as u64) }
    }

    pub fn release(&self, address: u64, bytes: usize) {
        if let Ok(layout) = Layout::from_size_align(bytes, ALIGNMENT) {
            // SAFETY: `allocate` gave this address for this size, and the pool gives it back once.
            unsafe { dealloc(address as *mut u8, layout) }
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Free and total memory, bytes.
    pub fn memory(&self) -> (usize, usize) {
        (self.memory.saturating_sub(self.used.load(Ordering::Relaxed)), self.memory)
    }

    pub fn upload(&self, from: &[u8], address: u64) {
        // SAFETY: the caller owns this range of an allocation.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) }
    }

    /// Makes a copy that somebody will wait for at once, or every second time gives it back to be made then.
    pub fn defer<C: FnOnce() + Send + 'static>(&self, copy: C) -> Option<Box<dyn FnOnce() + Send>> {
        if self.copies.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            return Some(Box::new(copy));
        }
        copy();
        None
    }

    pub fn download(&self, address: u64, to: &mut [u8]) {
        // SAFETY: the caller owns this range of an allocation.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) }
    }

    /// Does what was asked for, or captures it.
    pub fn run(&self, stream: usize, call: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<()> {
        if let Some(work) = &mut *lock(&self.captured) {
            work.push(Captured::Call(stream, Call(Box::new(call))));
            return Ok(());
        }
        call()
    }

    /// From now on calls are captured.
    pub fn begin_capture(&self) {
        *lock(&self.captured) = Some(Vec::new());
    }

    /// The captured work; from now on calls are done.
    pub fn end_capture(&self) -> Vec<Captured> {
        lock(&self.captured).take().unwrap_or_default()
    }

    /// The work that is being captured goes in two streams from here on.
    pub fn fork(&self) {
        lock(&self.captured).iter_mut().for_each(|work| work.push(Captured::Fork));
    }

    /// The streams of the work that is being captured wait for one another.
    pub fn join(&self) {
        lock(&self.captured).iter_mut().for_each(|work| work.push(Captured::Join));
    }

    /// A kernel with its arguments.
    pub fn call<A: Copy + Send + Sync + 'static>(
        &self,
        kernel: Kernel,
        types: &[DType],
        grid: Grid,
        args: A,
    ) -> Result<impl Fn() -> Result<()> + Send + Sync + use<A>> {
        let mut modules = lock(&self.modules);
        let library = match modules.entry(kernel.module.name) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(self.load(kernel.module)?),
        };
        let name = kernel.function(types);
        let missing = |e| failed(&format!("kernel `{name}`"), e);
        // SAFETY: kernels take one structure by value, which `A` mirrors; the header defines `emulate`.
        // Libraries stay loaded as long as the device, and whoever calls holds that.
        let (function, run) = unsafe {
            let function = *library.get::<unsafe extern "C" fn(A)>(name.as_bytes()).map_err(missing)?;
            (function, *library.get::<Run>(b"emulate").map_err(missing)?)
        };
        let blocks = grid.extents()?;
        Ok(move || {
            let _turn = lock(&TURN);
            let mut launch = Launch { function, args };
            // SAFETY: as above; the addresses among the arguments are the caller's.
            unsafe { run(enter::<A>, (&raw mut launch).cast(), blocks.as_ptr(), grid.threads) }
            Ok(())
        })
    }

    /// Compiles a module, or takes it from the folder that keeps them.
    fn load(&self, module: &Module) -> Result<libloading::Library> {
        let source = format!("{HEADER}\n{COMMON}\n#line 1 \"{}.cu\"\n{}", module.name, module.source);
        let hash = Sha256::digest(&source).iter().take(8).map(|b| format!("{b:02x}")).collect::<String>();
        let path = self.folder.join(format!("{}-{hash}.so", module.name));
        if !path.is_file() {
            self.compile(&source, &path)?;
        }
        // SAFETY: the file is what `compile` made of our own source; it runs nothing when it is loaded.
        unsafe { libloading::Library::new(&path) }.map_err(|e| failed(module.name, e))
    }

    fn compile(&self, source: &str, to: &Path) -> Result<()> {
        let beside = to.with_extension(format!("{}", std::process::id()));
        let file = beside.with_extension("cpp");
        std::fs::write(&file, source).map_err(|e| failed("source of an emulated kernel", e))?;
        let output = Command::new(&self.compiler)
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-w", "-fno-strict-aliasing", "-o"])
            .args([&beside, &file])
            .output()
            .map_err(|e| failed("C++ compiler", e))?;
        // A leftover is harmless.
        let _ = std::fs::remove_file(&file);
        if !output.status.success() {
            return Err(failed("C++ compiler", String::from_utf8_lossy(&output.stderr)));
        }
        std::fs::rename(&beside, to).map_err(|e| failed("emulated kernel", e))
    }
}

/// Sets bytes of a range that the caller owns.
pub(crate) fn set_bytes(address: u64, value: u8, bytes: usize) {
    // SAFETY: the caller owns this range of an allocation.
    unsafe { std::ptr::write_bytes(address as *mut u8, value, bytes) }
}

/// An operand in 32 bits, row by row.
fn read(address: u64, dtype: DType, [rows, cols]: [usize; 2], stride: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            let at = i * stride + j;
            // SAFETY: the product's operands lie in live allocations of this type and extent.
            values.push(unsafe {
                match dtype {
                    DType::BF16 => (*(address as *const bf16).add(at)).to_f32(),
                    DType::U8 => float8::decode(*(address as *const u8).add(at)),
                    _ => *(address as *const f32).add(at),
                }
            });
        }
    }
    values
}

/// The processor's own product, rounded as the GPU's would be: once, at the end.
pub(crate) fn product(p: Product) {
    let (m, n, k) = (p.rows, p.cols, p.inner);
    let a = read(p.a.address, p.a.dtype, if p.a.transposed { [k, m] } else { [m, k] }, p.a.stride);
    let b = read(p.b.address, p.b.dtype, if p.b.transposed { [n, k] } else { [k, n] }, p.b.stride);
    let old = (p.beta != 0.0).then(|| read(p.c, p.c_dtype, [m, n], p.c_stride));
    let mut c = vec![0.0f32; m * n];
    // Strides from column to column and from row to row.
    let strides = |transposed: bool, rows: usize, cols: usize| match transposed {
        true => (rows as isize, 1),
        false => (1, cols as isize),
    };
    let ((a_cs, a_rs), (b_cs, b_rs)) = (strides(p.a.transposed, m, k), strides(p.b.transposed, k, n));
    // SAFETY: the vectors are as long as extents and strides say.
    unsafe {
        let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
        let threads = gemm::Parallelism::Rayon(0);
        let (from, to) = ((a, a_cs, a_rs, b, b_cs, b_rs), (c, 1, n as isize));
        gemm::gemm(
            m, n, k, to.0, to.1, to.2, false, from.0, from.1, from.2, from.3, from.4, from.5, 0.0, p.alpha,
            false, false, false, threads,
        );
    }
    let row = |address: u64, dtype, len| read(address, dtype, [1, len], len);
    let bias = match p.epilogue {
        Epilogue::None => None,
        Epilogue::Bias(address) => Some(row(address, p.c_dtype, n)),
    };
    // Codes are multiplied as they are, and the sums scaled.
    let scales = p.has_scales().then(|| (row(p.a.scales, DType::F32, m), row(p.b.scales, DType::F32, n)));
    for (at, sum) in c.into_iter().enumerate() {
        let mut value = scales.as_ref().map_or(sum, |(a, b)| sum * (a[at / n] * b[at % n]));
        value += old.as_ref().map_or(0.0, |old| p.beta * old[at]);
        value += bias.as_ref().map_or(0.0, |bias| bias[at % n]);
        let at = at / n * p.c_stride + at % n;
        // SAFETY: as above, and the product owns what it writes.
        unsafe {
            match p.c_dtype {
                DType::BF16 => *(p.c as *mut bf16).add(at) = bf16::from_f32(value),
                _ => *(p.c as *mut f32).add(at) = value,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mat;

    /// Asks `element` where a thread far behind 2³¹ works.
    const PROBE: Module = Module {
        name: "probe",
        source: "
            struct Probe { Mat<float> of; int64_t block; int64_t* found; };
            KERNEL void probe(Probe a) {
            #ifdef EMULATED
                emulated::block_index.x = a.block;
            #endif
                int64_t row = -1, col = -1;
                if (threadIdx.x != 0) return;
                a.found[2] = element<4>(row, col, a.of);
                a.found[0] = row;
                a.found[1] = col;
            }",
    };

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Probe {
        of: Mat,
        block: i64,
        found: u64,
    }

    /// Kernels on single elements reach all of a flat adapter of more than 2³¹ of them.
    #[test]
    fn elements_behind_2_to_the_31_are_found() {
        let Ok(device) = Emulated::new(usize::MAX) else {
            assert!(std::env::var_os("TENGGAT_REQUIRE_CXX").is_none(), "a C++ compiler");
            return eprintln!("skipped: no C++ compiler");
        };
        const LEN: usize = 9_437_184 * 256;
        let at = |shape: [usize; 2], element: usize| {
            let mut found = [0i64; 3];
            let of = Mat::of_any_length(512, shape, shape[1]);
            let args = Probe { of, block: (element / 4 / 256) as i64, found: found.as_mut_ptr() as u64 };
            let call = device.call(Kernel::new(&PROBE, "probe"), &[], Grid::blocks(1), args).unwrap();
            device.run(MAIN, call).unwrap();
            found
        };
        for last in [(1 << 31) - 1024, 1 << 31, LEN - 1024] {
            assert_eq!(at([1, LEN], last), [0, last as i64, 1]);
            assert_eq!(at([LEN / 2048, 2048], last), [(last / 2048) as i64, (last % 2048) as i64, 1]);
        }
        assert_eq!(at([1, LEN], LEN)[2], 0, "behind the end is nothing");
        // So many packs of four that their number takes more than 32 bits.
        let long = 5 << 32;
        assert_eq!(at([long / 1024, 1024], long - 1024), [(long / 1024 - 1) as i64, 0, 1]);
    }
}
