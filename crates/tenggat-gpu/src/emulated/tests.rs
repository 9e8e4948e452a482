//! Kernels that show what the emulation finds.

use super::*;
use crate::Mat;

/// A device; none without a C++ compiler, unless that is required.
fn emulated(emulation: &Emulation) -> Option<Emulated> {
    let device = Emulated::new(emulation);
    if let Err(e) = &device {
        tenggat_skip::skipped_without_cxx(e);
    }
    device.ok()
}

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
    let Some(device) = emulated(&Emulation::default()) else { return };
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

/// Kernels of 64 threads that pass numbers on in shared memory, rightly and wrongly.
const PASSING: Module = Module {
    name: "passing",
    source: "
        struct Passing { int* to; int which; };
        KERNEL void passing(Passing a) {
            __shared__ int parts[64];
            DYNAMIC_SHARED(int, more);
            const int i = threadIdx.x;
            parts[a.which == 0 ? 0 : i] = i;
            if (a.which == 2 || a.which == 4) __syncthreads();
            if (a.which == 3) __syncwarp();
            if (a.which == 4) parts[(i + 2) % 64] = 1;
            if (a.which == 5) more[i / 2] = i;
            if (a.which == 6) __shfl_sync(0xffffffff, i, i);
            // Within a warp, or beyond it.
            const bool within = a.which == 3 || a.which == 6;
            a.to[i] = parts[within ? i / 32 * 32 + (i + 1) % 32 : (i + 1) % 64];
        }",
};

#[derive(Clone, Copy)]
#[repr(C)]
struct Passing {
    to: u64,
    which: i32,
}

/// Numbers that threads pass on without a barrier, or write over one another, are found; those that wait are
/// not.
#[test]
fn races_on_shared_memory_are_found() {
    let watched = Emulation { is_watched: true, ..Emulation::default() };
    let Some(device) = emulated(&watched) else { return };
    let mut to = [0i32; 64];
    let mut pass = |which| {
        let args = Passing { to: to.as_mut_ptr() as u64, which };
        let call = device.call(Kernel::new(&PASSING, "passing"), &[], Grid::threads(2, 64), args).unwrap();
        (device.run(MAIN, call).err().map(|e| e.to_string()), to)
    };
    for (which, race) in [
        (0, "overwrites what was"),
        (1, "what was"),
        (4, "what was"),
        (5, "what was"),
        // A shuffle orders nothing.
        (6, "what was"),
    ] {
        let said = pass(which).0.unwrap_or_default();
        assert!(said.contains("passing") && said.contains("race") && said.contains(race), "{which}: {said}");
    }
    assert_eq!(pass(2), (None, std::array::from_fn(|i| (i as i32 + 1) % 64)));
    assert_eq!(pass(3), (None, std::array::from_fn(|i| (i / 32 * 32 + (i + 1) % 32) as i32)));
}

/// Threads that do not wait for one another come in an order that is not theirs.
#[test]
fn a_missing_barrier_gives_other_numbers() {
    let Some(device) = emulated(&Emulation::default()) else { return };
    let mut to = [0i32; 64];
    let args = Passing { to: to.as_mut_ptr() as u64, which: 1 };
    // One block: a second one would find what the first one left.
    let call = device.call(Kernel::new(&PASSING, "passing"), &[], Grid::threads(1, 64), args).unwrap();
    device.run(MAIN, call).unwrap();
    assert!((0..64).any(|i| to[i] != (i as i32 + 1) % 64), "{to:?}");
}

/// Writes so many numbers, and reads one behind them.
const FILL: Module = Module {
    name: "fill",
    source: "
        struct Fill { float* to; int64_t n; int64_t read; };
        KERNEL void fill(Fill a) {
            const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
            if (i < a.n) a.to[i] = a.read ? a.to[a.read] : 1.0f;
        }",
};

#[derive(Clone, Copy)]
#[repr(C)]
struct Fill {
    to: u64,
    n: i64,
    read: i64,
}

/// Variable that tells a child process what to do with 7 numbers.
#[cfg(target_os = "linux")]
const OVERRUN: &str = "TENGGAT_TEST_OVERRUN";

/// What lies behind an allocation is neither written nor read.
#[cfg(target_os = "linux")]
#[test]
fn overruns_of_memory_end_the_process() {
    use std::os::unix::process::ExitStatusExt;
    let watched = Emulation { is_watched: true, ..Emulation::default() };
    let Some(device) = emulated(&watched) else { return };
    let fill = |n, read| {
        let to = device.memory().allocate(7 * 4).unwrap();
        let args = Fill { to, n, read };
        let call = device.call(Kernel::new(&FILL, "fill"), &[], Grid::covering(8), args).unwrap();
        device.run(MAIN, call).unwrap();
        device.memory().release(to, 7 * 4);
    };
    match std::env::var(OVERRUN).as_deref() {
        Ok("write one") => return fill(8, 0),
        Ok("write more") => return fill(9, 0),
        Ok("read") => return fill(1, 8),
        _ => fill(7, 6),
    }
    for what in ["write one", "write more", "read"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "emulated::tests::overruns_of_memory_end_the_process"])
            .env(OVERRUN, what)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        match what {
            // The page begins at a multiple of 16 bytes.
            "write one" => assert!(said.contains("written behind the end of 28 bytes"), "{said}"),
            _ => assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{what}: {said}"),
        }
    }
}

/// The last blocks of a launch over more numbers than there is memory for.
#[cfg(target_os = "linux")]
#[test]
fn the_end_of_what_is_too_large_can_be_tried() {
    const LEN: usize = 5 << 30;
    let Some(device) = emulated(&Emulation { last_blocks: Some(1), ..Emulation::default() }) else { return };
    let to = device.memory().allocate(LEN * 4).unwrap();
    let args = Fill { to, n: LEN as i64, read: 0 };
    let call = device.call(Kernel::new(&FILL, "fill"), &[], Grid::covering(LEN), args).unwrap();
    device.run(MAIN, call).unwrap();
    let mut end = [0.0f32; 512];
    device.download(to + (LEN as u64 - 512) * 4, bytemuck::cast_slice_mut(&mut end));
    device.memory().release(to, LEN * 4);
    assert_eq!(end, std::array::from_fn(|i| if i < 256 { 0.0 } else { 1.0 }));
}
