//! 3×3 convolution of pictures, channels last, fused with what stands before and after it in an image
//! autoencoder.
//!
//! With `a` the input after the optional [`Filter::norm`] (RMS norm over the channels, then SiLU:
//! `n = x / max(‖x‖, 1e-12) · √c · norm`, `a = n · σ(n)`) and after [`Resample`]:
//! `y[p, o] = bias[o] + Σ_{dy, dx, i} weight[(3·dy + dx)·c + i, o] · a[s·p + (dy, dx) − pad, i] (+ y)`,
//! where pixels outside the picture count as 0 *after* the norm.
//!
//! Forward only: the autoencoder is frozen and nothing trainable lies below it, so no gradient ever passes
//! here.
//!
//! Layout: a batch of pictures is a matrix with one row per pixel, `[b·h·w, c]`, that is `[b, h, w, c]`.
//! Neither the normed nor the enlarged nor the unfolded input is ever written out whole; a GPU unfolds it in
//! slabs of output pixels.

mod cpu;
mod cpu_blocked;
pub(crate) mod cuda;

use super::dispatch_real;
use super::linear::Write;
use crate::error::expect_shape;
use crate::{DType, Element, Error, Result, Tensor, View, ViewMut};

/// Size of a batch of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pictures {
    /// Pictures in the batch.
    pub count: usize,
    /// Pixel rows of each.
    pub height: usize,
    /// Pixel columns of each.
    pub width: usize,
}

impl Pictures {
    /// Pixels of all pictures: rows of the matrix.
    pub fn pixels(self) -> usize {
        self.count * self.height * self.width
    }
}

/// How the output's size relates to the input's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Same size: one pixel of padding on every side.
    Keep,
    /// Half the size, rounded down: stride 2, one pixel of padding at the bottom and on the right only.
    Halve,
    /// Twice the size: each pixel repeated as a 2×2 square (nearest), then as [`Resample::Keep`].
    Double,
}

impl Resample {
    /// Size of the output for an input of this size.
    pub fn output(self, input: Pictures) -> Pictures {
        let Pictures { count, height, width } = input;
        match self {
            Resample::Keep => input,
            Resample::Halve => Pictures { count, height: height / 2, width: width / 2 },
            Resample::Double => Pictures { count, height: 2 * height, width: 2 * width },
        }
    }
}

/// A frozen 3×3 filter.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// `[9·in, out]`: tap row, tap column, input channel; output channel.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: &'a Tensor,
    /// `[in]`: norm the channels of each input pixel, scale them by this and apply SiLU first.
    pub norm: Option<&'a Tensor>,
    /// Ratio of sizes.
    pub resample: Resample,
}

/// Convolves. x: `[input.pixels(), in]`; y: `[output.pixels(), out]`, replaced or added to.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(x: View<'_>, input: Pictures, filter: Filter<'_>, write: Write, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "conv2d";
    expect_shape(OP, "x", &[input.pixels(), x.cols()], &x.shape())?;
    expect_shape(OP, "y", &[filter.resample.output(input).pixels(), y.cols()], &y.shape())?;
    expect_shape(OP, "weight", &[9 * x.cols(), y.cols()], filter.weight.shape())?;
    expect_shape(OP, "bias", &[y.cols()], filter.bias.shape())?;
    if let Some(norm) = filter.norm {
        expect_shape(OP, "norm", &[x.cols()], norm.shape())?;
    }
    if x.cols() == 0 || y.cols() == 0 {
        return Err(Error::shape(OP, "channels (at least one each)", &[1, 1], &[x.cols(), y.cols()]));
    }
    if y.on_gpu() {
        return cuda::forward(OP, x, input, filter, write, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        let taps = cpu::Taps::<T> {
            weight: filter.weight.view().cpu(OP)?,
            bias: filter.bias.host()?,
            norm: filter.norm.map(Tensor::host).transpose()?,
            resample: filter.resample,
        };
        match T::DTYPE {
            DType::F64 => cpu::forward(x.cpu(OP)?, input, taps, write, y.cpu(OP)?),
            _ => cpu_blocked::forward(x.cpu(OP)?, input, taps, write, y.cpu(OP)?),
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    struct Case {
        input: Pictures,
        channels: [usize; 2],
        resample: Resample,
        normed: bool,
        write: Write,
    }

    impl Case {
        fn run(&self, dtype: DType) -> Tensor {
            let [c, out] = self.channels;
            let make = |shape: &[usize], seed| randn(DType::F64, shape, seed).to_dtype(dtype).unwrap();
            let (x, weight) = (make(&[self.input.pixels(), c], 1), make(&[9 * c, out], 2));
            let (bias, norm) = (make(&[out], 3), make(&[c], 4));
            let rows = self.resample.output(self.input).pixels();
            let mut y = match self.write {
                Write::Add => make(&[rows, out], 5),
                Write::Replace => x.empty_like(&[rows, out]).unwrap(),
            };
            let norm = self.normed.then_some(&norm);
            let filter = Filter { weight: &weight, bias: &bias, norm, resample: self.resample };
            forward(x.view(), self.input, filter, self.write, y.view_mut()).unwrap();
            y
        }
    }

    /// A filter that is 1 at one tap and 0 elsewhere copies the picture, shifted by that tap.
    #[test]
    fn each_tap_reads_its_own_pixel() {
        let input = Pictures { count: 2, height: 4, width: 6 };
        let x: Vec<f64> = (0..input.pixels()).map(|i| i as f64 + 1.0).collect();
        for dtype in [DType::F64, DType::F32] {
            let tensor = |v: &[f64], s: &[usize]| {
                Tensor::from_f64(&crate::Device::cpu_poisoned(), dtype, v, s).unwrap()
            };
            for resample in [Resample::Keep, Resample::Halve, Resample::Double] {
                for tap in 0..9 {
                    let mut weight = [0.0; 9];
                    weight[tap] = 1.0;
                    let (weight, bias) = (tensor(&weight, &[9, 1]), tensor(&[0.5], &[1]));
                    let output = resample.output(input);
                    let mut y = bias.empty_like(&[output.pixels(), 1]).unwrap();
                    let filter = Filter { weight: &weight, bias: &bias, norm: None, resample };
                    forward(tensor(&x, &[x.len(), 1]).view(), input, filter, Write::Replace, y.view_mut())
                        .unwrap();
                    let y = y.to_f64().unwrap();
                    let (dy, dx) = (tap as isize / 3, tap as isize % 3);
                    let at = |b: usize, row: isize, col: isize| {
                        let inside = (0..4).contains(&row) && (0..6).contains(&col);
                        if inside { x[(b * 4 + row as usize) * 6 + col as usize] } else { 0.0 }
                    };
                    for (i, &got) in y.iter().enumerate() {
                        let (b, p) = (i / (output.height * output.width), i % (output.height * output.width));
                        let (row, col) = ((p / output.width) as isize, (p % output.width) as isize);
                        let expected = match resample {
                            Resample::Keep => at(b, row + dy - 1, col + dx - 1),
                            Resample::Halve => at(b, 2 * row + dy, 2 * col + dx),
                            Resample::Double => {
                                at(b, (row + dy - 1).div_euclid(2), (col + dx - 1).div_euclid(2))
                            }
                        };
                        assert_eq!(
                            got,
                            expected + 0.5,
                            "{resample:?}, tap {tap}, picture {b} ({row}, {col})"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_norm_divides_by_the_length_of_each_pixel() {
        let x = randn(DType::F64, &[3, 5], 1);
        let (bias, norm) = (randn(DType::F64, &[1], 2), randn(DType::F64, &[5], 3));
        let mut weight = vec![0.0; 45];
        weight[4 * 5 + 2] = 1.0; // the middle tap of channel 2
        let weight = Tensor::from_f64(&x.device(), DType::F64, &weight, &[45, 1]).unwrap();
        let mut y = x.empty_like(&[3, 1]).unwrap();
        let input = Pictures { count: 1, height: 1, width: 3 };
        let filter = Filter { weight: &weight, bias: &bias, norm: Some(&norm), resample: Resample::Keep };
        forward(x.view(), input, filter, Write::Replace, y.view_mut()).unwrap();
        let (x, bias, norm) = (x.to_f64().unwrap(), bias.to_f64().unwrap()[0], norm.to_f64().unwrap());
        for (pixel, y) in x.chunks(5).zip(y.to_f64().unwrap()) {
            let length = pixel.iter().map(|v| v * v).sum::<f64>().sqrt();
            let n = pixel[2] / length * 5f64.sqrt() * norm[2];
            assert!((y - bias - n / (1.0 + (-n).exp())).abs() < 1e-12);
        }
    }

    #[test]
    fn a_black_pixel_stays_finite() {
        let weight = randn(DType::F32, &[9 * 3, 2], 1);
        let x = Tensor::zeros(&weight.device(), DType::F32, &[4, 3]).unwrap();
        let (bias, norm) = (randn(DType::F32, &[2], 2), randn(DType::F32, &[3], 3));
        let mut y = x.empty_like(&[4, 2]).unwrap();
        let input = Pictures { count: 1, height: 2, width: 2 };
        let filter = Filter { weight: &weight, bias: &bias, norm: Some(&norm), resample: Resample::Keep };
        forward(x.view(), input, filter, Write::Replace, y.view_mut()).unwrap();
        assert_eq!(y.to_f32().unwrap(), bias.to_f32().unwrap().repeat(4));
    }

    /// The blocked f32 path against the plain f64 one: several bands and column tiles, ragged edges, odd
    /// sizes.
    #[test]
    fn the_fast_path_agrees_with_the_reference() {
        let size = |count, height, width| Pictures { count, height, width };
        for (input, channels) in [
            (size(1, 1, 1), [1, 1]),
            (size(3, 5, 7), [4, 6]),
            (size(2, 37, 150), [6, 16]),
            (size(1, 9, 33), [48, 70]),
        ] {
            for resample in [Resample::Keep, Resample::Halve, Resample::Double] {
                for (normed, write) in [(false, Write::Replace), (true, Write::Add)] {
                    let case = Case { input, channels, resample, normed, write };
                    let (single, double) = (case.run(DType::F32), case.run(DType::F64));
                    // Sums of 9·48 products of unit size: √432 · 6e-8 · 20 standard deviations.
                    assert_close(&format!("{input:?} {resample:?}"), &single, &double, 5e-5);
                }
            }
        }
    }

    #[test]
    fn any_thread_count_gives_the_same_bits() {
        let case = Case {
            input: Pictures { count: 2, height: 45, width: 130 },
            channels: [20, 24],
            resample: Resample::Keep,
            normed: true,
            write: Write::Add,
        };
        let run_with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.run(DType::F32)).to_f32().unwrap()
        };
        let one = run_with(1);
        assert!((2..5).all(|threads| run_with(threads) == one));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (x, weight) = (randn(DType::F32, &[6, 2], 1), randn(DType::F32, &[18, 3], 2));
        let bias = randn(DType::F32, &[3], 3);
        let mut y = x.empty_like(&[6, 3]).unwrap();
        let filter = Filter { weight: &weight, bias: &bias, norm: None, resample: Resample::Keep };
        let input = Pictures { count: 1, height: 2, width: 4 };
        let message = forward(x.view(), input, filter, Write::Replace, y.view_mut()).unwrap_err().to_string();
        assert!(message.contains("conv2d: x: expected [8, 2], got [6, 2]"), "{message}");
    }

    /// Every ratio of sizes, with and without a norm, in one slab and in several that end anywhere, on
    /// channels that can be read in packs and ones that cannot. Weights are small, as those of real
    /// filters are: sums stay of the size of one activation, whose rounding to bf16 they hold.
    #[test]
    fn gpus_agree() {
        let cases = [
            (Pictures { count: 2, height: 5, width: 7 }, [16, 9], 256 << 20),
            (Pictures { count: 3, height: 4, width: 3 }, [8, 16], 1 << 12),
            (Pictures { count: 1, height: 6, width: 5 }, [3, 5], 1),
        ];
        for (input, [c, out], slab_bytes) in cases {
            for resample in [Resample::Keep, Resample::Halve, Resample::Double] {
                for (normed, write) in [(false, Write::Replace), (true, Write::Add)] {
                    against_cpu("conv2d", |on| {
                        let x = on.randn(&[input.pixels(), c], 1);
                        let weight = randn(DType::BF16, &[9 * c, out], 2).to_f64().unwrap();
                        let weight: Vec<f64> = weight.iter().map(|w| w / 16.0).collect();
                        let (weight, bias) = (on.values(&weight, &[9 * c, out]), on.randn(&[out], 3));
                        let norm = on.randn(&[c], 4);
                        let norm = normed.then_some(&norm);
                        let mut y = on.randn(&[resample.output(input).pixels(), out], 5);
                        let filter = Filter { weight: &weight, bias: &bias, norm, resample };
                        let (from, to) = (x.view(), y.view_mut());
                        if to.on_gpu() {
                            cuda::in_slabs("conv2d", from, input, filter, write, to, slab_bytes).unwrap();
                        } else {
                            forward(from, input, filter, write, to).unwrap();
                        }
                        vec![("y", y)]
                    });
                }
            }
        }
    }
}
