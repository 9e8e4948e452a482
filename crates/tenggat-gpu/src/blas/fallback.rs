//! The kernel that computes what cuBLASLt has no way of computing.

use super::product::{Epilogue, Factor, Product};
use crate::{DType, Grid, Kernel, Module};

/// The kernel's module, compiled when it is first needed.
pub const MODULE: Module = Module { name: "product", source: include_str!("../kernels/product.cu") };
const PRODUCT: Kernel = Kernel::new(&MODULE, "product");
/// Side of the tile of C that a block computes.
const TILE: usize = 16;

/// Mirrors `Multiply` of `kernels/product.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Multiply {
    a: u64,
    b: u64,
    bias: u64,
    c: u64,
    a_row: i64,
    a_col: i64,
    b_row: i64,
    b_col: i64,
    c_row: i64,
    rows: i64,
    cols: i64,
    inner: i64,
    alpha: f32,
    beta: f32,
}

/// What a launch takes: the kernel, its element types, its grid and its arguments.
pub(crate) type Launch = (Kernel, [DType; 2], Grid, Multiply);

/// The launch that computes a product of bf16 or f32 numbers; `None` for codes of 8 bits, which ops multiply
/// in another type instead.
pub(crate) fn launch(p: &Product) -> Option<Launch> {
    if p.is_fp8() {
        return None;
    }
    let steps = |factor: &Factor| match factor.transposed {
        false => (factor.stride as i64, 1),
        true => (1, factor.stride as i64),
    };
    let ((a_row, a_col), (b_row, b_col)) = (steps(&p.a), steps(&p.b));
    let args = Multiply {
        a: p.a.address,
        b: p.b.address,
        bias: match p.epilogue {
            Epilogue::Bias(address) => address,
            Epilogue::None => 0,
        },
        c: p.c,
        a_row,
        a_col,
        b_row,
        b_col,
        c_row: p.c_stride as i64,
        rows: p.rows as i64,
        cols: p.cols as i64,
        inner: p.inner as i64,
        alpha: p.alpha,
        beta: p.beta,
    };
    let grid = Grid::blocks(p.rows.div_ceil(TILE) * p.cols.div_ceil(TILE));
    Some((PRODUCT, [p.a.dtype, p.c_dtype], grid, args))
}
