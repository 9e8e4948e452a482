//! GPU products.

use tenggat_gpu::{Epilogue, Factor, Product};

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
