//! Kernels on the processor.

mod memory;
mod product;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::failed;
use crate::streams::{MAIN, SIDE, STREAMS};
use crate::{DType, Error, Grid, Kernel, Module, Result, Without};

pub(crate) use memory::Memory;
pub(crate) use product::product;

const HEADER: &str = include_str!("kernels/emulate.hpp");
const RACES: &str = include_str!("kernels/races.hpp");
const COMMON: &str = include_str!("kernels/common.cuh");

/// Runs a function in every thread of every block from the second triple on; says what was wrong, if anything
/// was.
type Run = unsafe extern "C" fn(
    extern "C" fn(*mut c_void),
    *mut c_void,
    *const u32,
    u32,
    *const u32,
) -> *const c_char;

/// How a GPU is emulated.
#[derive(Debug, Clone, Copy)]
pub struct Emulation {
    /// Bytes of memory that it pretends to have.
    pub memory_bytes: usize,
    /// What is not used although the device has it.
    pub without: Without,
    /// Whether kernels are watched, which is slower: a race on shared memory is an error of the launch, and
    /// an access behind the end of an allocation ends the process.
    pub is_watched: bool,
    /// Blocks that run of a launch, the last ones along each axis; `None`: all. Memory is zero where nobody
    /// wrote, and there once it is touched, so that kernels can work at the end of what would not fit.
    pub last_blocks: Option<u32>,
}

impl Default for Emulation {
    /// All memory that there is, and kernels that run whole and unwatched.
    fn default() -> Self {
        Emulation {
            memory_bytes: usize::MAX,
            without: Without::default(),
            is_watched: false,
            last_blocks: None,
        }
    }
}

/// A processor that takes the place of a GPU.
#[derive(Debug)]
pub(crate) struct Emulated {
    compiler: PathBuf,
    folder: PathBuf,
    memory: Memory,
    is_watched: bool,
    last_blocks: Option<u32>,
    modules: Mutex<HashMap<&'static str, libloading::Library>>,
    /// Copies that were prefetched.
    copies: AtomicUsize,
    /// What is being captured, if anything is.
    captured: Mutex<Option<Vec<Captured>>>,
}

/// Queued work, which may be run at any time.
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
    /// A device that is emulated so.
    pub fn new(emulation: &Emulation) -> Result<Self> {
        let compiler = PathBuf::from(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
        let there = Command::new(&compiler).arg("--version").output().is_ok_and(|out| out.status.success());
        if !there {
            return Err(Error::Failed(format!(
                "no C++ compiler `{}`: install g++ or clang, or name one in CXX",
                compiler.display()
            )));
        }
        let folder = kept_kernels().map_err(|e| failed("folder of emulated kernels", e))?;
        let Emulation { memory_bytes, is_watched, last_blocks, .. } = *emulation;
        Ok(Emulated {
            compiler,
            folder,
            memory: Memory::new(memory_bytes, is_watched || last_blocks.is_some()),
            is_watched,
            last_blocks,
            modules: Mutex::default(),
            copies: AtomicUsize::new(0),
            captured: Mutex::default(),
        })
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether new memory holds NaN, and not zeros that are there once they are touched.
    pub fn is_poisoned(&self) -> bool {
        self.last_blocks.is_none()
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

    /// Runs the work, or captures it.
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
        let first = blocks.map(|n| self.last_blocks.map_or(0, |last| n.saturating_sub(last)));
        Ok(move || {
            let _turn = lock(&TURN);
            let mut launch = Launch { function, args };
            // SAFETY: the kernel takes one structure by value, which `A` mirrors, and its library stays
            // loaded as long as the device. The caller vouches for the addresses among the arguments. What is
            // wrong is said in a static buffer, which nobody else writes during our turn.
            let wrong = unsafe {
                let data = (&raw mut launch).cast();
                let wrong = run(enter::<A>, data, blocks.as_ptr(), grid.threads, first.as_ptr());
                (!wrong.is_null()).then(|| CStr::from_ptr(wrong).to_string_lossy().into_owned())
            };
            wrong.map_or(Ok(()), |wrong| Err(failed(&format!("kernel `{name}`"), wrong)))
        })
    }

    /// Compiles a module, or takes it from the folder that keeps them.
    fn load(&self, module: &Module) -> Result<libloading::Library> {
        let races = if self.is_watched { RACES } else { "" };
        let source =
            format!("{HEADER}\n{races}\n{COMMON}\n#line 1 \"{}.cu\"\n{}", module.name, module.source);
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
        let [file, object] = ["cpp", "o"].map(|extension| beside.with_extension(extension));
        std::fs::write(&file, source).map_err(|e| failed("source of an emulated kernel", e))?;
        // Symbols are hidden, so that no module takes the variables of another for its own.
        let mut compile = Command::new(&self.compiler);
        compile.args(["-std=c++17", "-O2", "-fPIC", "-w", "-fno-strict-aliasing", "-fvisibility=hidden"]);
        if self.is_watched {
            compile.arg("-fsanitize=thread");
        }
        compile.arg("-c").arg("-o").args([&object, &file]);
        // Linked on its own: the sanitizer's runtime would come with it, and races.hpp has one.
        let mut link = Command::new(&self.compiler);
        link.args(["-shared", "-o"]).args([&beside, &object]);
        let done = [compile, link].into_iter().try_for_each(|mut command| {
            let output = command.output().map_err(|e| failed("C++ compiler", e))?;
            match output.status.success() {
                true => Ok(()),
                false => Err(failed("C++ compiler", String::from_utf8_lossy(&output.stderr))),
            }
        });
        // Leftovers are harmless.
        let _ = (std::fs::remove_file(&file), std::fs::remove_file(&object));
        done?;
        std::fs::rename(&beside, to).map_err(|e| failed("emulated kernel", e))
    }
}

/// Sets bytes of a range that the caller owns.
pub(crate) fn set_bytes(address: u64, value: u8, bytes: usize) {
    // SAFETY: the caller owns this range of an allocation.
    unsafe { std::ptr::write_bytes(address as *mut u8, value, bytes) }
}
