//! What a kernel is, and what it is called with.

use crate::DType;

/// Kernels that are compiled together, as one file of CUDA C++.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// Unique name.
    pub name: &'static str,
    /// Source, to which `kernels/common.cuh` is prefixed.
    pub source: &'static str,
}

/// A kernel of a module: a function of one argument, a structure that is passed by value. One function stands for each
/// combination of element types, its name ending in theirs.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Where it is.
    pub module: &'static Module,
    /// Name without types.
    pub name: &'static str,
    /// Whether it is the variant that reads and writes 16 bytes at a time.
    pub wide: bool,
}

impl Kernel {
    /// A kernel that has no wide variant, or not that one.
    pub const fn new(module: &'static Module, name: &'static str) -> Self {
        Kernel { module, name, wide: false }
    }

    /// The wide variant, if it can be taken.
    pub fn wide(self, wide: bool) -> Self {
        Kernel { wide, ..self }
    }

    /// The function's name for these types.
    pub fn function(self, types: &[DType]) -> String {
        let name = if self.wide { format!("{}_wide", self.name) } else { self.name.to_owned() };
        types.iter().fold(name, |name, dtype| name + "_" + suffix(*dtype))
    }
}

fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::BF16 => "bf16",
        DType::U8 => "u8",
    }
}

/// Blocks of a launch, and threads of each.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks along x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block: whole warps, at most 1024.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Grid {
    /// Threads of kernels that have no reason for another number.
    pub const THREADS: u32 = 256;

    /// `n` blocks.
    pub fn blocks(n: usize) -> Self {
        Self::threads(n, Self::THREADS)
    }

    /// `n` blocks of so many threads.
    pub fn threads(n: usize, threads: u32) -> Self {
        Grid { blocks: [n as u32, 1, 1], threads, shared: 0 }
    }

    /// At least `n` threads.
    pub fn covering(n: usize) -> Self {
        Self::blocks(n.div_ceil(Self::THREADS as usize))
    }

    /// The same in so many layers, told apart by `blockIdx.y`.
    pub fn layers(self, n: usize) -> Self {
        Grid { blocks: [self.blocks[0], n as u32, 1], ..self }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.blocks.contains(&0)
    }
}

/// A matrix as kernels see it; mirrors `Mat` of `kernels/common.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Mat {
    /// Address of the first element; 0 where a kernel may go without the matrix.
    pub data: u64,
    /// Rows.
    pub rows: i32,
    /// Columns.
    pub cols: i32,
    /// Elements from one row to the next.
    pub stride: i64,
}

impl Mat {
    /// No matrix.
    pub const NONE: Mat = Mat { data: 0, rows: 0, cols: 0, stride: 0 };

    /// Whether all rows can be read 16 bytes at a time.
    pub fn is_wide(&self, dtype: DType) -> bool {
        self.in_packs(dtype, 16 / dtype.bytes())
    }

    /// Whether all rows can be read so many elements, a power of two, at a time.
    pub fn in_packs(&self, dtype: DType, elements: usize) -> bool {
        self.data.is_multiple_of((elements * dtype.bytes()) as u64)
            && (self.cols as usize).is_multiple_of(elements)
            && (self.stride as usize).is_multiple_of(elements)
    }
}

/// Whether kernels can go over all these matrices 16 bytes at a time, and how many elements a thread then takes.
pub fn width(dtype: DType, matrices: &[Mat]) -> (bool, usize) {
    let wide = matrices.iter().all(|m| m.data == 0 || m.is_wide(dtype));
    (wide, if wide { 16 / dtype.bytes() } else { 1 })
}

/// A number that kernels take as 32-bit: matrices have at most 2³¹ − 1 rows and columns.
pub fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
