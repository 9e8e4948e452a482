//! The stand-ins for NVIDIA's libraries (`stand-in/`) against what the libraries' documentation promises.
//! Streams run when somebody waits, in any order that is allowed.
#![cfg(target_os = "linux")]
#![expect(clippy::print_stderr, reason = "a test says why it is skipped")]

use std::collections::BTreeSet;
use std::env;
use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

/// Variable that tells tests in a child process that the libraries are stand-ins.
const STAND_IN: &str = "TENGGAT_STAND_IN";

/// Runs the other tests in a process that takes the stand-ins for NVIDIA's libraries.
#[test]
fn stand_ins_do_what_is_promised() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("stand-in/build.sh");
    let built = Command::new("sh").arg(script).output().unwrap();
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr);
        let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let there = Command::new(compiler).arg("--version").output().is_ok();
        assert!(!there, "{why}");
        tenggat_skip::skipped_without_cxx(why);
        return;
    }
    let folder = String::from_utf8(built.stdout).unwrap();
    let run = |tests: &[&str], at_least: usize| {
        let child = Command::new(env::current_exe().unwrap())
            .args(tests)
            .env("LD_LIBRARY_PATH", folder.trim())
            .envs([(STAND_IN, "1"), ("TENGGAT_TEST_GPU", "1")])
            .env_remove("TENGGAT_REQUIRE_CUDA_LIBRARIES")
            .output()
            .unwrap();
        let [out, err] = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        let passed = out.split_once("test result: ok. ").and_then(|(_, rest)| rest.split(' ').next());
        let passed: usize = passed.and_then(|n| n.parse().ok()).unwrap_or(0);
        let good = child.status.success() && passed >= at_least;
        assert!(good, "{}, {passed} passed\n{out}\n{err}", child.status);
    };
    run(&["gpu"], 7);
}

/// The stand-ins' context; none outside the child process.
fn context() -> Option<Arc<CudaContext>> {
    if env::var_os(STAND_IN).is_none() {
        eprintln!("skipped: no stand-ins here");
        return None;
    }
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the tests order their streams themselves.
    unsafe { context.disable_event_tracking() };
    Some(context)
}

/// What a call that is not allowed was answered with.
fn refused<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |e| e.0)
}

/// A few bytes of the device's memory.
struct Bytes(u64);

impl Bytes {
    const LEN: usize = 16;

    fn new() -> Self {
        // SAFETY: freed on drop.
        Bytes(unsafe { result::malloc_sync(Self::LEN) }.unwrap())
    }

    fn set(&self, value: u8, stream: &CudaStream) {
        // SAFETY: the allocation is as long.
        unsafe { result::memset_d8_async(self.0, value, Self::LEN, stream.cu_stream()) }.unwrap();
    }

    fn copy_from(&self, other: &Bytes, stream: &CudaStream) {
        // SAFETY: both allocations are as long.
        unsafe { result::memcpy_dtod_async(self.0, other.0, Self::LEN, stream.cu_stream()) }.unwrap();
    }

    fn upload(&self, from: &[u8; Self::LEN], stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: the allocation is as long.
        unsafe { result::memcpy_htod_async(self.0, from, stream.cu_stream()) }
    }

    /// The byte that all are.
    fn read(&self, stream: &CudaStream) -> u8 {
        let mut to = [0; Self::LEN];
        // SAFETY: the allocation is as long, and the copy is waited for.
        unsafe { result::memcpy_dtoh_async(&mut to, self.0, stream.cu_stream()) }.unwrap();
        stream.synchronize().unwrap();
        assert_eq!(to, [to[0]; Self::LEN]);
        to[0]
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated once. Nothing can be done about memory that does not go.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
const NO_FLAGS: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);
/// More often than any order of two streams can stay away.
const TIMES: usize = 100;

/// What a stream reads that does not wait for another that writes is old or new; one that waits reads what is
/// new.
#[test]
fn streams_of_a_gpu_run_in_any_order() {
    let Some(context) = context() else { return };
    let [first, second] = [(); 2].map(|()| context.new_stream().unwrap());
    let x = Bytes::new();
    let read = |waits: bool| {
        x.set(1, &first);
        first.synchronize().unwrap();
        x.set(2, &first);
        if waits {
            second.join(&first).unwrap();
        }
        let seen = x.read(&second);
        first.synchronize().unwrap();
        seen
    };
    assert_eq!((0..TIMES).map(|_| read(false)).collect::<BTreeSet<_>>(), [1, 2].into());
    assert_eq!((0..TIMES).map(|_| read(true)).collect::<BTreeSet<_>>(), [2].into());
}

/// The same within a graph.
#[test]
fn streams_in_graphs_of_a_gpu_run_in_any_order() {
    let Some(context) = context() else { return };
    let [first, second] = [(); 2].map(|()| context.new_stream().unwrap());
    let (x, y) = (Bytes::new(), Bytes::new());
    let read = |waits: bool| {
        first.begin_capture(RELAXED).unwrap();
        if !waits {
            second.join(&first).unwrap();
        }
        x.set(2, &first);
        if waits {
            second.join(&first).unwrap();
        }
        y.copy_from(&x, &second);
        first.join(&second).unwrap();
        let graph = first.end_capture(NO_FLAGS).unwrap().unwrap();
        let launch = || {
            x.set(1, &first);
            graph.launch().unwrap();
            y.read(&first)
        };
        (0..TIMES).map(|_| launch()).collect::<BTreeSet<_>>()
    };
    assert_eq!(read(false), [1, 2].into());
    assert_eq!(read(true), [2].into());
}

/// A copy from pinned memory reads it when its turn comes, one from other memory at once.
#[test]
fn a_gpu_reads_pinned_memory_late() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let x = Bytes::new();
    // SAFETY: so many bytes, freed below.
    let pinned = unsafe { result::malloc_host(Bytes::LEN, 0) }.unwrap();
    // SAFETY: as above; nobody else has the address.
    let bytes = unsafe { &mut *pinned.cast::<[u8; Bytes::LEN]>() };
    *bytes = [1; Bytes::LEN];
    x.upload(bytes, &stream).unwrap();
    *bytes = [2; Bytes::LEN];
    assert_eq!(x.read(&stream), 2);
    x.upload(bytes, &stream).unwrap();
    stream.synchronize().unwrap();
    *bytes = [3; Bytes::LEN];
    assert_eq!(x.read(&stream), 2);
    let mut pageable = [4; Bytes::LEN];
    x.upload(&pageable, &stream).unwrap();
    pageable = [5; Bytes::LEN];
    assert_eq!((x.read(&stream), pageable[0]), (4, 5));
    // A recorded copy reads it each time.
    stream.begin_capture(RELAXED).unwrap();
    x.upload(bytes, &stream).unwrap();
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    for value in [6, 7] {
        *bytes = [value; Bytes::LEN];
        graph.launch().unwrap();
        assert_eq!(x.read(&stream), value);
    }
    // Memory that goes too early shows.
    x.upload(bytes, &stream).unwrap();
    // SAFETY: the address is not used any more.
    unsafe { result::free_host(pinned) }.unwrap();
    assert_eq!(x.read(&stream), 0xff);
}

#[test]
fn captures_of_a_gpu_are_joined() {
    let Some(context) = context() else { return };
    let [first, second, third] = [(); 3].map(|()| context.new_stream().unwrap());
    let x = Bytes::new();
    let record = |joins: bool| {
        first.begin_capture(RELAXED).unwrap();
        second.join(&first).unwrap();
        x.set(1, &second);
        if joins {
            first.join(&second).unwrap();
        }
        refused(first.end_capture(NO_FLAGS))
    };
    assert_eq!(record(false), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(record(true), CUresult::CUDA_SUCCESS);
    // What is outside is not waited for inside, nor one capture by another.
    first.begin_capture(RELAXED).unwrap();
    assert_eq!(refused(first.join(&third)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(refused(first.end_capture(NO_FLAGS)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    for stream in [&first, &third] {
        stream.begin_capture(RELAXED).unwrap();
    }
    second.join(&first).unwrap();
    assert_eq!(refused(second.end_capture(NO_FLAGS)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    assert_eq!(refused(first.end_capture(NO_FLAGS)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    first.begin_capture(RELAXED).unwrap();
    assert_eq!(refused(first.join(&third)), CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE);
    for stream in [&first, &third] {
        let ended = refused(stream.end_capture(NO_FLAGS));
        assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
}

#[test]
fn captures_of_a_gpu_do_not_wait() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let x = Bytes::new();
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let wait = || refused(stream.synchronize());
    // SAFETY: only asks.
    let query = || refused(unsafe { sys::cuStreamQuery(stream.cu_stream()) }.result());
    let upload = || refused(x.upload(&[1; Bytes::LEN], &stream));
    let event = || refused(stream.record_event(None).unwrap().synchronize());
    let calls: [(&dyn Fn() -> CUresult, _); 4] = [
        (&wait, unsupported),
        (&query, unsupported),
        (&upload, unsupported),
        (&event, CUresult::CUDA_ERROR_CAPTURED_EVENT),
    ];
    for (call, expected) in calls {
        stream.begin_capture(RELAXED).unwrap();
        assert_eq!(call(), expected);
        assert_eq!(refused(stream.end_capture(NO_FLAGS)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    // Memory may come meanwhile, in this mode alone.
    let thread = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    for (mode, expected) in [(RELAXED, CUresult::CUDA_SUCCESS), (thread, unsupported)] {
        stream.begin_capture(mode).unwrap();
        // SAFETY: freed if there is any.
        let got = unsafe { result::malloc_sync(Bytes::LEN) };
        let _ = stream.end_capture(NO_FLAGS);
        drop(got.map(Bytes));
        assert_eq!(refused(got), expected);
    }
}

#[test]
fn a_gpu_refuses_misuse() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let x = Bytes::new();
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    // SAFETY: refused.
    unsafe {
        let queue = stream.cu_stream();
        assert_eq!(refused(result::memset_d8_async(x.0 + 1, 0, Bytes::LEN, queue)), invalid);
        assert_eq!(refused(result::memcpy_htod_async(x.0, &[0u8; Bytes::LEN + 1], queue)), invalid);
        assert_eq!(refused(result::memcpy_dtoh_async(&mut [0u8; Bytes::LEN + 1], x.0, queue)), invalid);
        assert_eq!(refused(result::free_sync(x.0 + 1)), invalid);
        assert_eq!(refused(result::malloc_sync(1 << 50)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let gone = context.new_stream().unwrap().cu_stream();
        let no_stream = refused(result::stream::synchronize(gone));
        assert_eq!(no_stream, CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    assert_eq!(x.read(&stream), 0xff, "new memory holds no numbers");
}

/// Kernels in the way that NVRTC and the driver take them; limits of launches.
#[test]
fn a_gpu_checks_launches() {
    use cudarc::nvrtc::{result as nvrtc, sys as compiler};
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let source = c"struct A { unsigned char* x; int n, shared; };
        extern \"C\" __global__ void fill(A a) {
            DYNAMIC_SHARED(unsigned char, all);
            if (threadIdx.x < a.n) a.x[threadIdx.x] = all[0] == 0xff ? blockDim.x : 0;
            if (threadIdx.x == 0) all[a.shared] = 0;
        }";
    let program = nvrtc::create_program(source, None).unwrap();
    let mut image = Vec::new();
    // SAFETY: the program lives until the end of the block, and the buffer is as long as the library says.
    unsafe {
        assert!(nvrtc::compile_program(program, &["--no-such-option"]).is_err());
        nvrtc::compile_program(program, &["--gpu-architecture=sm_90a"]).unwrap();
        let mut len = 0;
        compiler::nvrtcGetCUBINSize(program, &raw mut len).result().unwrap();
        image.resize(len, 0u8);
        compiler::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().unwrap();
        nvrtc::destroy_program(program).unwrap();
    }
    #[repr(C)]
    struct Arguments(u64, i32, i32);
    let x = Bytes::new();
    // SAFETY: the kernel takes the structure; what it would do wrong is refused.
    unsafe {
        let module = result::module::load_data(image.as_ptr().cast()).unwrap();
        let missing = refused(result::module::get_function(module, c"none".into()));
        assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
        let fill = result::module::get_function(module, c"fill".into()).unwrap();
        let launch = |blocks: u32, threads: u32, shared: u32| {
            let mut arguments = Arguments(x.0, Bytes::LEN as i32, shared as i32 - 1);
            let mut pointers = [(&raw mut arguments).cast::<c_void>()];
            let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
            let queue = stream.cu_stream();
            // It copies the arguments, which are gone when the kernel runs.
            result::launch_kernel(fill, grid, block, shared, queue, &mut pointers)
        };
        launch(1, 64, 16).unwrap();
        assert_eq!(x.read(&stream), 64);
        for (blocks, threads, shared) in [(0, 64, 16), (1, 0, 16), (1, 1025, 16), (1, 64, (48 << 10) + 1)] {
            assert_eq!(refused(launch(blocks, threads, shared)), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert!(result::function::set_function_attribute(fill, most, (227 << 10) + 1).is_err());
        result::function::set_function_attribute(fill, most, 227 << 10).unwrap();
        launch(1, 32, 227 << 10).unwrap();
        assert_eq!(x.read(&stream), 32);
        result::module::unload(module).unwrap();
    }
}
