//! Random weights in place of a checkpoint, to measure models that are not on this machine.

use half::bf16;
use rayon::prelude::*;
use tenggat_tensor::weight::{self, Bytes, Format, Quantised, Weight};
use tenggat_tensor::{DType, Device, Tensor};

use super::{Matrix, Source};
use crate::Result;

/// Standard deviation of the weights, about that of trained transformers.
const DEVIATION: f32 = 0.02;
/// Bytes that one task fills.
const CHUNK: usize = 1 << 16;

/// Generates every matrix in its stored form: quantised ones are never dense. The same matrix comes out the
/// same each time, and different ones differ.
#[derive(Debug)]
pub struct Random {
    /// Where tensors are made.
    pub device: Device,
    /// Type of vectors.
    pub compute: DType,
    /// Type of matrices that are not quantised.
    pub dense: DType,
    /// Format of those that are.
    pub format: Option<Format>,
}

impl Source for Random {
    fn matrix(&self, matrix: &Matrix) -> Result<Weight> {
        let shape = [matrix.output(), matrix.input];
        let seed = seed(matrix.key());
        if let Some(format) = self.format.filter(|format| format.fits(matrix.input)) {
            let mut parts = weight::part_bytes(format, shape[0], shape[1]).map(|n| vec![0u8; n]);
            fill(seed, &mut parts.codes);
            let (scale, zero_point) = scale(format, &mut parts.codes);
            parts.scales.as_chunks_mut::<2>().0.fill(bf16::from_f32(scale).to_le_bytes());
            parts.zero_points.fill(zero_point);
            return Ok(Weight::Quantised(Quantised::new(format, shape, parts.map(Bytes::from))?));
        }
        let mut bytes = vec![0u8; shape[0] * shape[1]];
        fill(seed, &mut bytes);
        let step = DEVIATION / BYTE_DEVIATION;
        let value = |b: &u8| step * f32::from(*b as i8);
        if self.dense == DType::BF16 {
            let mut tensor = Tensor::empty(&super::folder::host(&self.device), DType::BF16, &shape)?;
            let values = tensor.host_mut::<bf16>()?.par_iter_mut().zip(&bytes);
            values.for_each(|(to, b)| *to = bf16::from_f32(value(b)));
            return Ok(Weight::Dense(tensor.into_device(&self.device)?));
        }
        let values: Vec<f32> = bytes.iter().map(value).collect();
        Ok(Weight::Dense(Tensor::from_f32(&self.device, self.dense, &values, &shape)?))
    }

    /// Weights of norms are one, biases zero.
    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let mut vector = Tensor::empty(&self.device, self.compute, &[len])?;
        vector.fill(if name.ends_with(".bias") { 0.0 } else { 1.0 })?;
        Ok(vector)
    }
}

/// Standard deviation of a random byte as an integer, √((256² − 1) / 12).
const BYTE_DEVIATION: f32 = 73.9;
/// Root mean square of random e4m3 codes without the upper half of the exponents.
const FLOAT_DEVIATION: f32 = 0.61;

/// Scale and zero point that give random codes the wanted deviation. Codes of floats are made finite and
/// small.
fn scale(format: Format, codes: &mut [u8]) -> (f32, u8) {
    match format {
        Format::Uint(bits) => (DEVIATION * 12f32.sqrt() / f32::from(1u16 << bits), 1 << (bits - 1)),
        Format::QInt8 | Format::Int8 => (DEVIATION / BYTE_DEVIATION, 0),
        Format::QFloat8 | Format::Float8 => {
            codes.par_iter_mut().for_each(|code| *code &= 0xbf);
            (DEVIATION / FLOAT_DEVIATION, 0)
        }
    }
}

/// FNV-1a.
fn seed(name: &str) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Random bytes: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), one sequence per chunk.
fn fill(seed: u64, bytes: &mut [u8]) {
    bytes.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, bytes)| {
        let mut state = seed ^ (chunk as u64).wrapping_mul(0xd134_2543_de82_ef95);
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ z >> 31).to_le_bytes()
        };
        let (whole, rest) = bytes.as_chunks_mut::<8>();
        whole.iter_mut().for_each(|eight| *eight = next());
        let last = next();
        rest.copy_from_slice(&last[..rest.len()]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_usual_spread_and_repeat() {
        let (device, compute, dense) = (Device::cpu(), DType::F32, DType::F32);
        let matrix = |name: &str| Matrix::stacked(vec![name.into()], 256, 128);
        let values = |format, name| {
            let random = Random { device: device.clone(), compute, dense, format };
            match random.matrix(&matrix(name)).unwrap() {
                Weight::Dense(w) => w.to_f32().unwrap(),
                Weight::Quantised(w) => w.dequantise(&device, DType::F32).unwrap().to_f32().unwrap(),
                Weight::Packed(_) | Weight::Resident(_) | Weight::Fp8(_) => panic!("a source does not pack"),
            }
        };
        for name in ["", "uint2", "uint3", "uint7", "qfloat8", "int8"] {
            let format = name.parse().ok();
            let w = values(format, "a");
            let mean_square = w.iter().map(|x| x * x).sum::<f32>() / w.len() as f32;
            assert!((mean_square.sqrt() / DEVIATION - 1.0).abs() < 0.25, "{name}: {}", mean_square.sqrt());
            assert_eq!(w, values(format, "a"));
            assert_ne!(w, values(format, "b"));
        }
    }
}
