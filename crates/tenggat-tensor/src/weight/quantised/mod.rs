//! Storage of frozen matrices in 2 to 8 bits: quantise, pack, and dequantise row by row.
//!
//! Three arithmetics are reproduced bit for bit, so that adapters trained on somebody else's quantised model
//! fit:
//! - `uint2` … `uint7`: asymmetric, groups of 64 inputs, every operation rounded to bf16 (ai-toolkit
//!   `toolkit/util/uintx_quant.py`);
//! - `qfloat8`, `qint8`: one bf16 scale per row, weights divided in bf16 (optimum-quanto 0.2.7);
//! - `float8`, `int8`: one scale per row holding a bf16 value, weights scaled in f32 (torchao 0.18).
//!
//! In all of them a weight is `bf16((code − zero point) · scale)`.
//!
//! **Layout.** Rows lie one after another, groups within a row, and each group of 64 codes of `n` bits is
//! `8·n` bytes: shards of 4, 2 and 1 bits, widest first and holding the lowest bits, each cut into contiguous
//! chunks that share bytes. Upstream packs the whole matrix that way at once; cutting at groups lets any rows
//! and groups be read alone, with the same vector loops. [`Quantised::codes`] gives the plain codes back.

mod bytes;
pub(crate) mod cuda;
mod format;
mod fp8;
mod per_row;
mod uint;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

pub use bytes::{Bytes, NextUse, Owner};
pub use cuda::Resident;
pub use format::Format;
pub use fp8::Fp8;

use crate::cpu::{Real, vectorised};
use crate::error::expect_shape;
use crate::{DType, Device, Result, Tensor};

/// A frozen matrix `[rows, cols]` in a quantised format.
#[derive(Debug, Clone)]
pub struct Quantised {
    format: Format,
    rows: usize,
    cols: usize,
    parts: Parts<Bytes>,
}

/// The three arrays of a quantised matrix.
#[derive(Debug, Clone, Default)]
pub struct Parts<B> {
    /// Packed codes, `rows · format.code_bytes(cols)`.
    pub codes: B,
    /// Scales as little-endian bf16, two bytes per row and group.
    pub scales: B,
    /// Zero points, one byte per row and group; empty in symmetric formats.
    pub zero_points: B,
}

impl<B> Parts<B> {
    /// Applies `f` to each array.
    pub fn map<C>(self, mut f: impl FnMut(B) -> C) -> Parts<C> {
        Parts { codes: f(self.codes), scales: f(self.scales), zero_points: f(self.zero_points) }
    }
}

/// Bytes of the three arrays of a `[rows, cols]` matrix.
pub fn part_bytes(format: Format, rows: usize, cols: usize) -> Parts<usize> {
    let groups = format.groups(cols);
    let zero_points = if format.has_zero_points() { rows * groups } else { 0 };
    Parts { codes: rows * format.code_bytes(cols), scales: 2 * rows * groups, zero_points }
}

/// Quantises whole rows into arrays as long as [`part_bytes`] says; `w`: `[rows, cols]`, row-major.
///
/// # Errors
/// The format does not allow `cols`, or an array is not as long as it must be.
pub fn quantise_rows(format: Format, w: &[bf16], cols: usize, to: Parts<&mut [u8]>) -> Result<()> {
    const OP: &str = "quantise";
    let rows = w.len() / cols.max(1);
    check(
        OP,
        format,
        rows,
        cols,
        &Parts { codes: &*to.codes, scales: &*to.scales, zero_points: &*to.zero_points },
    )?;
    expect_shape(OP, "weights", &[rows * cols], &[w.len()])?;
    if w.is_empty() {
        return Ok(());
    }
    let groups = format.groups(cols);
    let rows = (w.par_chunks_exact(cols))
        .zip(to.codes.par_chunks_exact_mut(format.code_bytes(cols)))
        .zip(to.scales.par_chunks_exact_mut(2 * groups));
    match format {
        Format::Uint(bits) => {
            rows.zip(to.zero_points.par_chunks_exact_mut(groups)).for_each(|(((w, codes), scales), zeros)| {
                uint::quantise_row(bits, w, codes, scales, zeros);
            })
        }
        _ => rows.for_each(|((w, codes), scales)| per_row::quantise_row(format, w, codes, scales)),
    }
    Ok(())
}

fn check<B: AsRef<[u8]>>(
    op: &'static str,
    format: Format,
    rows: usize,
    cols: usize,
    parts: &Parts<B>,
) -> Result<()> {
    if !format.fits(cols) {
        return Err(crate::Error::shape(op, "columns (a multiple of the group)", &[uint::GROUP], &[cols]));
    }
    let expected = part_bytes(format, rows, cols);
    expect_shape(op, "bytes of codes", &[expected.codes], &[parts.codes.as_ref().len()])?;
    expect_shape(op, "bytes of scales", &[expected.scales], &[parts.scales.as_ref().len()])?;
    expect_shape(op, "bytes of zero points", &[expected.zero_points], &[parts.zero_points.as_ref().len()])
}

impl Quantised {
    /// A matrix from its stored arrays, which may be mapped from a file.
    ///
    /// # Errors
    /// The format does not allow `cols`, or an array is not as long as it must be.
    pub fn new(format: Format, [rows, cols]: [usize; 2], parts: Parts<Bytes>) -> Result<Self> {
        check("quantised matrix", format, rows, cols, &parts)?;
        Ok(Quantised { format, rows, cols, parts })
    }

    /// Quantises a matrix; `w`: `[rows, cols]`, row-major.
    ///
    /// # Errors
    /// The format does not allow `cols`, or `w` is not whole rows.
    pub fn quantise(format: Format, w: &[bf16], cols: usize) -> Result<Self> {
        let rows = w.len() / cols.max(1);
        let mut parts = part_bytes(format, rows, cols).map(|n| vec![0u8; n]);
        let to = Parts {
            codes: &mut parts.codes[..],
            scales: &mut parts.scales[..],
            zero_points: &mut parts.zero_points[..],
        };
        quantise_rows(format, w, cols, to)?;
        Ok(Quantised { format, rows, cols, parts: parts.map(Bytes::from) })
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes of storage, scales included.
    pub fn bytes(&self) -> usize {
        self.parts.codes.len() + self.parts.scales.len() + self.parts.zero_points.len()
    }

    /// Tells whoever holds its bytes what is to come.
    pub fn prefetch(&self, next: NextUse) {
        let Parts { codes, scales, zero_points } = &self.parts;
        [codes, scales, zero_points].into_iter().for_each(|bytes| bytes.prefetch(next));
    }

    /// Whether its codes lie in a file, so that holding on to it costs next to no memory.
    pub fn in_file(&self) -> bool {
        self.parts.codes.in_file()
    }

    /// The stored arrays.
    pub fn parts(&self) -> &Parts<Bytes> {
        &self.parts
    }

    /// Plain codes, one byte each, row-major: unsigned integers, two's complement, or e4m3 bits.
    pub fn codes(&self) -> Vec<u8> {
        match self.format {
            Format::Uint(bits) => uint::unpack(bits, &self.parts.codes),
            _ => self.parts.codes.to_vec(),
        }
    }

    /// Scales, `[rows, groups]`.
    pub fn scales(&self) -> Vec<bf16> {
        self.parts.scales.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b)).collect()
    }

    /// The weights that it stands for, `[rows, cols]`.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn dequantise(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let mut wide = Tensor::empty(device, DType::F32, &[self.rows, self.cols])?;
        self.dequantise_part(0..self.rows, 0..self.cols, wide.host_mut::<f32>()?);
        if dtype == DType::F32 { Ok(wide) } else { wide.to_dtype(dtype) }
    }

    /// Dequantises a rectangle into `out`, row-major, on the calling thread. Column ranges start and end at
    /// groups.
    pub(crate) fn dequantise_part<T: Real>(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [T]) {
        let (code_bytes, groups) = (self.format.code_bytes(self.cols), self.format.groups(self.cols));
        let group = self.cols.div_ceil(groups.max(1)).max(1);
        let Parts { codes, scales, zero_points } = &self.parts;
        let (codes, scales, zero_points) = (&codes[..], &scales[..], &zero_points[..]);
        let width = cols.len();
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in rows.enumerate() {
                    let out = &mut out[i * width..(i + 1) * width];
                    let codes = &codes[row * code_bytes..(row + 1) * code_bytes];
                    let scales = &scales[2 * row * groups..2 * (row + 1) * groups];
                    match self.format {
                        Format::Uint(bits) => {
                            let (first, last) = (cols.start / group, cols.end / group);
                            let zeros = &zero_points[row * groups..(row + 1) * groups];
                            let bytes = uint::group_bytes(bits);
                            let codes = &codes[first * bytes..last * bytes];
                            uint::dequantise(
                                bits,
                                codes,
                                &scales[2 * first..2 * last],
                                &zeros[first..last],
                                out,
                            );
                        }
                        format => per_row::dequantise(format, &codes[cols.clone()], scales, out),
                    }
                }
            },
        );
    }
}

/// Rounds to the nearest bf16, ties to even. For finite numbers.
#[inline(always)]
fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::randn;

    fn all_formats() -> Vec<Format> {
        let mut all = vec![Format::QFloat8, Format::Float8, Format::QInt8, Format::Int8];
        all.extend((2..=7).map(Format::Uint));
        all
    }

    fn weights(rows: usize, cols: usize) -> Vec<bf16> {
        randn(DType::BF16, &[rows, cols], 7).host::<bf16>().unwrap().to_vec()
    }

    #[test]
    fn any_rectangle_reads_as_in_the_whole() {
        let (rows, cols) = (5, 320);
        let w = weights(rows, cols);
        for format in all_formats() {
            let q = Quantised::quantise(format, &w, cols).unwrap();
            let whole = q.dequantise(&Device::cpu(), DType::F64).unwrap().to_f64().unwrap();
            let mut part = vec![0.0f64; 3 * 128];
            q.dequantise_part(1..4, 64..192, &mut part);
            for (i, row) in part.chunks(128).enumerate() {
                assert_eq!(row, &whole[(i + 1) * cols + 64..][..128], "{format}");
            }
            let bits: usize = if let Format::Uint(bits) = format { bits.into() } else { 8 };
            assert_eq!(q.parts().codes.len() * 8, rows * cols * bits, "{format}: no bit is wasted");
        }
    }

    /// Rounding to n bits errs by half a step, and the scale's own rounding by 2⁻⁹ of the range.
    #[test]
    fn the_error_is_at_most_half_a_step() {
        let (rows, cols) = (16, 256);
        let w = weights(rows, cols);
        for format in all_formats() {
            let q = Quantised::quantise(format, &w, cols).unwrap();
            let scales = q.scales();
            let group = cols / format.groups(cols);
            let back = q.dequantise(&Device::cpu(), DType::F32).unwrap().to_f32().unwrap();
            for (i, (w, v)) in w.iter().zip(back).enumerate() {
                let (w, scale) = (w.to_f32(), scales[i / group].to_f32());
                // The last steps of a range that its rounded scale cannot reach are cut off: int8's 127.5,
                // and zero points. e4m3 has 4 significant bits.
                let step = if matches!(format, Format::QFloat8 | Format::Float8) {
                    (w.abs() / 16.0).max(scale / 512.0)
                } else {
                    1.1 * scale
                };
                assert!(
                    (w - v).abs() <= step + w.abs() / 128.0,
                    "{format}[{i}]: {w} became {v}, scale {scale}"
                );
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        for format in all_formats() {
            let q = Quantised::quantise(format, &[bf16::ZERO; 128], 64).unwrap();
            let back = q.dequantise(&Device::cpu_poisoned(), DType::F32).unwrap();
            assert!(back.to_f32().unwrap().iter().all(|&x| x == 0.0), "{format}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let w = weights(2, 96);
        let error = Quantised::quantise(Format::Uint(3), &w, 96).unwrap_err().to_string();
        assert!(error.contains("64") && error.contains("96"), "{error}");
        assert!(Quantised::quantise(Format::Int8, &w, 96).is_ok());
        assert!(Quantised::quantise(Format::Int8, &w[1..], 96).is_err());
        let parts = part_bytes(Format::Int8, 2, 96).map(|n| Bytes::from(vec![0; n + 1]));
        assert!(Quantised::new(Format::Int8, [2, 96], parts).is_err());
    }

    #[test]
    fn rounds_as_the_reference_type_does() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(0x3f00_0000 + i * 1031);
            assert_eq!(round_bf16(x), bf16::from_f32(x).to_f32());
            assert_eq!(round_bf16(-x), bf16::from_f32(-x).to_f32());
        }
    }
}
