//! What a kernel is, and what it is called with.

use crate::error::failed;
use crate::{DType, Error, Result};

/// Kernels that are compiled together, as one file of CUDA C++.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// Unique name.
    pub name: &'static str,
    /// Source, to which `kernels/common.cuh` is prefixed.
    pub source: &'static str,
}

/// A kernel of a module: a function of one argument, a structure that is passed by value. One function stands
/// for each combination of element types, its name ending in theirs.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Where it is.
    pub module: &'static Module,
    /// Name without types.
    pub name: &'static str,
    /// Whether it is the variant that reads and writes 16 bytes at a time.
    pub vectorised: bool,
}

impl Kernel {
    /// A kernel that has no vectorised variant, or not that one.
    pub const fn new(module: &'static Module, name: &'static str) -> Self {
        Kernel { module, name, vectorised: false }
    }

    /// The vectorised variant, if it can be taken.
    pub fn vectorised(self, vectorised: bool) -> Self {
        Kernel { vectorised, ..self }
    }

    /// The function's name for these types.
    pub fn function(self, types: &[DType]) -> String {
        let name = if self.vectorised { format!("{}_vec", self.name) } else { self.name.to_owned() };
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
    pub blocks: [usize; 3],
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

    /// `n` blocks of this many threads.
    pub fn threads(n: usize, threads: u32) -> Self {
        Grid { blocks: [n, 1, 1], threads, shared: 0 }
    }

    /// At least `n` threads.
    pub fn covering(n: usize) -> Self {
        Self::blocks(n.div_ceil(Self::THREADS as usize))
    }

    /// The same in so many layers, told apart by `blockIdx.y`.
    pub fn layers(self, n: usize) -> Self {
        Grid { blocks: [self.blocks[0], n, 1], ..self }
    }

    /// The blocks as a launch takes them.
    ///
    /// # Errors
    /// More than 2³¹ − 1 along x, or 65535 along y or z (CUDA C++ programming guide, "Technical
    /// specifications per compute capability").
    pub fn extents(&self) -> Result<[u32; 3]> {
        const MOST: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
        if self.blocks.iter().zip(MOST).any(|(&n, most)| n > most) {
            return Err(Error::Failed(format!("a launch of {:?} blocks: at most {MOST:?}", self.blocks)));
        }
        Ok(self.blocks.map(|n| n as u32))
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
    pub rows: i64,
    /// Columns.
    pub cols: i64,
    /// Elements from one row to the next.
    pub stride: i64,
}

impl Mat {
    /// No matrix.
    pub const NONE: Mat = Mat { data: 0, rows: 0, cols: 0, stride: 0 };

    /// A matrix for kernels that count rows and columns in 32 bits, as those do that take a row at a time.
    ///
    /// # Errors
    /// It has 2³¹ rows or columns, or more.
    pub fn new(data: u64, [rows, cols]: [usize; 2], stride: usize) -> Result<Self> {
        int(rows)?;
        int(cols)?;
        Ok(Self::of_any_length(data, [rows, cols], stride))
    }

    /// A matrix for kernels that count elements in 64 bits.
    pub fn of_any_length(data: u64, [rows, cols]: [usize; 2], stride: usize) -> Self {
        Mat { data, rows: rows as i64, cols: cols as i64, stride: stride as i64 }
    }

    /// Whether all rows can be read 16 bytes at a time.
    pub fn is_vectorisable(&self, dtype: DType) -> bool {
        self.in_packs(dtype, 16 / dtype.bytes())
    }

    /// Whether all rows can be read so many elements, a power of two, at a time.
    pub fn in_packs(&self, dtype: DType, elements: usize) -> bool {
        self.data.is_multiple_of((elements * dtype.bytes()) as u64)
            && (self.cols as usize).is_multiple_of(elements)
            && (self.stride as usize).is_multiple_of(elements)
    }
}

/// Whether kernels can go over all these matrices 16 bytes at a time, and how many elements a thread then
/// takes.
pub fn width(dtype: DType, matrices: &[Mat]) -> (bool, usize) {
    let vectorised = matrices.iter().all(|m| m.data == 0 || m.is_vectorisable(dtype));
    (vectorised, if vectorised { 16 / dtype.bytes() } else { 1 })
}

/// A number that kernels take in 32 bits.
///
/// # Errors
/// It is 2³¹ or more.
pub fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| failed(&format!("a length of {n}"), "GPU kernels count this one in 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: usize = 1 << 31;

    /// A flat adapter of rank 256 on all layers has 2.4 · 10⁹ elements.
    #[test]
    fn long_matrices_are_whole_or_refused() {
        assert_eq!(int(LONG - 1).unwrap(), i32::MAX);
        for shape in [[1, LONG], [LONG, 1]] {
            let error = Mat::new(512, shape, LONG).unwrap_err().to_string();
            assert!(error.contains("2147483648") && error.contains("32 bits"), "{error}");
            let mat = Mat::of_any_length(512, shape, LONG);
            assert_eq!([mat.rows, mat.cols], shape.map(|n| n as i64));
            assert!(mat.is_vectorisable(DType::F32) == (shape[1] == LONG));
        }
    }

    #[test]
    fn launches_of_too_many_blocks_are_refused() {
        assert_eq!(Grid::blocks(LONG - 1).layers(65_535).extents().unwrap(), [i32::MAX as u32, 65_535, 1]);
        assert!(Grid::blocks(LONG).extents().is_err());
        assert!(Grid::blocks(1).layers(65_536).extents().is_err());
        assert_eq!(Grid::covering(9_437_184 * 256).blocks[0], 9_437_184);
    }
}
