//! Matrix products on the processor, in the place of cuBLASLt.

use half::bf16;

use crate::blas::{Epilogue, Product};
use crate::{DType, float8};

/// An operand in 32 bits, row by row.
fn read(address: u64, dtype: DType, [rows, cols]: [usize; 2], stride: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            let at = i * stride + j;
            // SAFETY: the product's operands lie in live allocations of this type and extent.
            values.push(unsafe {
                match dtype {
                    DType::BF16 => (*(address as *const bf16).add(at)).to_f32(),
                    DType::U8 => float8::decode(*(address as *const u8).add(at)),
                    _ => *(address as *const f32).add(at),
                }
            });
        }
    }
    values
}

/// The processor's own products, rounded as the GPU's would be: once, at the end.
pub(crate) fn product(p: Product) {
    p.each().for_each(one);
}

fn one(p: Product) {
    let (m, n, k) = (p.rows, p.cols, p.inner);
    let a = read(p.a.address, p.a.dtype, if p.a.transposed { [k, m] } else { [m, k] }, p.a.stride);
    let b = read(p.b.address, p.b.dtype, if p.b.transposed { [n, k] } else { [k, n] }, p.b.stride);
    let old = (p.beta != 0.0).then(|| read(p.c, p.c_dtype, [m, n], p.c_stride));
    let mut c = vec![0.0f32; m * n];
    // Strides from column to column and from row to row.
    let strides = |transposed: bool, rows: usize, cols: usize| match transposed {
        true => (rows as isize, 1),
        false => (1, cols as isize),
    };
    let ((a_cs, a_rs), (b_cs, b_rs)) = (strides(p.a.transposed, m, k), strides(p.b.transposed, k, n));
    // SAFETY: the vectors are as long as extents and strides say.
    unsafe {
        let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
        let threads = gemm::Parallelism::Rayon(0);
        let (from, to) = ((a, a_cs, a_rs, b, b_cs, b_rs), (c, 1, n as isize));
        gemm::gemm(
            m, n, k, to.0, to.1, to.2, false, from.0, from.1, from.2, from.3, from.4, from.5, 0.0, p.alpha,
            false, false, false, threads,
        );
    }
    let row = |address: u64, dtype, len| read(address, dtype, [1, len], len);
    let bias = match p.epilogue {
        Epilogue::None => None,
        Epilogue::Bias(address) => Some(row(address, p.c_dtype, n)),
    };
    // Codes are multiplied as they are, and the sums scaled.
    let scales = p.has_scales().then(|| (row(p.a.scales, DType::F32, m), row(p.b.scales, DType::F32, n)));
    for (at, sum) in c.into_iter().enumerate() {
        let mut value = scales.as_ref().map_or(sum, |(a, b)| sum * (a[at / n] * b[at % n]));
        value += old.as_ref().map_or(0.0, |old| p.beta * old[at]);
        value += bias.as_ref().map_or(0.0, |bias| bias[at % n]);
        let at = at / n * p.c_stride + at % n;
        // SAFETY: the caller vouches that `c` points to the product's output, which nothing else touches
        // meanwhile.
        unsafe {
            match p.c_dtype {
                DType::BF16 => *(p.c as *mut bf16).add(at) = bf16::from_f32(value),
                _ => *(p.c as *mut f32).add(at) = value,
            }
        }
    }
}
