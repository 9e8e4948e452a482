//! The tile unit of Intel's processors (AMX): products of bf16 tiles with 32-bit sums.
//!
//! Rust's stable library has neither its intrinsics nor its detection: Intel 64 and IA-32 Architectures Software
//! Developer's Manual, volume 1, chapter 18, and Linux' `Documentation/arch/x86/xstate.rst`.

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

/// A step of a product: `a` is a tile of [`ROWS`] rows and [`STEPS`] columns. `b` is two tiles of [`STEPS`] / 2 rows, one
/// after the other, for the left and the right 16 columns; row r holds for each column what rows 2·r and 2·r + 1 hold.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Step {
    pub a: *const bf16,
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
    // SAFETY: OSXSAVE says that the instruction is there.
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && unsafe { enabled() } & TILE_STATE == TILE_STATE
}

/// # Safety
/// The processor has `xgetbv`.
#[target_feature(enable = "xsave")]
unsafe fn enabled() -> u64 {
    // SAFETY: by the caller.
    unsafe { _xgetbv(0) }
}

/// Linux saves the tiles of processes that have asked for it.
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

/// One product of small whole numbers, which both ways of summing get exactly.
fn computes() -> bool {
    let number = |i: usize| bf16::from_f32((i % 7) as f32 - 3.0);
    let (mut a, mut b) = (Tile::ZERO, [Tile::ZERO; 2]);
    let tiles = a.0.iter_mut().chain(b.iter_mut().flat_map(|b| &mut b.0)).flatten();
    tiles.enumerate().for_each(|(i, x)| *x = number(i * i));
    let step = [Step { a: a.0.as_ptr().cast(), b: b.as_ptr() }; 3];
    let (mut got, mut expected) = (Sums([[-1.0; COLUMNS]; ROWS]), Sums([[-2.0; COLUMNS]; ROWS]));
    // SAFETY: the tiles are there, and so is the unit.
    unsafe {
        product(&step, &mut got);
        emulated(&step, &mut expected);
    }
    got.0 == expected.0
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

/// `out = Σ a·b` over the steps, in their order.
///
/// # Safety
/// The unit is [`available`]; the steps' pointers lead to their tiles.
pub unsafe fn product(steps: &[Step], out: &mut Sums) {
    configure();
    // SAFETY: by the caller; a tile's rows follow each other every 64 bytes, those of the sums every 128.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "test {left}, {left}",
            "jz 3f",
            "2:",
            "mov {tile}, [{steps}]",
            "tileloaddt1 tmm2, [{tile} + {row:r}]",
            "mov {tile}, [{steps} + 8]",
            "tileloadd tmm3, [{tile} + {row:r}]",
            "tileloadd tmm4, [{tile} + {row:r} + 1024]",
            "tdpbf16ps tmm0, tmm2, tmm3",
            "tdpbf16ps tmm1, tmm2, tmm4",
            "add {steps}, 16",
            "dec {left}",
            "jnz 2b",
            "3:",
            "tilestored [{out} + 2*{row:r}], tmm0",
            "tilestored [{out} + 2*{row:r} + 64], tmm1",
            steps = inout(reg) steps.as_ptr() => _,
            left = inout(reg) steps.len() => _,
            tile = out(reg) _,
            row = in(reg) 64_u64,
            out = in(reg) out.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack)
        );
    }
}

/// The same without the unit: each element's pairs are summed one after the other.
///
/// # Safety
/// The steps' pointers lead to their tiles.
pub unsafe fn emulated(steps: &[Step], out: &mut Sums) {
    out.0 = [[0.0; COLUMNS]; ROWS];
    for step in steps {
        // SAFETY: by the caller.
        let (a, b) = unsafe { (&*step.a.cast::<[[bf16; STEPS]; ROWS]>(), &*step.b.cast::<[Tile; 2]>()) };
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
