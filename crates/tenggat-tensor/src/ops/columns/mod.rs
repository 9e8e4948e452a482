//! Sums over the tokens of every sample on a GPU, column by column: what gradients of the modulation are made
//! of.
//!
//! Kernels that read the rows for another purpose take the sums on the way. Tokens are cut into chunks by
//! their number alone, so that the result does not depend on the GPU.

use std::sync::Arc;

use tenggat_gpu::{Buffer, Cuda, Grid, Kernel, Mat, Module, int};

use crate::{DType, Result, ViewMut};

pub(crate) const MODULE: Module = Module { name: "columns", source: include_str!("op.cu") };
const FINISH: Kernel = Kernel::new(&MODULE, "finish_columns");

/// Threads of a block: the 8 warps of `each_row` and of `finish_columns`.
const THREADS: u32 = 256;
/// Columns that a block of `finish_columns` takes.
const FINISHED: usize = 32;

/// Mirrors `Parts` of `columns.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Parts {
    sums: u64,
    tokens: i32,
    cols: i32,
    chunk: i32,
    chunks: i32,
}

/// Mirrors `Finish`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Finish {
    sums: u64,
    to: Mat,
    chunks: i32,
}

/// The matrix whose columns are summed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Samples.
    pub samples: usize,
    /// Rows of each.
    pub tokens: usize,
    /// Columns.
    pub cols: usize,
    /// Rows that a block goes over.
    pub chunk: usize,
}

impl Shape {
    fn chunks(&self) -> usize {
        self.tokens.div_ceil(self.chunk)
    }
}

/// Partial sums of some samples.
pub(crate) struct Columns {
    cuda: Arc<Cuda>,
    shape: Shape,
    /// None if no sums are wanted.
    sums: Option<Buffer>,
}

impl Columns {
    /// Room for `n` sums of each column; a kernel that is to take no sums gets none.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, n: usize) -> Result<Self> {
        let bytes = shape.samples * shape.chunks() * n * shape.cols * size_of::<f32>();
        let sums = (n > 0).then(|| Buffer::new(cuda, bytes)).transpose()?;
        Ok(Columns { cuda: Arc::clone(cuda), shape, sums })
    }

    /// What the first kernel gets.
    ///
    /// # Errors
    /// A length has more than 31 bits.
    pub fn parts(&self) -> Result<Parts> {
        let Shape { tokens, cols, chunk, .. } = self.shape;
        let sums = self.sums.as_ref().map_or(0, Buffer::address);
        let chunks = int(self.shape.chunks())?;
        Ok(Parts { sums, tokens: int(tokens)?, cols: int(cols)?, chunk: int(chunk)?, chunks })
    }

    /// Its launch where it is `each_row`, each thread taking `v` columns.
    pub fn grid(&self, v: usize) -> Grid {
        let blocks = [self.shape.cols.div_ceil(32 * v), self.shape.chunks(), self.shape.samples];
        Grid { blocks, threads: THREADS, shared: 0 }
    }

    /// Its launch where a block takes whole rows of a chunk.
    pub fn whole_rows(&self, threads: u32) -> Grid {
        Grid::threads(self.shape.chunks(), threads).layers(self.shape.samples)
    }

    /// Adds up the chunks into `to`, `[samples, n · cols]`, if there are sums.
    pub fn finish(self, op: &'static str, to: Option<ViewMut<'_>>) -> Result<()> {
        let (Some(sums), Some(to)) = (&self.sums, to) else { return Ok(()) };
        let args = Finish { sums: sums.address(), to: to.cuda(op)?.1, chunks: int(self.shape.chunks())? };
        let grid = Grid::threads(to.cols().div_ceil(FINISHED), THREADS).layers(to.rows());
        let dtype: DType = to.dtype();
        Ok(self.cuda.launch(FINISH, &[dtype], grid, args)?)
    }
}
