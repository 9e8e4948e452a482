//! GPU group norm: sums over the pixels, column by column, for the mean and then for the variance.

use tenggat_gpu::{Grid, Kernel, Mat, Module, int, width};

use super::Norm;
use crate::error::expect_dtypes;
use crate::ops::columns::{Columns, Parts, Shape};
use crate::{DType, Result, Tensor, View, ViewMut};

pub(crate) const MODULE: Module = Module {
    name: "group_norm",
    source: concat!(include_str!("../columns/columns.cuh"), include_str!("op.cu")),
};

const SUMS: Kernel = Kernel::new(&MODULE, "group_norm_sums");
const GROUP: Kernel = Kernel::new(&MODULE, "group_norm_group");
const APPLY: Kernel = Kernel::new(&MODULE, "group_norm_apply");

/// Pixels that a block sums.
const CHUNK: usize = 1024;

/// Mirrors `Sums`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Sums {
    x: Mat,
    /// None in the first pass: 0.
    mean: u64,
    parts: Parts,
}

/// Mirrors `Group`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Group {
    sums: Mat,
    means: Mat,
    per_group: i32,
    count: f32,
}

/// Mirrors `Apply`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Apply {
    x: Mat,
    weight: Mat,
    bias: Mat,
    y: Mat,
    mean: Mat,
    variance: Mat,
    pixels: i32,
    eps: f32,
    silu: i32,
}

pub fn forward(op: &'static str, x: View<'_>, pixels: usize, norm: Norm<'_>, y: ViewMut<'_>) -> Result<()> {
    expect_dtypes(op, y.dtype(), &[x.dtype(), norm.weight.dtype(), norm.bias.dtype()])?;
    let (cuda, to) = y.cuda(op)?;
    let (x_mat, pictures, c) = (x.cuda(op)?.1, x.rows() / pixels.max(1), x.cols());
    let per_group = c / norm.groups;
    // The mean of f over each group and picture, in the place of each of the group's channels.
    let grouped = |mean: Option<&Tensor>| -> Result<Tensor> {
        let shape = Shape { samples: pictures, tokens: pixels, cols: c, chunk: CHUNK };
        let columns = Columns::new(&cuda, shape, 1)?;
        let mean = mean.map_or(Ok(0), |mean| Ok::<_, crate::Error>(mean.view().cuda(op)?.1.data))?;
        let (vectorised, v) = width(x.dtype(), &[x_mat]);
        let args = Sums { x: x_mat, mean, parts: columns.parts()? };
        cuda.launch(SUMS.vectorised(vectorised), &[x.dtype()], columns.grid(v), args)?;
        let mut sums = Tensor::empty(&x.device(), DType::F32, &[pictures, c])?;
        columns.finish(op, Some(sums.view_mut()))?;
        let mut means = sums.empty_like(sums.shape())?;
        let (sums, to) = (sums.view().cuda(op)?.1, means.view_mut().cuda(op)?.1);
        let count = (pixels * per_group) as f32;
        let args = Group { sums, means: to, per_group: int(per_group)?, count };
        cuda.launch(GROUP, &[DType::F32], Grid::covering(pictures * c), args)?;
        Ok(means)
    };
    let mean = grouped(None)?;
    let variance = grouped(Some(&mean))?;
    let args = Apply {
        x: x_mat,
        weight: norm.weight.view().cuda(op)?.1,
        bias: norm.bias.view().cuda(op)?.1,
        y: to,
        mean: mean.view().cuda(op)?.1,
        variance: variance.view().cuda(op)?.1,
        pixels: int(pixels)?,
        eps: norm.eps as f32,
        silu: i32::from(norm.silu),
    };
    let (vectorised, v) = width(y.dtype(), &[args.x, args.weight, args.bias, to]);
    Ok(cuda.launch(APPLY.vectorised(vectorised), &[y.dtype()], Grid::covering(y.rows() * c / v), args)?)
}
