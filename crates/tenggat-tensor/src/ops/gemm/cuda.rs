//! GPU products.

use tenggat_gpu::{Batch, Epilogue, Factor, Product};

use super::Cut;
use crate::{Result, View, ViewMut};

fn factor(op: &'static str, view: View<'_>, transposed: bool) -> Result<Factor> {
    let (_, mat) = view.cuda(op)?;
    Ok(Factor { address: mat.data, dtype: view.dtype(), stride: mat.stride as usize, transposed, scales: 0 })
}

/// `C = alpha · op(A) · op(B) + beta · C`, plus a row `bias` of C's type. A and B have one type, C that or
/// f32.
pub(crate) fn product(
    op: &'static str,
    alpha: f64,
    (a, a_transposed): (View<'_>, bool),
    (b, b_transposed): (View<'_>, bool),
    beta: f64,
    bias: Option<View<'_>>,
    c: ViewMut<'_>,
) -> Result<()> {
    let (cuda, mat) = c.cuda(op)?;
    let epilogue = match bias {
        Some(bias) => Epilogue::Bias(bias.cuda(op)?.1.data),
        None => Epilogue::None,
    };
    Ok(cuda.product(Product {
        batch: Batch::ONE,
        rows: c.rows(),
        cols: c.cols(),
        inner: if a_transposed { a.rows() } else { a.cols() },
        alpha: alpha as f32,
        a: factor(op, a, a_transposed)?,
        b: factor(op, b, b_transposed)?,
        beta: beta as f32,
        c: mat.data,
        c_dtype: c.dtype(),
        c_stride: mat.stride as usize,
        epilogue,
        fast: false,
    })?)
}

/// `n` products of parts of these matrices, in one batch; `parts` has the cut and the shape of those of a, b
/// and c.
#[allow(clippy::too_many_arguments)] // those of `product`, and how operands are cut
pub(super) fn parts(
    op: &'static str,
    n: usize,
    alpha: f64,
    (a, a_transposed): (View<'_>, bool),
    (b, b_transposed): (View<'_>, bool),
    beta: f64,
    c: ViewMut<'_>,
    parts: [(Cut, [usize; 2]); 3],
) -> Result<()> {
    let (cuda, mat) = c.cuda(op)?;
    let (a_factor, b_factor) = (factor(op, a, a_transposed)?, factor(op, b, b_transposed)?);
    let [(_, a_part), _, (_, [rows, cols])] = parts;
    let step = |(cut, part): (Cut, [usize; 2]), stride: usize| match cut {
        Cut::Rows => part[0] * stride,
        Cut::Columns => part[1],
    };
    let steps = [
        step(parts[0], a_factor.stride),
        step(parts[1], b_factor.stride),
        step(parts[2], mat.stride as usize),
    ];
    Ok(cuda.product(Product {
        batch: Batch { count: n, steps },
        rows,
        cols,
        inner: if a_transposed { a_part[0] } else { a_part[1] },
        alpha: alpha as f32,
        a: a_factor,
        b: b_factor,
        beta: beta as f32,
        c: mat.data,
        c_dtype: c.dtype(),
        c_stride: mat.stride as usize,
        epilogue: Epilogue::None,
        fast: false,
    })?)
}
