//! Sums over the tokens of every sample on a GPU, column by column: what gradients of the modulation are made
//! of.
//!
//! Tokens are cut into chunks by their number alone, so that the result does not depend on the GPU.

use std::sync::Arc;

use tenggat_gpu::{Buffer, Cuda, Grid, Kernel, Mat, Module, int};

use crate::{DType, Result, ViewMut};

pub(crate) const MODULE: Module = Module { name: "columns", source: include_str!("op.cu") };
const FINISH: Kernel = Kernel::new(&MODULE, "finish_columns");

/// Tokens that a block sums.
const CHUNK: usize = 128;
/// Threads of a block: the 8 warps of `sum_columns`.
const THREADS: u32 = 256;

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

/// Partial sums of some samples.
pub(crate) struct Columns {
    cuda: Arc<Cuda>,
    buffer: Buffer,
    tokens: usize,
    cols: usize,
    samples: usize,
}

impl Columns {
    /// Room for `n` sums of each of `cols` columns over `tokens` rows of each sample.
    pub fn new(cuda: &Arc<Cuda>, n: usize, samples: usize, tokens: usize, cols: usize) -> Result<Self> {
        let bytes = samples * tokens.div_ceil(CHUNK) * n * cols * size_of::<f32>();
        Ok(Columns { cuda: Arc::clone(cuda), buffer: Buffer::new(cuda, bytes)?, tokens, cols, samples })
    }

    fn chunks(&self) -> usize {
        self.tokens.div_ceil(CHUNK)
    }

    /// What the first kernel gets.
    ///
    /// # Errors
    /// A length has more than 31 bits.
    pub fn parts(&self) -> Result<Parts> {
        let (tokens, cols) = (int(self.tokens)?, int(self.cols)?);
        let (sums, chunk, chunks) = (self.buffer.address(), int(CHUNK)?, int(self.chunks())?);
        Ok(Parts { sums, tokens, cols, chunk, chunks })
    }

    /// Its launch, each thread taking `v` columns.
    pub fn grid(&self, v: usize) -> Grid {
        let blocks = [self.cols.div_ceil(32 * v), self.chunks(), self.samples];
        Grid { blocks, threads: THREADS, shared: 0 }
    }

    /// Adds up the chunks into `to`, `[samples, n · cols]`.
    pub fn finish(self, op: &'static str, to: ViewMut<'_>) -> Result<()> {
        let args = Finish { sums: self.buffer.address(), to: to.cuda(op)?.1, chunks: int(self.chunks())? };
        let grid = Grid::covering(to.cols()).layers(to.rows());
        let dtype: DType = to.dtype();
        Ok(self.cuda.launch(FINISH, &[dtype], grid, args)?)
    }
}
