//! Copies between views: token ranges of a joint sequence, rows of a bias.

mod cpu;
pub(crate) mod cuda;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{DType, Result, View, ViewMut};

/// `to = from`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn forward(from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "copy";
    expect_shape(OP, "to", &from.shape(), &to.shape())?;
    if to.on_gpu() {
        return cuda::copy(OP, from, to);
    }
    if to.dtype() == DType::BF16 {
        cpu::copy::<half::bf16>(from.cpu(OP)?, to.cpu(OP)?);
        return Ok(());
    }
    dispatch_real!(OP, to.dtype(), T => {
        cpu::copy::<T>(from.cpu(OP)?, to.cpu(OP)?);
        Ok(())
    })
}

/// `to = 0`.
///
/// # Errors
/// No kernel for the type.
pub fn zero(to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "zero";
    if to.on_gpu() {
        return cuda::fill(OP, 0.0, to);
    }
    dispatch_real!(OP, to.dtype(), T => {
        cpu::zero::<T>(to.cpu(OP)?);
        Ok(())
    })
}

/// `to += alpha · from`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn add_scaled(alpha: f64, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "add scaled";
    expect_shape(OP, "to", &from.shape(), &to.shape())?;
    if to.on_gpu() {
        return cuda::each(OP, cuda::ADD_SCALED, alpha, from, to);
    }
    dispatch_real!(OP, to.dtype(), T => {
        cpu::add_scaled::<T>(alpha as T, from.cpu(OP)?, to.cpu(OP)?);
        Ok(())
    })
}

/// `to *= from`, element by element, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn multiply(from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "multiply";
    expect_shape(OP, "to", &from.shape(), &to.shape())?;
    if to.on_gpu() {
        return cuda::each(OP, cuda::MULTIPLY, 0.0, from, to);
    }
    dispatch_real!(OP, to.dtype(), T => {
        cpu::multiply::<T>(from.cpu(OP)?, to.cpu(OP)?);
        Ok(())
    })
}

/// `to += weight · (from − to)`, both `[m, n]`.
///
/// # Errors
/// Shapes or types differ.
pub fn lerp(weight: f64, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "lerp";
    expect_shape(OP, "to", &from.shape(), &to.shape())?;
    if to.on_gpu() {
        return cuda::each(OP, cuda::LERP, weight, from, to);
    }
    dispatch_real!(OP, to.dtype(), T => {
        cpu::lerp::<T>(weight as T, from.cpu(OP)?, to.cpu(OP)?);
        Ok(())
    })
}

/// Every row of `to` (`[m, n]`) becomes `row` (`[1, n]`).
///
/// # Errors
/// Shapes or types differ.
pub fn broadcast_row(row: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const OP: &str = "broadcast row";
    expect_shape(OP, "row", &[1, to.cols()], &row.shape())?;
    if to.on_gpu() {
        return cuda::each(OP, cuda::BROADCAST_ROW, 0.0, row, to);
    }
    dispatch_real!(OP, to.dtype(), T => {
        cpu::broadcast_row::<T>(row.cpu(OP)?, to.cpu(OP)?);
        Ok(())
    })
}

/// `to = value`, on a GPU.
pub(crate) fn fill(value: f64, to: ViewMut<'_>) -> Result<()> {
    cuda::fill("fill", value, to)
}

/// `to = from`, rounded to the type of `to`; both `[m, n]`, on a GPU.
pub(crate) fn cast(from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    cuda::cast("cast", from, to)
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::Tensor;

    #[test]
    fn touches_its_range_and_nothing_else() {
        let from = randn(DType::F32, &[40, 3], 1);
        let mut to = Tensor::zeros(&from.device(), DType::F32, &[50, 5]).unwrap();
        forward(from.view(), to.view_mut().row_range(7..47).columns(1..4)).unwrap();
        add_scaled(-0.5, from.view(), to.view_mut().row_range(7..47).columns(1..4)).unwrap();
        let (values, source) = (to.to_f32().unwrap(), from.to_f32().unwrap());
        for i in 0..50 {
            for j in 0..5 {
                let inside = (7..47).contains(&i) && (1..4).contains(&j);
                let expected = if inside { 0.5 * source[(i - 7) * 3 + j - 1] } else { 0.0 };
                assert_eq!(values[i * 5 + j], expected, "({i}, {j})");
            }
        }
    }
}
