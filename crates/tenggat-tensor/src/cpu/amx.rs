//! The tile unit of Intel's processors (AMX): products of bf16 tiles with 32-bit sums.
//!
//! Rust's stable library has neither its intrinsics nor its detection: Intel 64 and IA-32 Architectures
//! Software Developer's Manual, volume 1, chapter 18, and Linux' `Documentation/arch/x86/xstate.rst`.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::Cell;
use std::sync::OnceLock;

use half::bf16;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Elements of a tile's row.
pub const STEPS: usize = 32;
/// Columns of a product: those of two tiles.
pub const COLUMNS: usize = 32;

/// Memory of a tile.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [[bf16; STEPS]; ROWS]);

impl Tile {
    pub const ZERO: Self = Tile([[bf16::ZERO; STEPS]; ROWS]);
}

/// Sums of [`ROWS`] × [`COLUMNS`].
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Sums(pub [[f32; COLUMNS]; ROWS]);

/// A step of one or two products with the same right side: `a` are their tiles of [`ROWS`] rows and [`STEPS`]
/// columns. `b` is two tiles of [`STEPS`] / 2 rows, one after the other, for the left and the right 16
/// columns; row r holds for each column what rows 2·r and 2·r + 1 hold.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Step {
    pub a: [*const bf16; 2],
    pub b: *const Tile,
}

/// Whether the machine has the unit, Linux lets this process use it, and it computes a product right.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| exists() && permitted() && computes())
}

fn exists() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: OSXSAVE is set, so the processor has `xgetbv`.
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && unsafe { enabled() } & TILE_STATE == TILE_STATE
}

/// # Safety
/// The processor has `xgetbv`.
#[target_feature(enable = "xsave")]
unsafe fn enabled() -> u64 {
    // SAFETY: by the caller.
    unsafe { _xgetbv(0) }
}

/// Asks Linux to save the tiles of this process on a context switch; returns whether it will.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let result: i64;
        // SAFETY: a system call that reads its two numbers only; it overwrites rcx and r11.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Products of small whole numbers, which both ways of summing get exactly.
fn computes() -> bool {
    let number = |i: usize| bf16::from_f32((i % 7) as f32 - 3.0);
    let (mut a, mut b) = ([Tile::ZERO; 2], [Tile::ZERO; 2]);
    let tiles = a.iter_mut().chain(&mut b).flat_map(|tile| &mut tile.0).flatten();
    tiles.enumerate().for_each(|(i, x)| *x = number(i * i));
    let step = [Step { a: [0, 1].map(|i| a[i].0.as_ptr().cast()), b: b.as_ptr() }; 3];
    let unset = [Sums([[-1.0; COLUMNS]; ROWS]); 2];
    let (mut one, mut two, mut expected) = ([unset[0]], unset, unset);
    // SAFETY: AMX was detected, and each operand holds whole 1 KiB tiles.
    unsafe {
        product(&step, &mut one);
        product(&step, &mut two);
        emulated(&step, &mut expected);
    }
    one[0].0 == expected[0].0 && two.iter().zip(&expected).all(|(got, expected)| got.0 == expected.0)
}

thread_local! {
    /// Whether this thread's unit is set to whole tiles.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

fn configure() {
    /// Palette 1: per tile the bytes of a row (at 16) and the rows (at 48).
    #[repr(C, align(64))]
    struct Configuration([u8; 64]);
    if CONFIGURED.get() {
        return;
    }
    let mut configuration = Configuration([0; 64]);
    configuration.0[0] = 1;
    for tile in 0..8 {
        configuration.0[16 + 2 * tile] = 64;
        configuration.0[48 + tile] = ROWS as u8;
    }
    // SAFETY: the callers have found the unit; the configuration is 64 bytes of a legal palette.
    unsafe { asm!("ldtilecfg [{}]", in(reg) configuration.0.as_ptr(), options(nostack, readonly)) }
    CONFIGURED.set(true);
}

/// `out[i] = Σ a[i]·b` over the steps, in their order, for one or two products.
///
/// # Safety
/// The unit is [`available`]; the steps' pointers lead to their tiles.
pub unsafe fn product<const N: usize>(steps: &[Step], out: &mut [Sums; N]) {
    const { assert!(N == 1 || N == 2) };
    configure();
    let (from, count, to) = (steps.as_ptr(), steps.len(), out.as_mut_ptr());
    // SAFETY: by the caller.
    unsafe { if N == 1 { single(from, count, to) } else { pair(from, count, to) } }
}

/// # Safety
/// As [`product`], for one, with the unit [configured](configure).
unsafe fn single(steps: *const Step, count: usize, out: *mut Sums) {
    // SAFETY: by the caller; a tile's rows follow each other every 64 bytes, those of the sums every 128.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "test {left}, {left}",
            "jz 3f",
            "2:",
            "mov {tile}, [{steps}]",
            "tileloaddt1 tmm4, [{tile} + {row:r}]",
            "mov {tile}, [{steps} + 16]",
            "tileloadd tmm6, [{tile} + {row:r}]",
            "tileloadd tmm7, [{tile} + {row:r} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {steps}, 24",
            "dec {left}",
            "jnz 2b",
            "3:",
            "tilestored [{out} + 2*{row:r}], tmm0",
            "tilestored [{out} + 2*{row:r} + 64], tmm1",
            steps = inout(reg) steps => _,
            left = inout(reg) count => _,
            tile = out(reg) _,
            row = in(reg) 64_u64,
            out = in(reg) out,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// Two products at once: a tile's product begins every 16 cycles and takes 52 (Intel 64 and IA-32
/// Architectures Optimization Reference Manual, chapter on AMX), so that four sums are needed to keep the
/// unit busy.
///
/// # Safety
/// As [`product`], for two, with the unit [configured](configure).
unsafe fn pair(steps: *const Step, count: usize, out: *mut Sums) {
    // SAFETY: as in `single`; the second product's sums lie 2048 bytes behind the first's.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {left}, {left}",
            "jz 3f",
            "2:",
            "mov {tile}, [{steps} + 16]",
            "tileloadd tmm6, [{tile} + {row:r}]",
            "tileloadd tmm7, [{tile} + {row:r} + 1024]",
            "mov {tile}, [{steps}]",
            "tileloaddt1 tmm4, [{tile} + {row:r}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "mov {tile}, [{steps} + 8]",
            "tileloaddt1 tmm5, [{tile} + {row:r}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {steps}, 24",
            "dec {left}",
            "jnz 2b",
            "3:",
            "tilestored [{out} + 2*{row:r}], tmm0",
            "tilestored [{out} + 2*{row:r} + 64], tmm1",
            "tilestored [{out} + 2*{row:r} + 2048], tmm2",
            "tilestored [{out} + 2*{row:r} + 2112], tmm3",
            steps = inout(reg) steps => _,
            left = inout(reg) count => _,
            tile = out(reg) _,
            row = in(reg) 64_u64,
            out = in(reg) out,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// The same without the unit: each element's pairs are summed one after the other.
///
/// # Safety
/// The steps' pointers lead to their tiles.
pub unsafe fn emulated<const N: usize>(steps: &[Step], out: &mut [Sums; N]) {
    for (i, out) in out.iter_mut().enumerate() {
        out.0 = [[0.0; COLUMNS]; ROWS];
        for step in steps {
            // SAFETY: by the caller.
            let (a, b) =
                unsafe { (&*step.a[i].cast::<[[bf16; STEPS]; ROWS]>(), &*step.b.cast::<[Tile; 2]>()) };
            for (sums, a) in out.0.iter_mut().zip(a) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let column = 2 * (j % ROWS);
                    for (pair, b) in a.chunks_exact(2).zip(&b[j / ROWS].0) {
                        *sum += pair[0].to_f32() * b[column].to_f32();
                        *sum += pair[1].to_f32() * b[column + 1].to_f32();
                    }
                }
            }
        }
    }
}
